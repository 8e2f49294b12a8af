"""Examine a reproduction: the progress of each variant and seed, the report, and the command to resume."""

import re
from collections.abc import Iterator
from pathlib import Path

from vgsplus.config import load_config
from vgsplus.corpora import Corpus
from vgsplus.doctor.findings import Diagnosis, Finding, count, leftovers
from vgsplus.doctor.run import recorded_command, run_progress
from vgsplus.errors import VgsplusError
from vgsplus.experiments.reproduce import RUNS, variant_folder
from vgsplus.experiments.study import CORPUS
from vgsplus.report.page import DATA, FOLDER, PAGE
from vgsplus.report.results import Results
from vgsplus.schedule import VARIANTS, variant_title
from vgsplus.training.checkpoint import checkpoints, latest_path
from vgsplus.training.run_folder import CONFIG_FILE

RUN_AGAIN = "Run the same vgsplus reproduce command again; it resumes where it stopped."


def examine_reproduction(out: Path) -> Diagnosis:
    """Check the corpus, the runs and the report in a folder of `vgsplus reproduce`."""
    repeats = [
        int(match[1])
        for path in (out / RUNS).glob("seed-*")
        if (match := re.fullmatch(r"seed-(\d+)", path.name))
    ]
    seeds = 1 + max(repeats, default=0)
    runs = [
        (key, repeat)
        for repeat in range(seeds)
        for key in VARIANTS
        if (variant_folder(out, key, repeat) / CONFIG_FILE).is_file()
        or checkpoints(variant_folder(out, key, repeat))
    ]
    variants = [_variant(out, key, repeat) for key, repeat in runs]
    report = _report(out, runs)
    findings = [*_corpus(out), *variants, *_not_started(runs, seeds), report]
    findings += leftovers(out, out / RUNS, out / FOLDER)
    command = ""
    if any(finding.level != "ok" for finding in (*variants, report)):
        command = recorded_command(out)
        if not command:
            what = f"none is recorded in {out}; the settings of its runs are in {out / RUNS}/…/{CONFIG_FILE}"
            findings.append(Finding("hint", "command", what, RUN_AGAIN))
    return Diagnosis(f"reproduction {out}", tuple(findings), command)


def _corpus(out: Path) -> Iterator[Finding]:
    own = out / CORPUS
    if not own.exists():
        return
    try:
        Corpus.open(own)
    except VgsplusError as error:
        yield Finding("fault", "corpus", str(error), f"For details: vgsplus doctor {own}")
    else:
        yield Finding("ok", "corpus", f"{own}; its files were not read: vgsplus doctor {own}")


def _variant(out: Path, key: str, repeat: int) -> Finding:
    """Return the progress of a variant, "ok" if it is finished."""
    run = variant_folder(out, key, repeat)
    about = f"{variant_title(key)}, seed-{repeat}" if repeat else variant_title(key)
    try:
        progress = run_progress(run, latest_path(run), load_config(run / CONFIG_FILE), evaluated=True)
    except VgsplusError as error:
        return Finding("fault", about, str(error), f"For details: vgsplus doctor {run}")
    return Finding("ok" if progress.finished else "hint", about, str(progress))


def _not_started(runs: list[tuple[str, int]], seeds: int) -> Iterator[Finding]:
    for repeat in range(seeds):
        # Later seeds train the variants of the first.
        expected = [key for key in VARIANTS if not repeat or (key, 0) in runs]
        missing = [variant_title(key) for key in expected if (key, repeat) not in runs]
        if missing:
            about = f"not started, seed-{repeat}" if repeat else "not started"
            yield Finding("ok", about, "; ".join(missing))


def _report(out: Path, runs: list[tuple[str, int]]) -> Finding:
    page, saved = out / FOLDER / PAGE, out / FOLDER / DATA
    if not page.is_file() and not saved.is_file():
        remedy = "It is written when all variants are trained."
        return Finding("hint", "report", f"{page} does not exist yet", remedy)
    try:
        results = Results.load(saved)
    except VgsplusError as error:
        return Finding("fault", "report", str(error), RUN_AGAIN)
    if not page.is_file():
        return Finding("fault", "report", f"{page} is missing", f"vgsplus report {out}")
    shown = {(variant.key, 0) for variant in results.variants}
    for repeat, repetition in enumerate(results.repeats, start=1):
        shown |= {(variant.key, repeat) for variant in repetition.variants}
    if missing := set(runs) - shown:
        return Finding("hint", "report", f"{page} lacks {count(len(missing), 'run')}", RUN_AGAIN)
    return Finding("ok", "report", f"{page}, written {results.created}")
