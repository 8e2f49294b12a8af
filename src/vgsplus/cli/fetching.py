"""Command `vgsplus data fetch`, and the option `--download` of other commands of `vgsplus data`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Column, Table

from vgsplus.cli.options import Mirror
from vgsplus.errors import Interrupted, VgsplusError
from vgsplus.progress import console_progress

if TYPE_CHECKING:
    from vgsplus.fetching.archives import Archive


def fetch(
    name: Annotated[
        str | None,
        typer.Argument(help="Name of an archive. Default: list all archives.", show_default=False),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Folder to download and unpack into.", show_default=False),
    ] = None,
    mirror: Mirror = None,
) -> None:
    """Download and unpack a public archive. Run the same command again to resume."""
    from vgsplus.fetching.archives import ARCHIVES

    if name is None:
        table = Table(Column("name", no_wrap=True), "size", "checksum", "licence", "unpacks to")
        for archive in ARCHIVES:
            checksum = archive.checksum[0] if archive.checksum else "none"
            licence = archive.licence or "not found"
            table.add_row(archive.name, _size(archive), checksum, licence, f"{archive.unpacks_to}/")
        Console().print(table)
        return
    if folder is None:
        raise typer.BadParameter("name the folder to download into", param_hint="DIR")
    fetch_all([name], folder, mirror or ())


def fetch_all(names: Sequence[str], folder: Path, mirrors: Sequence[str]) -> list[Path]:
    """Download and unpack archives into `folder` unless they exist there; return the unpacked folders."""
    from vgsplus.fetching.archives import find_archive
    from vgsplus.fetching.fetch import fetch as fetch_archive

    unpacked = []
    for archive in [find_archive(name) for name in names]:
        if not (folder / archive.unpacks_to).exists():
            typer.echo(_description(archive))
        try:
            with console_progress(in_bytes=True) as progress:
                path = fetch_archive(archive, folder, mirrors=tuple(mirrors), progress=progress)
        except KeyboardInterrupt:
            raise Interrupted(
                f"vgsplus: stopped. The received bytes of {archive.file} are kept in {folder}; "
                "run the same command to resume."
            ) from None
        typer.echo(f"{path}: ready")
        unpacked.append(path)
    return unpacked


def fetch_librispeech(
    root: Path, train: Sequence[str], validation: Sequence[str], mirrors: Sequence[str]
) -> None:
    """Download subsets that are missing in `root`, which is the folder LibriSpeech or contains it."""
    from vgsplus.corpora.sources.librispeech import FOLDER, TRAINING_SUBSETS

    root = root.absolute()
    folder = root.parent if root.name == FOLDER else root
    if not train and not any((folder / FOLDER / subset).is_dir() for subset in TRAINING_SUBSETS):
        raise VgsplusError(
            f"--download needs --train, the subset to download and train on: {', '.join(TRAINING_SUBSETS)}"
        )
    fetch_all([f"librispeech-{subset}" for subset in dict.fromkeys((*train, *validation))], folder, mirrors)


def fetch_spokencoco(
    root: Path | None, features: Sequence[Path] | None, images: Path | None, mirrors: Sequence[str]
) -> tuple[Path, list[Path]]:
    """Download SpokenCOCO and, unless `features` or `images` are given, the region features of LXMERT.

    Returns:
        The folder of SpokenCOCO and the files of region features.
    """
    unpacked = fetch_corpus("spokencoco", root, mirrors)
    if features or images:
        return unpacked, list(features or ())
    folders = fetch_all(["obj36-train2014", "obj36-val2014"], unpacked.parent, mirrors)
    return unpacked, [table for folder in folders for table in sorted(folder.rglob("*.tsv"))]


def fetch_corpus(name: str, root: Path | None, mirrors: Sequence[str]) -> Path:
    """Download the archive of a corpus unless it exists; return its folder, `root` or a folder in it."""
    from vgsplus.fetching.archives import find_archive

    if root is None:
        raise VgsplusError("--download needs --root, the folder to download into")
    root = root.absolute()
    folder = root.parent if root.name == find_archive(name).unpacks_to else root
    return fetch_all([name], folder, mirrors)[0]


def _size(archive: "Archive") -> str:
    if archive.size is not None:
        return decimal(archive.size)
    return f"about {archive.rough_size}" if archive.rough_size else "not found"


def _description(archive: "Archive") -> str:
    """Describe an archive: address, size, licence, verification."""
    licence = archive.licence or "unknown; see the page of its distributor"
    checked = (
        f"verified by {archive.checksum[0]}"
        if archive.checksum
        else "no published checksum, so damage may be detected only by unpacking"
    )
    return f"{archive.name}: {archive.url}, size {_size(archive)}, licence {licence}; {checked}"
