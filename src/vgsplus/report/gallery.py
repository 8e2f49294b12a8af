"""The gallery: test captions with their sounds and the images that they retrieved, embedded in the page.

Shades over the images show where a model finds what is said, in the complete caption or at a moment of it.
"""

import base64
import io
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from itertools import chain, zip_longest
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from PIL import Image, ImageOps
from scipy.ndimage import gaussian_filter
from torch import Tensor

from vgsplus import audio
from vgsplus.corpora import Corpus
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.pointing.evaluate import check_model
from vgsplus.evaluation.pointing.localise import (
    STEP,
    corpus_picture,
    heat_map,
    region_shares,
    window_shares,
    window_times,
)
from vgsplus.evaluation.retrieval import RetrievalResult
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.progress import SILENT, Progress
from vgsplus.report.results import GalleryItem, Results

UNREADABLE = (OSError, StopIteration, VgsplusError)  # Pillow's errors are OSErrors

type Load = Callable[[str], VGSPlus]
"""Loads the model of a variant by its key, on the device where it is to run."""

CARDS = 12
PICTURES = 5
THUMBNAIL = 256  # pixels of the longer side
SECONDS = 10
BUDGET = 5_000_000  # characters of embedded media on a page
MOMENTS = 25
"""Moments of a caption of which heat maps are shown."""
HEAT_SIDE = 32
"""Pixels of a side of a heat map, which is stretched over its picture."""
SMOOTHING = 2.0
"""Standard deviation in pixels of the filter that hides the edges of regions."""


class Picture(NamedTuple):
    """A picture of a card.

    Attributes:
        name: its id in the corpus.
        uri: data URI, or None.
        size: its width and height in percent of the larger.
        shades: data URI of its heat maps (see the function `shades`), or None.
    """

    name: str
    uri: str | None = None
    size: tuple[float, float] = (100, 100)
    shades: str | None = None


class Card(NamedTuple):
    """An item of the gallery with its media.

    Attributes:
        item: the item, as saved in the results.
        variant: name of the variant that retrieved the images.
        sound: data URI of the caption, or None.
        pictures: the retrieved images, best first; then the caption's own, if it was not retrieved.
        step: seconds from one moment to the next; None without heat maps.
        moments: of the caption that have a heat map.
    """

    item: GalleryItem
    variant: str
    sound: str | None
    pictures: tuple[Picture, ...]
    step: float | None = None
    moments: int = 0


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


def cards(
    results: Results, corpus: Corpus | None, load: Load | None = None, progress: Progress = SILENT
) -> list[Card]:
    """Return up to `CARDS` cards, equally many of each test set and variant.

    Without `corpus` they have no media, and without `load` no heat maps. The progress receives the stage
    "heat maps".
    """
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
        shown = list(dict.fromkeys([*item.retrieved[:PICTURES], item.image]))
        pictures = tuple(media.picture(image) for image in shown)
        found.append(Card(item, names.get(item.variant, item.variant), sound, pictures))
    if corpus is None or load is None:
        return found
    load = cache(load)
    # After all sounds and pictures, which come first where there is not room for all.
    lit = []
    for card in found:
        lit.append(_with_heat(card, corpus, load, media))
        progress.update("heat maps", len(lit), len(found))
    return lit


def shades(boxes: Tensor, whole: Tensor, moments: Tensor) -> bytes:
    """Return smooth heat maps as a PNG: a column of squares, opaque where no region has a positive score.

    As the mask of a colour it hides the cold parts of a picture. The first map is that of the complete sound,
    the others are those of its moments, which have one scale: a moment is cold at which nothing is named.

    Args:
        boxes: (R, 4) the regions as (x1, y1, x2, y2) in [0, 1].
        whole: (R,) their scores with the complete sound.
        moments: (T, R) their scores with each moment.
    """
    maps = [
        heat_map(boxes.numpy(), scores, HEAT_SIDE, HEAT_SIDE, highest=1)
        for scores in torch.vstack([whole, moments]).numpy()
    ]
    heat = gaussian_filter(maps, (0, SMOOTHING, SMOOTHING), mode="nearest")
    heat[0] /= max(heat[0].max(), 1e-12)
    heat[1:] /= max(heat[1:].max(), 1e-12)
    alpha = (255 * (1 - heat)).round().astype(np.uint8).reshape(-1, HEAT_SIDE)
    image = Image.new("LA", alpha.shape[::-1])
    image.putalpha(Image.fromarray(alpha))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _with_heat(card: Card, corpus: Corpus, load: Load, media: "_Media") -> Card:
    """Add to the pictures of a card heat maps of the complete caption and of its moments."""
    if not any(picture.uri for picture in card.pictures):
        return card
    pictures = []
    try:
        model = load(card.item.variant)
        check_model(model, corpus)
        signal = audio.normalise(_samples(corpus, card.item.test_set, card.item.caption))
        step = max(STEP, len(signal) / audio.SAMPLE_RATE / MOMENTS)
        speech, windows = window_shares(model, signal, window_times(len(signal), step))
        for picture in card.pictures:
            uri = None
            if picture.uri:
                _, regions, boxes = region_shares(model, corpus_picture(model, corpus, picture.name))
                uri = media.uri("image/png", shades(boxes, regions @ speech, windows @ regions.T))
            pictures.append(picture._replace(shades=uri))
    except UNREADABLE:
        return card
    return card._replace(pictures=tuple(pictures), step=step, moments=len(windows))


class _Media:
    """Create data URIs of images and sounds, up to `BUDGET` characters in total.

    Files that cannot be read are skipped: a report after days of training must not fail because of them.
    """

    def __init__(self, corpus: Corpus | None) -> None:
        self._corpus = corpus
        self._left = BUDGET

    def picture(self, image: str) -> Picture:
        if self._corpus is None:
            return Picture(image)
        try:
            content, (width, height) = _thumbnail(self._corpus, image)
        except UNREADABLE:
            return Picture(image)
        larger = max(width, height)
        size = 100 * width / larger, 100 * height / larger
        return Picture(image, self.uri("image/jpeg", content), size)

    def sound(self, test_set: str, caption: str) -> str | None:
        if self._corpus is None:
            return None
        try:
            return self.uri("audio/flac", _flac(_samples(self._corpus, test_set, caption)))
        except UNREADABLE:
            return None

    def uri(self, kind: str, content: bytes) -> str | None:
        uri = f"data:{kind};base64,{base64.b64encode(content).decode()}"
        if len(uri) > self._left:
            return None
        self._left -= len(uri)
        return uri


def _thumbnail(corpus: Corpus, image: str) -> tuple[bytes, tuple[int, int]]:
    """Return a JPEG and its width and height."""
    buffer = io.BytesIO()
    with Image.open(corpus.image_path(image)) as picture:
        upright = ImageOps.exif_transpose(picture).convert("RGBA")
    upright.thumbnail((THUMBNAIL, THUMBNAIL))
    background = Image.new("RGB", upright.size, "white")
    background.paste(upright, mask=upright)
    background.save(buffer, "JPEG", quality=84)
    return buffer.getvalue(), background.size


def _samples(corpus: Corpus, test_set: str, name: str) -> audio.Signal:
    caption = next(caption for caption in corpus.captions(test_set) if caption.id == name)
    return audio.read(corpus.audio_path(caption), SECONDS * audio.SAMPLE_RATE)


def _flac(samples: audio.Signal) -> bytes:
    # Floating-point files may exceed full scale, which 16 bits would clip.
    samples = samples / max(1.0, float(np.abs(samples).max()))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, audio.SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
