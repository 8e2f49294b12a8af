"""Flickr8k Audio Caption Corpus: captions of Flickr8k read aloud.

    wav2capt.txt            lines "1000268201_693b08cb0e_0.wav 1000268201_693b08cb0e.jpg #0"
    wav2spk.txt             lines "1000268201_693b08cb0e_0.wav 7"
    Flickr8k.token.txt      lines "1000268201_693b08cb0e.jpg#0<TAB>A child in a pink dress …"
    Flickr_8k.trainImages.txt, .devImages.txt, .testImages.txt    an image name per line
    dataset_flickr8k.json   Karpathy's, instead of these four: {"images": [{"filename": …, "split": "train",
                            "sentences": [{"raw": …}, …]}, …]}

Sounds are used in place, in wavs/. See docs/corpora.md for the files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Unpack

from vgsplus.corpora import Summary
from vgsplus.corpora.format import CaptionEntry
from vgsplus.corpora.keyed_lines import keyed_lines, numbered_lines
from vgsplus.corpora.prepare import NO_SPLIT
from vgsplus.corpora.sources.karpathy import SPLITS as KARPATHY_SPLITS
from vgsplus.corpora.sources.karpathy import karpathy_images
from vgsplus.corpora.sources.lists import ListOptions, ListSource, prepare_lists
from vgsplus.errors import CorpusError
from vgsplus.regions.published import stem_key

MAX_DIGITS = 9
"""Maximum number of digits in the number of a caption."""
SPLITS = {"train": "train", "validation": "dev", "test": "test"}
"""Names of the splits in the files of Flickr8k."""
LICENCE = (
    "The spoken captions under Creative Commons BY-SA, the written captions by Flickr8k's own terms, the "
    "pictures under their photographers' licences on Flickr."
)
SOURCE = ListSource(
    "flickr8k", "Flickr8k Audio Caption Corpus", LICENCE, images="Flickr8k", image_key=stem_key
)

type SplitsAndTexts = tuple[dict[str, str], dict[tuple[str, int], str]]
"""The split of each image, and the text of each caption by image and number."""


def prepare_flickr8k(root: Path, *, audio: Path, text: Path, **options: Unpack[ListOptions]) -> Summary:
    """Prepare the Flickr8k Audio Caption Corpus as a corpus at `root`; for the options see `ListOptions`.

    The folder `audio` contains wav2capt.txt, wav2spk.txt and wavs/. `text` is the folder of the lists of
    Flickr8k, or dataset_flickr8k.json.

    Raises:
        CorpusError: `root` exists; all faults of the texts and speakers; all faults of the captions and
            sounds; or all faults of the regions.
    """
    faults: list[str] = []
    splits, texts = read_karpathy(text, faults) if text.is_file() else read_texts(text, faults)
    files = {"captions": audio / "wav2capt.txt", "speakers": audio / "wav2spk.txt", "text": text}
    speakers = _read_speakers(files["speakers"], faults)
    if faults:
        raise CorpusError(faults)

    def entries() -> Iterator[CaptionEntry | str]:
        for origin, line in _lines(files["captions"]):
            columns = line.split()
            number = columns[2].removeprefix("#") if len(columns) == 3 else ""
            if not number.isdecimal() or len(number) > MAX_DIGITS:
                yield f"{origin}: expected a wav, a picture and a #number, found {line!r}"
                continue
            wav, image, _ = columns
            problem = None if image in splits else NO_SPLIT
            yield CaptionEntry(
                origin=origin,
                audio=wav,
                id=Path(wav).stem,
                split=splits.get(image),
                speaker=speakers.get(wav, ""),
                language="en",
                image=image,
                text=texts.get((image, int(number))) or None,
                problem=problem or (None if wav in speakers else "unknown speaker"),
            )

    return prepare_lists(SOURCE, entries(), root, files=files, audio_root=audio / "wavs", **options)


def read_texts(folder: Path, faults: list[str]) -> SplitsAndTexts:
    """Read the lists of Flickr8k; faulty lines and images in two splits are added to `faults`.

    Raises:
        CorpusError: a list is absent.
    """
    splits: dict[str, str] = {}
    texts: dict[tuple[str, int], str] = {}
    origins: dict[object, str] = {}
    for split, name in SPLITS.items():
        for origin, image in _lines(folder / f"Flickr_8k.{name}Images.txt"):
            other = splits.setdefault(image, split)
            if other != split:
                faults.append(f"{origin}: {image} is in the split {other!r} already ({origins[image]})")
            elif image in origins:
                faults.append(f"{origin}: repeats {origins[image]}. Remove one.")
            origins.setdefault(image, origin)
    for origin, line in _lines(folder / "Flickr8k.token.txt"):
        name, _, caption = line.partition("\t")
        image, _, number = name.rpartition("#")
        if not image or not number.isdecimal() or len(number) > MAX_DIGITS or not caption.strip():
            faults.append(f"{origin}: expected a picture#number, a tab and a caption, found {line!r}")
            continue
        key = (image, int(number))
        if key in origins:
            faults.append(f"{origin}: repeats {origins[key]} ({name}). Remove one.")
        origins.setdefault(key, origin)
        texts[key] = caption.strip()
    return splits, texts


def read_karpathy(path: Path, faults: list[str]) -> SplitsAndTexts:
    """Read dataset_flickr8k.json; images that lack a field are added to `faults`.

    Raises:
        CorpusError: it is not JSON, or has no list "images".
    """
    splits: dict[str, str] = {}
    texts: dict[tuple[str, int], str] = {}
    for origin, record, split in karpathy_images(path):
        image = record.get("filename")
        try:
            captions = [str(sentence["raw"]).strip() for sentence in record["sentences"]]
        except (KeyError, TypeError):
            captions = []
        if split is None or not isinstance(image, str) or not captions:
            faults.append(
                f'{origin}: lacks "filename", "sentences" with "raw", or a "split" of '
                f"{', '.join(KARPATHY_SPLITS)}"
            )
            continue
        if image in splits:
            faults.append(f"{origin}: {image} is in the split {splits[image]!r} already")
        splits.setdefault(image, split)
        texts |= {(image, number): caption for number, caption in enumerate(captions)}
    return splits, texts


def _read_speakers(path: Path, faults: list[str]) -> dict[str, str]:
    """Return the speaker of each wav; faulty lines are added to `faults`."""
    speakers = {wav: (line, rest) for wav, (line, rest) in keyed_lines(path, faults).items() if rest}
    faults += [
        f"{path}:{line}: expected a wav and its speaker, found {f'{wav} {rest}'!r}"
        for wav, (line, rest) in speakers.items()
        if len(rest.split()) > 1
    ]
    return {wav: speaker for wav, (_, speaker) in speakers.items()}


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("FILE:LINE", text) of each line that is not blank."""
    return ((f"{path}:{number}", line) for number, line in numbered_lines(path))
