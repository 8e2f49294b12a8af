"""The on-disk format of every corpus, and its captions as stored and as listed.

    corpus.json      format, name, version, sample_rate (16000), counts {split: {captions, images, seconds}},
                     audio_root and image_root (relative to the corpus folder, or absolute; image_root null
                     where only the images' regions are available), regions {count, dim} or null, provenance,
                     licence, skipped {reason: count}, changed {kind: count} of sounds whose level was
                     changed; further keys depend on the source
    captions.jsonl   one spoken caption per line, the fields of `Caption`
    regions.h5       image_ids (n,) utf-8, features (n, R, F) float16/32, boxes (n, R, 4) in [0, 1] as
                     (x1, y1, x2, y2) over (width, height); absent in a speech-only corpus
    images/          an image id is a path relative to image_root
    audio/           16 kHz mono WAV PCM16 or FLAC
    *.item           ABX: "#file onset offset #phone prev-phone next-phone speaker"; a #file is a caption id
    skipped.jsonl    what was skipped and why; absent if nothing was

Splits share no image, except for those listed in corpus.json: "shared_images": [["train", "test_x"], ...].
"""

from dataclasses import dataclass, fields

FORMAT = 1
INFO_FILE, CAPTIONS_FILE, SKIPPED_FILE = "corpus.json", "captions.jsonl", "skipped.jsonl"
ITEM_COLUMNS = ("#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A spoken caption as stored: `num_samples` at 16 kHz; `audio` relative to audio_root, or absolute."""

    id: str
    split: str
    audio: str
    num_samples: int
    speaker: str
    language: str
    image: str | None
    text: str | None


CAPTION_FIELDS = tuple(field.name for field in fields(Caption))


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionEntry:
    """A caption as a source lists it.

    Attributes:
        origin: where it is listed, as "FILE:LINE", for faults.
        audio: sound, or part of a file (see `vgsplus.audio`), relative to audio_root or absolute.
        start: seconds at which it starts in the sound, None for its start; only where sounds are converted.
        end: likewise, at which it ends.
        num_samples: length at 16 kHz that the list states, or None.
        image: image id, or None.
        problem: why the caption cannot be used, a short phrase that repeats, or None.
    """

    origin: str
    audio: str
    id: str
    split: str | None = None
    start: float | None = None
    end: float | None = None
    num_samples: int | None = None
    speaker: str = "unknown"
    language: str = "und"
    image: str | None = None
    text: str | None = None
    problem: str | None = None

    @property
    def line(self) -> int:
        """LINE of the origin."""
        return int(self.origin.rpartition(":")[2])
