"""The format of corpora on disk, captions as stored, and captions as listed by a source.

    corpus.json      format, name, version, sample_rate (16000), counts {split: {captions, images, seconds}},
                     audio_root and image_root (absolute, or relative to the corpus folder; image_root is
                     null if there are only region features), regions {count, dim} or null, provenance,
                     licence, skipped {reason: number of captions}, changed {kind: number of sounds whose
                     level was changed}; further keys depend on the source
    captions.jsonl   one spoken caption per line: the fields of `Caption`
    regions.h5       image_ids (n,) utf-8, features (n, R, F) float16/32, boxes (n, R, 4) in [0, 1] as
                     (x1, y1, x2, y2) over (width, height); absent in a speech-only corpus
    images/          images; an image id is a path relative to image_root
    audio/           sounds that were converted, as 16 kHz mono WAV PCM16
    *.item           ABX items: "#file onset offset #phone prev-phone next-phone speaker"; #file: a caption id
    *.ctm            times of the words of a split, of the toy corpus: "caption-id 1 start duration word"
    *.boxes          where the objects are that words name, of the toy corpus: "#file onset offset word x1 y1
                     x2 y2"; #file: a caption id, the box as in regions.h5
    skipped.jsonl    {reason, what} of each skipped caption; absent if there are none

No image is in two splits, except for pairs of splits listed in corpus.json as "shared_images":
[["train", "test_x"], ...].
"""

from dataclasses import dataclass

FORMAT = 1
INFO_FILE, CAPTIONS_FILE, SKIPPED_FILE = "corpus.json", "captions.jsonl", "skipped.jsonl"
ITEM_COLUMNS = ("#file", "onset", "offset", "#phone", "prev-phone", "next-phone", "speaker")
BOX_COLUMNS = ("#file", "onset", "offset", "word", "x1", "y1", "x2", "y2")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caption:
    """A spoken caption as stored; `num_samples` at 16 kHz, `audio` relative to audio_root or absolute."""

    id: str
    split: str
    audio: str
    num_samples: int
    speaker: str
    language: str
    image: str | None
    text: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CaptionEntry:
    """A caption as a source lists it.

    Attributes:
        origin: its place in the list, such as "FILE:LINE", for messages.
        audio: path of the sound or part of a file (see `vgsplus.audio_files`), relative to audio_root or
            absolute.
        start: start of the caption in the sound in seconds, None for the start of the sound. Not supported
            with sounds in place.
        end: end of the caption in the sound, likewise.
        num_samples: length at 16 kHz as stated by the list, or None.
        image: image id, or None.
        problem: the reason for which the caption cannot be used, a phrase to count captions by, or None.
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
        """LINE in `origin`."""
        return int(self.origin.rpartition(":")[2])
