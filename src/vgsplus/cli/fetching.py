"""Fetching the archives of corpora: `vgsplus data fetch`, and `--download` of those that prepare them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Column, Table

from vgsplus.cli.progress import byte_bars
from vgsplus.errors import Interrupted, VgsplusError

if TYPE_CHECKING:
    from vgsplus.fetching.archives import Archive

Download = Annotated[
    bool,
    typer.Option(
        "--download",
        help="First fetch what is missing in --root (flickr8k: --audio); see vgsplus data fetch.",
    ),
]
Mirror = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL",
        help="The web address of a folder that holds the archives; tried first; may be repeated.",
    ),
]


def fetch(
    name: Annotated[
        str | None, typer.Argument(help="An archive; without it, all are listed.", show_default=False)
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Where it is fetched and unpacked.", show_default=False),
    ] = None,
    mirror: Mirror = None,
) -> None:
    """Fetch and unpack a public archive; stopped and started again, it goes on."""
    from vgsplus.fetching.archives import ARCHIVES, find_archive

    if name is None:
        Console().print(_listing(ARCHIVES))
        return
    archive = find_archive(name)
    if folder is None:
        raise typer.BadParameter("name the folder that it is fetched into", param_hint="DIR")
    fetch_all([archive], folder, mirror or ())


def fetch_all(archives: Sequence["Archive"], folder: Path, mirrors: Sequence[str]) -> list[Path]:
    """Fetch what is not unpacked in `folder` yet, and say what each is; the unpacked folders.

    Raises:
        Interrupted: Ctrl-C was pressed.
        DownloadError: as `corpora.fetching.fetch.fetch`.
    """
    from vgsplus.fetching.fetch import fetch as fetch_archive

    console = Console()
    found = []
    for archive in archives:
        if not (folder / archive.unpacks_to).exists():
            console.print(_description(archive), markup=False, highlight=False, soft_wrap=True)
        try:
            with byte_bars() as progress:
                found.append(fetch_archive(archive, folder, mirrors=tuple(mirrors), progress=progress))
        except KeyboardInterrupt:
            raise Interrupted(
                f"vgsplus: stopped. What was received of {archive.file} stays in {folder}; "
                "the same command goes on with it."
            ) from None
        console.print(f"{found[-1]}: is there", markup=False, highlight=False, soft_wrap=True)
    return found


def fetch_librispeech(
    root: Path, train: Sequence[str], validation: Sequence[str], mirrors: Sequence[str]
) -> None:
    """Fetch those subsets of LibriSpeech that are not in `root`, its folder or the one above it.

    Raises:
        VgsplusError: no subset to train on is named or there; one has no archive; as `fetch_all`.
    """
    from vgsplus.corpora.sources.librispeech import FOLDER, TRAINING_SUBSETS
    from vgsplus.fetching.archives import find_archive

    root = root.absolute()
    folder = root.parent if root.name == FOLDER else root
    if not train and not any((folder / FOLDER / subset).is_dir() for subset in TRAINING_SUBSETS):
        raise VgsplusError(
            f"--download needs --train, the subset to fetch and train on: {', '.join(TRAINING_SUBSETS)}"
        )
    fetch_all(
        [find_archive(f"librispeech-{subset}") for subset in dict.fromkeys((*train, *validation))],
        folder,
        mirrors,
    )


def fetch_spokencoco(
    root: Path | None, features: Sequence[Path] | None, images: Path | None, mirrors: Sequence[str]
) -> tuple[Path, list[Path]]:
    """Fetch SpokenCOCO and, where neither `features` nor `images` are named, LXMERT's regions.

    Returns:
        SpokenCOCO's folder and the features.

    Raises:
        VgsplusError: `root` is not named; as `fetch_all`.
    """
    from vgsplus.fetching.archives import find_archive

    unpacked = fetch_corpus("spokencoco", root, mirrors)
    if features or images:
        return unpacked, list(features or ())
    regions = [find_archive(name) for name in ("obj36-train2014", "obj36-val2014")]
    places = fetch_all(regions, unpacked.parent, mirrors)
    return unpacked, [table for place in places for table in sorted(place.rglob("*.tsv"))]


def fetch_corpus(name: str, root: Path | None, mirrors: Sequence[str]) -> Path:
    """Fetch the archive of a corpus, unless it is there; its folder, which is `root` or lies in it.

    Raises:
        VgsplusError: `root` is not named; as `fetch_all`.
    """
    from vgsplus.fetching.archives import find_archive

    if root is None:
        raise VgsplusError("--download needs --root, the folder to fetch into")
    archive = find_archive(name)
    root = root.absolute()
    (unpacked,) = fetch_all([archive], root.parent if root.name == archive.unpacks_to else root, mirrors)
    return unpacked


def _listing(archives: Sequence["Archive"]) -> Table:
    table = Table(Column("name", no_wrap=True), "size", "checksum", "licence", "unpacks to")
    for archive in archives:
        table.add_row(
            archive.name,
            _size(archive),
            archive.checksum.kind if archive.checksum else "none",
            archive.licence or "not found",
            f"{archive.unpacks_to}/",
        )
    return table


def _size(archive: "Archive") -> str:
    if archive.size is not None:
        return decimal(archive.size)
    return f"about {archive.rough_size}" if archive.rough_size else "not found"


def _description(archive: "Archive") -> str:
    """What is about to be fetched, and what nobody vouches for."""
    terms = archive.licence or "not found here; see its publisher's page"
    checked = (
        f"checked by its {archive.checksum.kind}"
        if archive.checksum
        else "no checksum of it is published, so a wrong byte may only show when it is unpacked"
    )
    return f"{archive.name}: {archive.url}, size {_size(archive)}, licence {terms}; {checked}"
