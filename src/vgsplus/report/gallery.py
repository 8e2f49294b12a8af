"""Some test captions to listen to, and the pictures they retrieved, carried inside the page."""

from __future__ import annotations

import base64
import io
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import TYPE_CHECKING

import numpy as np
import soundfile
from PIL import Image, ImageOps

from vgsplus import audio
from vgsplus.errors import VgsplusError
from vgsplus.report.results import GalleryItem
from vgsplus.report.tables import label

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vgsplus.corpora import Caption, Corpus
    from vgsplus.evaluation.retrieval import RetrievalResult
    from vgsplus.report.results import Results

CARDS = 12
PICTURES = 5
THUMBNAIL = 256  # pixels of the longer side
SECONDS = 10
BUDGET = 5_000_000  # characters of embedded media on a page


@dataclass(frozen=True, slots=True)
class Picture:
    """A retrieved picture; `uri` is None where it could not be read."""

    uri: str | None
    image: str
    right: bool


@dataclass(frozen=True, slots=True)
class Card:
    """A caption with its sound, the pictures retrieved, and the right one if it is not among them."""

    test_set: str
    variant: str
    caption: str
    text: str | None
    speaker: str
    sound: str | None
    pictures: tuple[Picture, ...]
    missed: Picture | None


def gallery_items(
    result: RetrievalResult, corpus: Corpus, variant: str, count: int = CARDS
) -> tuple[GalleryItem, ...]:
    """At most `count` of the captions that `evaluate` drew, at most one a picture, for `variant` (its key).

    They are taken whether retrieval went well or not.
    """
    drawn = [caption for caption in corpus.captions(result.split) if caption.id in result.retrieved]
    one_a_picture = list({caption.image: caption for caption in drawn}.values())
    return tuple(
        GalleryItem(
            test_set=result.split,
            variant=variant,
            caption=caption.id,
            image=caption.image,
            retrieved=result.retrieved[caption.id],
            text=caption.text,
            speaker=caption.speaker,
        )
        for caption in _evenly(one_a_picture, count)
        if caption.image is not None
    )


def cards(results: Results, corpus: Corpus | None) -> tuple[Card, ...]:
    """At most `CARDS` cards, test sets and variants taking turns; without a corpus they carry no media."""
    media = _Media(corpus)
    names = {variant.key: variant.name for variant in results.variants}
    groups: dict[tuple[str, str], list[GalleryItem]] = defaultdict(list)
    for item in results.gallery:
        groups[item.test_set, item.variant].append(item)
    turns: Iterable[GalleryItem | None] = chain.from_iterable(zip_longest(*groups.values()))
    chosen = [item for item in turns if item is not None][:CARDS]
    chosen.sort(key=lambda item: list(groups).index((item.test_set, item.variant)))
    return tuple(_card(item, names.get(item.variant, item.variant), media) for item in chosen)


def _card(item: GalleryItem, variant: str, media: _Media) -> Card:
    shown = item.retrieved[:PICTURES]
    return Card(
        test_set=label(item.test_set),
        variant=variant,
        caption=item.caption,
        text=item.text,
        speaker=item.speaker,
        sound=media.sound(item.test_set, item.caption),
        pictures=tuple(Picture(media.picture(image), image, image == item.image) for image in shown),
        missed=None if item.image in shown else Picture(media.picture(item.image), item.image, right=True),
    )


def _evenly[T](items: Sequence[T], count: int) -> list[T]:
    """At most `count` items at even distances: neighbours in a corpus are alike."""
    if len(items) <= count:
        return list(items)
    return [items[index * len(items) // count] for index in range(count)]


class _Media:
    """Data URIs of pictures and sounds until the budget is spent.

    A file that cannot be read is left out: a report at the end of days of training must not fail over it.
    """

    def __init__(self, corpus: Corpus | None) -> None:
        self._corpus = corpus
        self._left = BUDGET
        self._captions: dict[str, dict[str, Caption]] = {}

    def picture(self, image: str) -> str | None:
        if self._corpus is None:
            return None
        try:
            return self._fit("image/jpeg", _thumbnail(self._corpus, image))
        except (OSError, VgsplusError):  # Pillow's errors are OSErrors
            return None

    def sound(self, test_set: str, caption: str) -> str | None:
        if self._corpus is None:
            return None
        try:
            if test_set not in self._captions:
                self._captions[test_set] = {c.id: c for c in self._corpus.captions(test_set)}
            found = self._captions[test_set].get(caption)
            return None if found is None else self._fit("audio/flac", _flac(self._corpus, found))
        except (OSError, VgsplusError):
            return None

    def _fit(self, kind: str, content: bytes) -> str | None:
        uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        if len(uri) > self._left:
            return None
        self._left -= len(uri)
        return uri


def _thumbnail(corpus: Corpus, image: str) -> bytes:
    buffer = io.BytesIO()
    with Image.open(corpus.image_path(image)) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGBA")
    upright.thumbnail((THUMBNAIL, THUMBNAIL))
    ground = Image.new("RGB", upright.size, "white")
    ground.paste(upright, mask=upright)
    ground.save(buffer, "JPEG", quality=84)
    return buffer.getvalue()


def _flac(corpus: Corpus, caption: Caption) -> bytes:
    samples = audio.read(corpus.audio_path(caption), SECONDS * audio.SAMPLE_RATE)
    # Floating-point files may go beyond full scale, which 16 bits would clip.
    samples = samples / max(1.0, float(np.abs(samples).max()))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, audio.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
