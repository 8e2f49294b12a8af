"""Which subject is meant, and its examination.

Subjects are imported when they are asked for: a machine on which a part of the package cannot be imported can
still be examined.
"""
# ruff: noqa: PLC0415 - see above

from pathlib import Path

from vgsplus.doctor.findings import Diagnosis
from vgsplus.errors import VgsplusError

MACHINE = "machine"
_CORPUS = ("corpus.json", "captions.jsonl", "regions.h5")
_RUN = ("config.yaml", "log.jsonl", "checkpoints")
_REPRODUCTION = ("runs", "seconds")


def examine(what: str | Path) -> Diagnosis:
    """Examine the machine ("machine"), or the corpus, run or reproduction in a folder.

    Nothing is changed on disk, and no code is run from what is read.

    Raises:
        VgsplusError: it is none of these; says what was looked for.
    """
    if what == MACHINE:
        from vgsplus.doctor.machine import examine_machine

        return examine_machine()
    folder = Path(what)
    if not folder.is_dir():
        raise VgsplusError(f"{folder}: there is no such folder. {_sought()}")
    if _holds(folder, _CORPUS):
        from vgsplus.doctor.corpus import examine_corpus

        return examine_corpus(folder)
    if _holds(folder, _RUN):
        from vgsplus.doctor.run import examine_run

        return examine_run(folder)
    if _holds(folder, _REPRODUCTION):
        from vgsplus.doctor.reproduction import examine_reproduction

        return examine_reproduction(folder)
    raise VgsplusError(f"{folder}: is neither a corpus nor a run nor a reproduction. {_sought()}")


def _holds(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).exists() for name in names)


def _sought() -> str:
    return (
        f"Name the word {MACHINE}, or a folder that holds any of {', '.join(_CORPUS)} (a corpus), "
        f"{', '.join(_RUN)} (a run) or {', '.join(_REPRODUCTION)} (a reproduction)."
    )
