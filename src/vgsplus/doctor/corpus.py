"""What a prepared corpus holds, what is wrong with it, and what to expect of it in training."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from rich.filesize import decimal

from vgsplus.audio import SAMPLE_RATE
from vgsplus.config import load_config, presets
from vgsplus.corpora import Caption, Corpus, validate
from vgsplus.corpora.reader import open_regions
from vgsplus.corpora.validation import caption_faults
from vgsplus.doctor.findings import Diagnosis, Finding, count
from vgsplus.doctor.leftovers import leftover_findings, leftovers
from vgsplus.errors import SHOWN_FAULTS, CorpusError
from vgsplus.evaluation.abx_items import read_items
from vgsplus.models.speech_encoder import LENGTH_MULTIPLE, SpeechEncoder, bucket_by_length
from vgsplus.training.batches import TRAIN, VALIDATION, epoch_order

BATCH = 64
"""Captions in the batches for which padding is told: those of the paper."""
PREPARE_AGAIN = "Mend or leave out what it was made from, and prepare it again: vgsplus data …"


def examine_corpus(root: Path) -> Diagnosis:
    """Look for every fault of the corpus at `root`, and tell what it holds; decodes all sound."""
    faults = validate(root)
    findings = [
        *(Finding("fault", "contents", fault) for fault in faults[: SHOWN_FAULTS - 1]),
        *_last_faults(faults[SHOWN_FAULTS - 1 :]),
    ]
    corpus, captions = _open(root)
    if corpus is not None:
        if not faults:
            findings.append(Finding("ok", "contents", f"{corpus.name} {corpus.info['version']}: no faults"))
        splits: dict[str, list[Caption]] = {split: [] for split in corpus.splits}
        for caption in captions:
            splits[caption.split].append(caption)
        findings += [_split(split, held) for split, held in splits.items() if held]
        findings += _regions(corpus)
        findings += _items(corpus)
        findings += _speakers(captions)
        findings += _pictures(captions)
        findings += _cropping(splits)
        findings += _missing_splits(splits)
    return Diagnosis(f"corpus {root}", (*findings, *_leftovers(root)))


def _open(root: Path) -> tuple[Corpus | None, list[Caption]]:
    """The corpus and its captions; None and no captions where faults leave nothing to count."""
    try:
        corpus = Corpus.open(root)
    except CorpusError:
        return None, []
    captions = list(chain.from_iterable(_captions(corpus, split) for split in corpus.splits))
    return (None, []) if any(map(caption_faults, captions)) else (corpus, captions)


def _last_faults(faults: Sequence[str]) -> Iterator[Finding]:
    """The last fault that is shown, with how many are not, and the remedy of all."""
    if faults:
        more = len(faults) - 1
        rest = f"\n… and {count(more, 'more fault')}" if more else ""
        yield Finding("fault", "contents", f"{faults[0]}{rest}", PREPARE_AGAIN)


def _captions(corpus: Corpus, split: str) -> Sequence[Caption]:
    try:
        return corpus.captions(split)
    except CorpusError:  # an empty split, which is among the faults
        return ()


def _leftovers(root: Path) -> Iterator[Finding]:
    root = root.absolute()
    yield from leftover_findings(chain(leftovers(root), leftovers(root.parent, of=f"{root.name}.")))


# ---- what it holds ----------------------------------------------------------------------------------------


def _split(split: str, captions: Sequence[Caption]) -> Finding:
    seconds = np.array([caption.num_samples for caption in captions]) / SAMPLE_RATE
    images = {caption.image for caption in captions if caption.image is not None}
    speakers, languages = {c.speaker for c in captions}, {c.language for c in captions}
    return Finding(
        "ok",
        split,
        f"{count(len(captions), 'caption')} of {count(len(images), 'picture')}, "
        f"{count(len(speakers), 'speaker')}, {count(len(languages), 'language')}\n"
        f"{seconds.sum() / 3600:.2f} hours: {seconds.mean():.2f} s a caption, {seconds.min():.2f} to "
        f"{seconds.max():.2f}; padding adds {100 * padding_share(captions):.0f} % in batches of {BATCH}",
    )


def padding_share(captions: Sequence[Caption], batch_size: int = BATCH, seed: int = 0) -> float:
    """How much more than the speech the encoder computes of random batches, as a share of the speech.

    As in training, a batch runs in chunks of like length, each padded to its longest caption, rounded up to
    `LENGTH_MULTIPLE`; nothing is cropped, and the last batch may be smaller.
    """
    lengths = np.array([caption.num_samples for caption in captions])
    mixed = torch.from_numpy(lengths[epoch_order(len(lengths), seed, 0)])
    batches = [mixed[start : start + batch_size] for start in range(0, len(mixed), batch_size)]
    chunks = [
        batch[rows] for batch in batches for rows in bucket_by_length(batch, SpeechEncoder.chunk_samples)
    ]
    padded = sum(len(chunk) * -(-int(chunk[0]) // LENGTH_MULTIPLE) * LENGTH_MULTIPLE for chunk in chunks)
    return padded / float(lengths.sum()) - 1


def _regions(corpus: Corpus) -> Iterator[Finding]:
    if corpus.info["regions"] is None:
        yield Finding("ok", "regions", "none: a corpus of speech alone, for α = 0")
        return
    with open_regions(corpus.root) as store:
        kind, size = store.dtype, decimal(store.path.stat().st_size)
    yield Finding(
        "ok",
        "regions",
        f"{count(len(corpus.image_ids), 'picture')} of {count(corpus.num_regions, 'region')} with "
        f"{count(corpus.feature_dim, 'feature')}, {kind}, {size}",
    )


def _items(corpus: Corpus) -> Iterator[Finding]:
    files = sorted(corpus.root.glob("*.item"))
    if not files:
        remedy = "vgsplus reproduce --item FILE --audio FOLDER measures it on other sounds."
        yield Finding("hint", "ABX items", "none, so that ABX is not measured on this corpus", remedy)
    for path in files:
        try:
            # Whether there is more than one speaker, as "across" needs, is a hint of its own.
            items = read_items(path, conditions=("within",), audio_root=corpus.audio_root)
        except CorpusError as error:
            more = f"; {count(len(error.faults) - 1, 'more fault')}" if len(error.faults) > 1 else ""
            yield Finding("fault", "ABX items", f"{error.faults[0]}{more}", PREPARE_AGAIN)
        else:
            phones = {token.phone for token in items.tokens}
            yield Finding(
                "ok",
                "ABX items",
                f"{path.name}: {count(len(items.tokens), 'token')} of {count(len(phones), 'phone')} in "
                f"{count(len(items.audio), 'sound')}, all of them there",
            )


# ---- hints ------------------------------------------------------------------------------------------------


def _cropping(splits: dict[str, list[Caption]]) -> Iterator[Finding]:
    """Whether presets hear only the start of captions that are trained on."""
    captions = splits.get(TRAIN, [])
    cropped = []
    for preset in presets():
        seconds = load_config(preset).max_seconds
        longer = sum(caption.num_samples > round(seconds * SAMPLE_RATE) for caption in captions)
        if longer:
            cropped.append(f"{preset} {longer:,} after {seconds:g} s")
    if cropped:
        yield Finding(
            "hint",
            "cropping",
            f"of {count(len(captions), 'caption')} to train on, presets crop: {'; '.join(cropped)}",
            "--set max_seconds=… changes how much of a caption training hears.",
        )


def _speakers(captions: Sequence[Caption]) -> Iterator[Finding]:
    if len({caption.speaker for caption in captions}) == 1:
        yield Finding(
            "hint",
            "speakers",
            f"one only, {captions[0].speaker}: nothing can be told across speakers",
            "Give a speaker to each recording, if several spoke.",
        )


def _pictures(captions: Sequence[Caption]) -> Iterator[Finding]:
    told = Counter(caption.image for caption in captions if caption.image is not None)
    once = sum(number == 1 for number in told.values())
    if once:
        yield Finding(
            "hint",
            "pictures",
            f"{once:,} of {count(len(told), 'picture')} have one caption only: a model may learn "
            "its voice or its recording in place of what is said",
            "More captions of a picture, by other speakers, help.",
        )


def _missing_splits(splits: dict[str, list[Caption]]) -> Iterator[Finding]:
    if not splits.get(TRAIN):
        remedy = f"To train on it, prepare it with captions in a split {TRAIN}."
        yield Finding("hint", "splits", f"there is no split {TRAIN}", remedy)
    if not splits.get(VALIDATION):
        remedy = "Train with --set validate_every=null, or hold some captions out."
        yield Finding("hint", "splits", f"there is no split {VALIDATION}", remedy)
    tests = [held for split, held in splits.items() if split.startswith("test") and held]
    if not any(all(caption.image is not None for caption in held) for held in tests):
        yield Finding(
            "hint",
            "splits",
            "there is no test split with pictures: retrieval cannot be scored, and reproduce refuses it",
            "Hold captions out in a split whose name starts with test.",
        )
