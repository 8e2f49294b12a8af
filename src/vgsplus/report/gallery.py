"""The gallery: test captions with their sounds and the images that they retrieved, embedded in the page."""

import base64
import io
from collections import defaultdict
from collections.abc import Callable
from itertools import chain, zip_longest
from typing import NamedTuple

import numpy as np
import soundfile
from PIL import Image, ImageOps

from vgsplus import audio
from vgsplus.corpora import Corpus
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.retrieval import RetrievalResult
from vgsplus.report.results import GalleryItem, Results

CARDS = 12
PICTURES = 5
THUMBNAIL = 256  # pixels of the longer side
SECONDS = 10
BUDGET = 5_000_000  # characters of embedded media on a page


class Card(NamedTuple):
    """An item of the gallery with its media.

    Attributes:
        item: the item, as saved in the results.
        variant: name of the variant that retrieved the images.
        sound: data URI of the caption, or None.
        images: (name, data URI or None) of the retrieved images, best first.
        missed: the same for the caption's own image if it was not retrieved, else None.
    """

    item: GalleryItem
    variant: str
    sound: str | None
    images: tuple[tuple[str, str | None], ...]
    missed: tuple[str, str | None] | None


def gallery_items(
    result: RetrievalResult, corpus: Corpus, variant: str, count: int = CARDS
) -> tuple[GalleryItem, ...]:
    """Return up to `count` of the captions that `evaluate` drew, one per image, for `variant` (its key).

    They are evenly spaced in the corpus, whether or not their images were retrieved.
    """
    drawn = [caption for caption in corpus.captions(result.split) if caption.id in result.retrieved]
    one_per_image = list({caption.image: caption for caption in drawn}.values())
    # Consecutive captions of a corpus are similar.
    total = len(one_per_image)
    spaced = (
        [one_per_image[index * total // count] for index in range(count)] if total > count else one_per_image
    )
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
        for caption in spaced
        if caption.image is not None
    )


def cards(results: Results, corpus: Corpus | None) -> list[Card]:
    """Return up to `CARDS` cards, equally many of each test set and variant; without media if no corpus."""
    media = _Media(corpus)
    names = {variant.key: variant.name for variant in results.variants}
    groups: dict[tuple[str, str], list[GalleryItem]] = defaultdict(list)
    for item in results.gallery:
        groups[item.test_set, item.variant].append(item)
    turns = chain.from_iterable(zip_longest(*groups.values()))
    chosen = [item for item in turns if item is not None][:CARDS]
    chosen.sort(key=lambda item: list(groups).index((item.test_set, item.variant)))
    found = []
    for item in chosen:
        sound = media.sound(item.test_set, item.caption)
        shown = item.retrieved[:PICTURES]
        images = tuple((image, media.picture(image)) for image in shown)
        missed = None if item.image in shown else (item.image, media.picture(item.image))
        found.append(Card(item, names.get(item.variant, item.variant), sound, images, missed))
    return found


class _Media:
    """Create data URIs of images and sounds, up to `BUDGET` characters in total.

    Files that cannot be read are skipped: a report after days of training must not fail because of them.
    """

    def __init__(self, corpus: Corpus | None) -> None:
        self._corpus = corpus
        self._left = BUDGET

    def picture(self, image: str) -> str | None:
        return self._uri("image/jpeg", _thumbnail, image)

    def sound(self, test_set: str, caption: str) -> str | None:
        return self._uri("audio/flac", _flac, test_set, caption)

    def _uri(self, kind: str, read: Callable[..., bytes], *names: str) -> str | None:
        if self._corpus is None:
            return None
        try:
            content = read(self._corpus, *names)
        except (OSError, StopIteration, VgsplusError):  # Pillow's errors are OSErrors
            return None
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
    background = Image.new("RGB", upright.size, "white")
    background.paste(upright, mask=upright)
    background.save(buffer, "JPEG", quality=84)
    return buffer.getvalue()


def _flac(corpus: Corpus, test_set: str, name: str) -> bytes:
    caption = next(caption for caption in corpus.captions(test_set) if caption.id == name)
    samples = audio.read(corpus.audio_path(caption), SECONDS * audio.SAMPLE_RATE)
    # Floating-point files may exceed full scale, which 16 bits would clip.
    samples = samples / max(1.0, float(np.abs(samples).max()))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, audio.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
