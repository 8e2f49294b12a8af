"""The one on-disk format of every corpus; sources write it, training and evaluation read it.

    corpus.json      format, name, version, sample_rate (16000), counts {split: {captions, images, seconds}},
                     audio_root and image_root (relative to the corpus folder, or absolute; image_root null
                     where the pictures themselves are not at hand), regions {count, dim} or null, provenance,
                     licence, skipped {reason: count}, changed {kind: count}, sounds that are stored otherwise
                     than they were recorded; further keys as a source notes them
    captions.jsonl   a line a spoken caption, the fields of `Caption`
    regions.h5       image_ids (n,) utf-8, features (n, R, F) float16/32, boxes (n, R, 4) in [0, 1] as
                     (x1, y1, x2, y2) over (width, height); absent in a speech-only corpus
    images/          an image id is the picture's path relative to image_root
    audio/           16 kHz mono WAV PCM16 or FLAC
    *.item           ABX items: "#file onset offset #phone prev-phone next-phone speaker", file = caption id
    skipped.jsonl    what preparation left out and why, where it left anything out

No image is in two splits, except where corpus.json says so: "shared_images": [["train", "test_x"], ...].
"""

from vgsplus.corpora.captions import Caption
from vgsplus.corpora.reader import Corpus
from vgsplus.corpora.validation import validate
from vgsplus.corpora.writer import CorpusWriter, SplitCount, Summary
from vgsplus.errors import CorpusError

__all__ = ["Caption", "Corpus", "CorpusError", "CorpusWriter", "SplitCount", "Summary", "validate"]
