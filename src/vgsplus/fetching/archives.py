"""The public archives of the corpora: where each lies, what is known of it, and what it becomes.

Sizes and checksums are those that others published. Where none was found the entry is None, and only what
remains is checked. docs/fetching.md holds the same table and says where each value is from.
"""

import difflib
from dataclasses import dataclass
from typing import Literal

from vgsplus.errors import DownloadError

OPENSLR = "https://www.openslr.org/resources/12"
OPENSLR_MIRRORS = (
    "https://us.openslr.org/resources/12",
    "https://openslr.elda.org/resources/12",
    "https://openslr.magicdatatech.com/resources/12",
)
CSAIL = "https://data.csail.mit.edu/placesaudio"
LXMERT = "https://nlp.cs.unc.edu/data/lxmert_data/mscoco_imgfeat"


@dataclass(frozen=True, slots=True)
class Checksum:
    """A digest of a whole file, in lower-case hexadecimal digits."""

    kind: Literal["md5", "sha256"]
    value: str


@dataclass(frozen=True, slots=True)
class Archive:
    """One file to be fetched, and what it unpacks to.

    Attributes:
        name: what `vgsplus data fetch` calls it.
        url: its publisher's address.
        unpacks_to: the folder that is there once it is unpacked, relative to the folder it is fetched into.
        licence: of its contents, in a few words; None where none was found.
        size: bytes, exactly; None where nobody published them.
        rough_size: what its publisher or its users say, in their words, where `size` is None.
        checksum: of the file; None where none is published.
        mirrors: other addresses of the folder that `url` lies in.
    """

    name: str
    url: str
    unpacks_to: str
    licence: str | None
    size: int | None = None
    rough_size: str | None = None
    checksum: Checksum | None = None
    mirrors: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """The name of the file, without a folder."""
        return self.url.rpartition("/")[2]

    def addresses(self, mirrors: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Every URL to try, in order: in `mirrors` (folders), at the publisher, in the known mirrors."""
        theirs, own = (
            tuple(f"{m.rstrip('/')}/{self.file}" for m in some) for some in (mirrors, self.mirrors)
        )
        return tuple(dict.fromkeys((*theirs, self.url, *own)))


def _librispeech(subset: str, size: int, sha256: str) -> Archive:
    return Archive(
        name=f"librispeech-{subset}",
        url=f"{OPENSLR}/{subset}.tar.gz",
        unpacks_to=f"LibriSpeech/{subset}",
        licence="CC BY 4.0",
        size=size,
        checksum=Checksum("sha256", sha256),
        mirrors=OPENSLR_MIRRORS,
    )


ARCHIVES = (
    _librispeech(
        "dev-clean", 337_926_286, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"
    ),
    _librispeech(
        "dev-other", 314_305_928, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"
    ),
    _librispeech(
        "test-clean", 346_663_984, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"
    ),
    _librispeech(
        "test-other", 328_757_843, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"
    ),
    _librispeech(
        "train-clean-100", 6_387_309_499, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"
    ),
    _librispeech(
        "train-clean-360", 23_049_477_885, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"
    ),
    _librispeech(
        "train-other-500", 30_593_501_606, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"
    ),
    Archive(
        name="librilight-abx",
        url="https://dl.fbaipublicfiles.com/librilight/data/ABX_data.tgz",
        unpacks_to="ABX_data",
        licence=None,
    ),
    Archive(
        name="spokencoco",
        url=f"{CSAIL}/SpokenCOCO.tar.gz",
        unpacks_to="SpokenCOCO",
        licence=None,
        rough_size="64G",
    ),
    Archive(
        name="obj36-train2014",
        url=f"{LXMERT}/train2014_obj36.zip",
        unpacks_to="train2014_obj36",
        licence=None,
        rough_size="17 GB",
    ),
    Archive(
        name="obj36-val2014",
        url=f"{LXMERT}/val2014_obj36.zip",
        unpacks_to="val2014_obj36",
        licence=None,
        rough_size="8 GB",
    ),
    Archive(
        name="places-audio",
        url=f"{CSAIL}/placesaudio_2020_splits.tar.gz",
        unpacks_to="placesaudio_2020_splits",
        licence=None,
        rough_size="85G",
    ),
    Archive(
        name="flickr8k-audio",
        url="https://groups.csail.mit.edu/sls/downloads/flickraudio/downloads/flickr_audio.tar.gz",
        unpacks_to="flickr_audio",
        licence="CC BY-SA",
        rough_size="4.2 GB",
        checksum=Checksum("md5", "9d078f1f150c26e864aa64d1d733779a"),
    ),
)


def find_archive(name: str) -> Archive:
    """The archive of that name.

    Raises:
        DownloadError: there is none; the message names the nearest, and all.
    """
    known = {archive.name: archive for archive in ARCHIVES}
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise DownloadError(
            f"{name!r}: there is no such archive; the nearest is {nearest!r} (of {', '.join(known)})"
        )
    return known[name]
