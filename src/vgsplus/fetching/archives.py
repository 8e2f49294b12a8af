"""The public archives of corpora: addresses and mirrors, sizes, checksums, licences, folders.

Sizes and checksums are those published by the distributor or by other projects; None if none was found, and
then not verified. docs/fetching.md has the same table, with the source of each value.
"""

import difflib
from dataclasses import dataclass

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
class Archive:
    """A file to download and unpack.

    Attributes:
        name: name of the archive in `vgsplus data fetch`.
        url: address of the file at its distributor.
        unpacks_to: the unpacked folder, relative to the download folder.
        licence: short name of the licence of the contents, or None.
        size: exact number of bytes, or None.
        rough_size: size as stated by the distributor or users, if `size` is None.
        checksum: algorithm ("md5" or "sha256") and digest in lower-case hexadecimal digits, or None.
        mirrors: addresses of web folders that contain a copy of the file.
    """

    name: str
    url: str
    unpacks_to: str
    licence: str | None = None
    size: int | None = None
    rough_size: str | None = None
    checksum: tuple[str, str] | None = None
    mirrors: tuple[str, ...] = ()

    @property
    def file(self) -> str:
        """Name of the file."""
        return self.url.rpartition("/")[2]

    def addresses(self, mirrors: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Return the URLs to try in order: in the web folders `mirrors`, at the distributor, its mirrors."""
        folders = (*mirrors, self.url.rpartition("/")[0], *self.mirrors)
        return tuple(dict.fromkeys(f"{folder.rstrip('/')}/{self.file}" for folder in folders))


_LIBRISPEECH = {
    "dev-clean": (337_926_286, "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3"),
    "dev-other": (314_305_928, "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365"),
    "test-clean": (346_663_984, "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23"),
    "test-other": (328_757_843, "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29"),
    "train-clean-100": (6_387_309_499, "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2"),
    "train-clean-360": (23_049_477_885, "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf"),
    "train-other-500": (30_593_501_606, "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2"),
}
"""Size and SHA-256 of each subset."""

ARCHIVES = (
    *(
        Archive(
            f"librispeech-{subset}",
            f"{OPENSLR}/{subset}.tar.gz",
            f"LibriSpeech/{subset}",
            licence="CC BY 4.0",
            size=size,
            checksum=("sha256", sha256),
            mirrors=OPENSLR_MIRRORS,
        )
        for subset, (size, sha256) in _LIBRISPEECH.items()
    ),
    Archive("librilight-abx", "https://dl.fbaipublicfiles.com/librilight/data/ABX_data.tgz", "ABX_data"),
    Archive("spokencoco", f"{CSAIL}/SpokenCOCO.tar.gz", "SpokenCOCO", rough_size="64G"),
    Archive("obj36-train2014", f"{LXMERT}/train2014_obj36.zip", "train2014_obj36", rough_size="17 GB"),
    Archive("obj36-val2014", f"{LXMERT}/val2014_obj36.zip", "val2014_obj36", rough_size="8 GB"),
    Archive(
        "places-audio",
        f"{CSAIL}/placesaudio_2020_splits.tar.gz",
        "placesaudio_2020_splits",
        rough_size="85G",
    ),
    Archive(
        "flickr8k-audio",
        "https://groups.csail.mit.edu/sls/downloads/flickraudio/downloads/flickr_audio.tar.gz",
        "flickr_audio",
        licence="CC BY-SA",
        rough_size="4.2 GB",
        checksum=("md5", "9d078f1f150c26e864aa64d1d733779a"),
    ),
)


def find_archive(name: str) -> Archive:
    """Return the archive of that name.

    Raises:
        DownloadError: the name is unknown; the message suggests the most similar one and lists all.
    """
    known = {archive.name: archive for archive in ARCHIVES}
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
        raise DownloadError(
            f"{name!r}: there is no such archive; the nearest is {nearest!r} (of {', '.join(known)})"
        )
    return known[name]
