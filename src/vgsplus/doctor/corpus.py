"""Examine a prepared corpus: its contents, its faults, and hints for training."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.filesize import decimal

from vgsplus.audio import SAMPLE_RATE
from vgsplus.config import load_config, presets
from vgsplus.corpora import Caption, Corpus, validate
from vgsplus.corpora.captions import read_captions
from vgsplus.corpora.format import CAPTIONS_FILE
from vgsplus.corpora.reader import open_regions
from vgsplus.corpora.validation import caption_faults
from vgsplus.doctor.findings import Diagnosis, Finding, count, leftovers
from vgsplus.errors import SHOWN_FAULTS, CorpusError
from vgsplus.evaluation.abx_items import read_items
from vgsplus.training.data import TRAIN, VALIDATION

PREPARE_AGAIN = "Fix or skip what it was made from, and prepare it again: vgsplus data …"


def examine_corpus(root: Path) -> Diagnosis:
    """Find every fault of the corpus at `root` and summarise it; decodes all sounds."""
    findings = [Finding("fault", "contents", fault) for fault in validate(root)]
    shown, more = findings[:SHOWN_FAULTS], len(findings) - SHOWN_FAULTS
    if shown:
        rest = f"\n… and {count(more, 'more fault')}" if more > 0 else ""
        shown[-1] = Finding("fault", "contents", f"{shown[-1].what}{rest}", PREPARE_AGAIN)
    corpus, captions = _open(root)
    if corpus is not None:
        if not shown:
            shown.append(Finding("ok", "contents", f"{corpus.name} {corpus.info['version']}: no faults"))
        splits: dict[str, list[Caption]] = {split: [] for split in corpus.splits}
        for caption in captions:
            splits[caption.split].append(caption)
        shown += [_split(split, members) for split, members in splits.items() if members]
        shown += [_regions(corpus), *_items(corpus), *_hints(captions), *_split_hints(splits)]
    folder = root.absolute()
    return Diagnosis(
        f"corpus {root}", (*shown, *leftovers(folder), *leftovers(folder.parent, name=f"{folder.name}."))
    )


def _open(root: Path) -> tuple[Corpus | None, list[Caption]]:
    """Return the corpus and its captions, or (None, []) if faults make it unreadable."""
    try:
        corpus = Corpus.open(root)
    except CorpusError:
        return None, []
    captions, _ = read_captions(root / CAPTIONS_FILE)
    return (None, []) if any(map(caption_faults, captions)) else (corpus, captions)


def _split(split: str, captions: Sequence[Caption]) -> Finding:
    seconds = np.array([caption.num_samples for caption in captions]) / SAMPLE_RATE
    images = {caption.image for caption in captions if caption.image is not None}
    speakers, languages = {c.speaker for c in captions}, {c.language for c in captions}
    return Finding(
        "ok",
        split,
        f"{count(len(captions), 'caption')} of {count(len(images), 'picture')}, "
        f"{count(len(speakers), 'speaker')}, {count(len(languages), 'language')}\n"
        f"{seconds.sum() / 3600:.2f} hours: {seconds.mean():.2f} s per caption, {seconds.min():.2f} to "
        f"{seconds.max():.2f}",
    )


def _regions(corpus: Corpus) -> Finding:
    if corpus.info["regions"] is None:
        return Finding("ok", "regions", "none: a corpus of speech alone, for α = 0")
    with open_regions(corpus.root) as store:
        dtype, (images, num, dim) = store.dtype, store.shape
    size = decimal(images * num * (dim * dtype.itemsize + 4 * 4))
    regions, features = count(corpus.num_regions, "region"), count(corpus.feature_dim, "feature")
    what = f"{count(len(corpus.image_ids), 'picture')} of {regions} with {features}, {dtype}, {size}"
    return Finding("ok", "regions", what)


def _items(corpus: Corpus) -> Iterator[Finding]:
    files = sorted(corpus.root.glob("*.item"))
    if not files:
        remedy = "vgsplus reproduce --item FILE --audio FOLDER measures it on other sounds."
        yield Finding("hint", "ABX items", "none, so that ABX is not measured on this corpus", remedy)
    for path in files:
        try:
            # "across" rejects a corpus of one speaker, which is reported as a hint.
            items = read_items(path, conditions=("within",), audio_root=corpus.audio_root)
        except CorpusError as error:
            more = f"; {count(len(error.faults) - 1, 'more fault')}" if len(error.faults) > 1 else ""
            yield Finding("fault", "ABX items", f"{error.faults[0]}{more}", PREPARE_AGAIN)
        else:
            tokens, sounds = count(len(items.tokens), "token"), count(len(items.audio), "sound")
            phones = count(len({token.phone for token in items.tokens}), "phone")
            yield Finding("ok", "ABX items", f"{path.name}: {tokens} of {phones} in {sounds}, none missing")


def _hints(captions: Sequence[Caption]) -> Iterator[Finding]:
    if len({caption.speaker for caption in captions}) == 1:
        what = f"one only, {captions[0].speaker}: nothing can be compared across speakers"
        yield Finding("hint", "speakers", what, "Name the speaker of each recording, if there are several.")
    images = Counter(caption.image for caption in captions if caption.image is not None)
    if once := sum(number == 1 for number in images.values()):
        what = (
            f"{once:,} of {count(len(images), 'picture')} have one caption only: a model may learn its voice "
            "or its recording instead of its words"
        )
        yield Finding("hint", "pictures", what, "Add captions of these pictures by other speakers.")


def _split_hints(splits: dict[str, list[Caption]]) -> Iterator[Finding]:
    train = splits.get(TRAIN, [])
    cropped = []
    for preset in presets():
        seconds = load_config(preset).max_seconds
        longer = sum(caption.num_samples > round(seconds * SAMPLE_RATE) for caption in train)
        if longer:
            cropped.append(f"{preset} {longer:,} after {seconds:g} s")
    if cropped:
        what = f"of {count(len(train), 'caption')} to train on, presets crop: {'; '.join(cropped)}"
        yield Finding("hint", "cropping", what, "--set max_seconds=… changes the length that is trained on.")
    if not train:
        remedy = f"To train on it, prepare it with captions in a split {TRAIN}."
        yield Finding("hint", "splits", f"there is no split {TRAIN}", remedy)
    if not splits.get(VALIDATION):
        remedy = "Train with --set validate_every=null, or hold some captions out."
        yield Finding("hint", "splits", f"there is no split {VALIDATION}", remedy)
    tests = [members for split, members in splits.items() if split.startswith("test") and members]
    if not any(all(caption.image is not None for caption in members) for members in tests):
        what = "there is no test split with pictures, which retrieval and `vgsplus reproduce` need"
        remedy = "Hold captions out in a split whose name starts with test."
        yield Finding("hint", "splits", what, remedy)
