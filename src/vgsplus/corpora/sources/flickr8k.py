"""Flickr8k Audio Caption Corpus: captions of Flickr8k read aloud.

    wav2capt.txt            "1000268201_693b08cb0e_0.wav 1000268201_693b08cb0e.jpg #0" a line
    wav2spk.txt             "1000268201_693b08cb0e_0.wav 7" a line
    Flickr8k.token.txt      "1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress …" a line
    Flickr_8k.trainImages.txt, .devImages.txt, .testImages.txt    a picture's name a line
    dataset_flickr8k.json   Karpathy's, in place of these four: {"images": [{"filename": …, "split": "train",
                            "sentences": [{"raw": …}, …]}, …]}

Sounds are used where they are, in wavs/. See docs/corpora.md for the files.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vgsplus.corpora import Summary
from vgsplus.corpora.sources.caption_lists import Source, SpokenCaption
from vgsplus.corpora.sources.karpathy import SPLITS as KARPATHY_SPLITS
from vgsplus.corpora.sources.karpathy import karpathy_images
from vgsplus.corpora.sources.spoken_captions import prepare_spoken_captions
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.files import is_file, read_text
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.published import stem_key
from vgsplus.regions.store import Dtype

DIGITS = 9
"""More than a caption's number has."""
SPLITS = {"train": "train", "validation": "dev", "test": "test"}
"""The splits of a corpus, and how Flickr8k's files call them."""
LICENCE = (
    "The spoken captions under Creative Commons BY-SA, the written captions by Flickr8k's own terms, the "
    "pictures under their photographers' licences on Flickr."
)


@dataclass(slots=True)
class Texts:
    """Splits by picture, written captions by picture and number, and what is wrong with the lists."""

    splits: dict[str, str] = field(default_factory=dict)
    captions: dict[tuple[str, int], str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def prepare_flickr8k(
    root: Path,
    *,
    audio: Path,
    text: Path,
    features: Sequence[Path] = (),
    image_root: Path | None = None,
    dtype: Dtype = "float16",
    skip_faulty: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Summary:
    """Prepare Flickr8k's spoken captions as a corpus at `root`.

    `audio` is the folder with wav2capt.txt, wav2spk.txt and wavs/; `text` the folder of Flickr8k's lists, or
    Karpathy's JSON. Without `features`, the pictures are described by the cells of a plain grid. Captions
    shorter than 0.25 s and those whose picture is in no split are left out; with `skip_faulty` also those
    whose sound is absent or faulty, whose speaker is unknown, whose picture has no regions, or that come
    twice.

    Raises:
        CorpusError: `root` is taken; every fault of the lists; then of the sounds; then of the regions.
    """
    texts = read_karpathy(text) if text.is_file() else read_texts(text)
    files = {"captions": audio / "wav2capt.txt", "speakers": audio / "wav2spk.txt", "text": text}
    speakers: dict[str, str] = {}
    told: dict[str, str] = {}
    for place, line in _lines(files["speakers"]):
        wav, *rest = line.split()
        if wav in told:
            texts.faults.append(f"{place}: {wav} is in {told[wav]} already. Remove one.")
        told.setdefault(wav, place)
        if len(rest) == 1:
            speakers[wav] = rest[0]
        elif rest:
            texts.faults.append(f"{place}: expected a wav and its speaker, found {line!r}")
    if texts.faults:
        raise CorpusError(texts.faults)
    source = Source(
        name="flickr8k",
        title="Flickr8k Audio Caption Corpus",
        licence=LICENCE,
        pictures="Flickr8k",
        image_key=stem_key,
        files=files,
        read=lambda: _read(files["captions"], speakers, texts),
    )
    return prepare_spoken_captions(
        source,
        root,
        audio_root=audio / "wavs",
        features=features,
        image_root=image_root,
        dtype=dtype,
        skip_faulty=skip_faulty,
        overwrite=overwrite,
        progress=progress,
    )


def read_texts(folder: Path) -> Texts:
    """Flickr8k's own lists; a picture in two of them and a line that cannot be read are faults.

    Raises:
        CorpusError: a list is absent.
    """
    texts = Texts()
    homes: dict[object, str] = {}
    for split, name in SPLITS.items():
        for place, image in _lines(folder / f"Flickr_8k.{name}Images.txt"):
            home = texts.splits.setdefault(image, split)
            if home != split:
                texts.faults.append(f"{place}: {image} is in the split {home!r} already ({homes[image]})")
            elif image in homes:
                texts.faults.append(f"{place}: repeats {homes[image]}. Remove one.")
            homes.setdefault(image, place)
    for place, line in _lines(folder / "Flickr8k.token.txt"):
        name, _, caption = line.partition("\t")
        image, _, number = name.rpartition("#")
        if not image or not number.isdecimal() or len(number) > DIGITS or not caption.strip():
            texts.faults.append(f"{place}: expected a picture#number, a tab and a caption, found {line!r}")
            continue
        key = (image, int(number))
        if key in homes:
            texts.faults.append(f"{place}: repeats {homes[key]} ({name}). Remove one.")
        homes.setdefault(key, place)
        texts.captions[key] = caption.strip()
    return texts


def read_karpathy(path: Path) -> Texts:
    """Karpathy's JSON of Flickr8k; an image that lacks something is a fault.

    Raises:
        CorpusError: it is not JSON, or has no list "images".
    """
    texts = Texts()
    for place, record, split in karpathy_images(path):
        image = record.get("filename")
        try:
            captions = [str(sentence["raw"]).strip() for sentence in record["sentences"]]
        except (KeyError, TypeError):
            captions = []
        if split is None or not isinstance(image, str) or not captions:
            texts.faults.append(
                f'{place}: lacks "filename", "sentences" with "raw", or a "split" of '
                f"{', '.join(KARPATHY_SPLITS)}"
            )
            continue
        if image in texts.splits:
            texts.faults.append(f"{place}: {image} is in the split {texts.splits[image]!r} already")
        texts.splits.setdefault(image, split)
        texts.captions |= {(image, number): caption for number, caption in enumerate(captions)}
    return texts


def _read(
    path: Path, speakers: dict[str, str], texts: Texts
) -> Iterator[tuple[str | None, SpokenCaption | str]]:
    for place, line in _lines(path):
        columns = line.split()
        number = columns[2].removeprefix("#") if len(columns) == 3 else ""
        if not number.isdecimal() or len(number) > DIGITS:
            yield None, f"{place}: expected a wav, a picture and a #number, found {line!r}"
            continue
        wav, image, _ = columns
        text = texts.captions.get((image, int(number)))
        yield (
            texts.splits.get(image),
            SpokenCaption(place, image, text or None, speakers.get(wav), Path(wav).stem, wav),
        )


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file:line", line) of each line that is not blank.

    Raises:
        CorpusError: there is no such file, or it is not UTF-8.
    """
    if not is_file(path):
        raise CorpusError(f"{path}: there is no such file of Flickr8k.")
    try:
        lines = read_text(path).split("\n")
    except VgsplusError as error:
        raise CorpusError(str(error)) from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{path}:{number}", line.strip()
