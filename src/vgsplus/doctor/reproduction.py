"""How far a reproduction is: each variant from each seed, the report, and the command that goes on."""

import re
from collections.abc import Iterator
from pathlib import Path

from vgsplus.config import load_config
from vgsplus.corpora import Corpus
from vgsplus.doctor.commands import reproduce_command
from vgsplus.doctor.findings import Diagnosis, Finding, count
from vgsplus.doctor.leftovers import leftover_findings, leftovers
from vgsplus.doctor.standing import standing
from vgsplus.errors import VgsplusError
from vgsplus.experiments.reproduce import CORPUS, ITEMS, NO_ITEMS, RUNS, items_digest, variant_folder
from vgsplus.report import Results
from vgsplus.report.page import DATA, FOLDER, PAGE
from vgsplus.schedule import VARIANTS, variant_title
from vgsplus.training.checkpoint import checkpoints, latest
from vgsplus.training.run_folder import CONFIG_FILE


def examine_reproduction(out: Path) -> Diagnosis:
    """Look at the corpus, the runs and the report in the folder of `vgsplus reproduce`."""
    seeds = _seeds(out)
    runs = [
        (key, repeat)
        for repeat in range(seeds)
        for key in VARIANTS
        if (variant_folder(out, key, repeat) / CONFIG_FILE).is_file()
        or checkpoints(variant_folder(out, key, repeat))
    ]
    findings = [*_corpus(out)]
    unfinished = False
    for key, repeat in runs:
        finding, finished = _variant(out, key, repeat)
        findings.append(finding)
        unfinished |= not finished
    findings += _not_begun(runs, seeds)
    results, of_report = _report(out, runs)
    findings.append(of_report)
    findings += leftover_findings(leftovers(out, out / RUNS, out / FOLDER))
    command = ""
    if unfinished or of_report.level != "ok":
        command = go_on_command(out, results.preset if results else None) or ""
        findings += _items_from_elsewhere(out, runs)
        if "--variants" in command:
            remedy = "Leave --variants out to train all nine."
            findings.append(Finding("hint", "command", "it names the variants that were begun", remedy))
        if not command:
            remedy = "Give the same vgsplus reproduce command again; it goes on where it stopped."
            findings.append(Finding("hint", "command", "no preset has the settings of these runs", remedy))
    return Diagnosis(f"reproduction {out}", tuple(findings), command)


def go_on_command(out: Path, preset: str | None = None) -> str | None:
    """The command that goes on with a reproduction, None where the runs do not tell it."""
    begun = {}
    for key in VARIANTS:
        path = variant_folder(out, key, 0) / CONFIG_FILE
        if path.is_file():
            try:
                begun[key] = load_config(path)
            except VgsplusError:  # a finding of its own
                continue
    return reproduce_command(out, begun, seeds=_seeds(out), preset=preset) if begun else None


def _items_from_elsewhere(out: Path, runs: list[tuple[str, int]]) -> Iterator[Finding]:
    """Whether ABX is measured on other items than the corpus's, of which a folder only notes the digest."""
    noted = out / ITEMS
    known = noted.read_text(encoding="utf-8").strip() if noted.is_file() else NO_ITEMS
    if known == NO_ITEMS:
        return
    for key, repeat in runs:
        try:
            corpus = Path(load_config(variant_folder(out, key, repeat) / CONFIG_FILE).corpus)
        except VgsplusError:  # a finding of its own
            continue
        if known not in map(items_digest, corpus.glob("*.item")):
            remedy = "Add --item and --audio to the command, as it was begun."
            yield Finding("hint", "command", "ABX is measured on items from elsewhere", remedy)
        return


def _seeds(out: Path) -> int:
    """How many times the variants were trained, or began to be."""
    repeats = [
        int(found[1])
        for path in (out / RUNS).glob("seed-*")
        if (found := re.fullmatch(r"seed-(\d+)", path.name))
    ]
    return 1 + max(repeats, default=0)


def _corpus(out: Path) -> Iterator[Finding]:
    own = out / CORPUS
    if not own.exists():
        return
    try:
        Corpus.open(own)
    except VgsplusError as error:
        yield Finding("fault", "corpus", str(error), f"vgsplus doctor {own} tells more.")
    else:
        yield Finding("ok", "corpus", f"{own}; its files were not read: vgsplus doctor {own}")


def _variant(out: Path, key: str, repeat: int) -> tuple[Finding, bool]:
    """What is found of a variant, and whether it is finished."""
    run = variant_folder(out, key, repeat)
    about = f"{variant_title(key)}, seed-{repeat}" if repeat else variant_title(key)
    remedy = f"vgsplus doctor {run} tells more."
    try:
        place = standing(run, latest(run), load_config(run / CONFIG_FILE), evaluated=True)
    except VgsplusError as error:
        return Finding("fault", about, str(error), remedy), False
    if place.finished:
        return Finding("ok", about, str(place)), True
    return Finding("hint", about, str(place)), False


def _not_begun(runs: list[tuple[str, int]], seeds: int) -> Iterator[Finding]:
    for repeat in range(seeds):
        # Later seeds train the variants of the first.
        wanted = [key for key in VARIANTS if not repeat or (key, 0) in runs]
        absent = [variant_title(key) for key in wanted if (key, repeat) not in runs]
        if absent:
            about = f"not begun, seed-{repeat}" if repeat else "not begun"
            yield Finding("ok", about, "; ".join(absent))


def _report(out: Path, runs: list[tuple[str, int]]) -> tuple[Results | None, Finding]:
    """The results of the report, if there is one, and what is found of it."""
    page, saved = out / FOLDER / PAGE, out / FOLDER / DATA
    if not page.is_file() and not saved.is_file():
        remedy = "It is written when all variants are trained."
        return None, Finding("hint", "report", f"there is no {page} yet", remedy)
    try:
        results = Results.load(saved)
    except VgsplusError as error:
        return None, Finding("fault", "report", str(error), "Give the command of the reproduction again.")
    if not page.is_file():
        return results, Finding("fault", "report", f"{page} is missing", f"vgsplus report {out}")
    shown = {(variant.key, 0) for variant in results.variants}
    shown |= {
        (variant.key, repeat)
        for repeat, found in enumerate(results.repeats, start=1)
        for variant in found.variants
    }
    if absent := set(runs) - shown:
        remedy = "Give the command of the reproduction again."
        return results, Finding("hint", "report", f"{page} lacks {count(len(absent), 'run')}", remedy)
    return results, Finding("ok", "report", f"{page}, written {results.created}")
