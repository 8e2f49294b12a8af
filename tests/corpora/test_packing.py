import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter

import numpy as np
import pytest
import soundfile
import torch

from vgsplus import audio
from vgsplus.corpora import Corpus, validate
from vgsplus.corpora.packing import pack
from vgsplus.errors import AudioError, CorpusError, VgsplusError
from vgsplus.training.data import SpeechImageDataset, load_batches
from vgsplus.training.sampler import BatchIndices

SMALL = 60_000
"""Bytes: about three sounds of the tiny corpus."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory, tiny_corpus):
    root = tmp_path_factory.mktemp("packed") / "c"
    pack(tiny_corpus, root, shard_bytes=SMALL)
    return root


def shards_of(root, split="*"):
    return sorted((root / "shards").glob(f"{split}-*.tar"))


def dataset(root, split="train"):
    corpus = Corpus.open(root)
    return SpeechImageDataset(corpus=corpus, captions=corpus.captions(split), max_samples=9000)


def test_a_packed_corpus_gives_the_same_batches_bit_for_bit(tiny_corpus, packed):
    assert len(shards_of(packed, "train")) > 2
    requests = [BatchIndices(rows, with_images=True) for rows in ((3, 14, 1, 5), (9, 2, 6, 15), (0, 0, 1, 7))]
    plain = [dataset(tiny_corpus)[request] for request in requests]
    for one, (other,) in zip(plain, load_batches((dataset(packed), requests)), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_it_is_a_corpus_without_faults_and_the_same_but_for_where_sounds_are(tiny_corpus, packed):
    assert validate(packed) == []
    one, other = Corpus.open(tiny_corpus), Corpus.open(packed)
    assert (one.name, one.splits, one.image_ids) == (other.name, other.splits, other.image_ids)
    assert one.info["counts"] == other.info["counts"]
    for split in one.splits:
        for before, after in zip(one.captions(split), other.captions(split), strict=True):
            fields = set(type(before).__slots__) - {"audio"}
            assert all(getattr(before, name) == getattr(after, name) for name in fields)
    assert other.image_path(other.image_ids[0]).is_file()


def test_shards_are_plain_tar_files_of_the_sounds_as_they_were(tiny_corpus, packed):
    corpus = Corpus.open(tiny_corpus)
    captions = iter(corpus.captions("train"))
    for shard in shards_of(packed, "train"):
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
            for sound, fields in zip(members[::2], members[1::2], strict=True):
                caption = next(captions)
                assert tar.extractfile(sound).read() == corpus.audio_path(caption).read_bytes()
                assert json.load(tar.extractfile(fields))["id"] == caption.id
                assert sound.name.split(".") == [fields.name.removesuffix(".json"), "wav"]
    assert next(captions, None) is None


def test_webdataset_reads_the_same_samples(packed):
    webdataset = pytest.importorskip("webdataset")
    corpus = Corpus.open(packed)
    shards = [str(path) for path in shards_of(packed, "train")]
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    for caption, sample in zip(corpus.captions("train"), samples, strict=True):
        signal, rate = soundfile.read(io.BytesIO(sample["wav"]), dtype="float32")
        assert rate == audio.SAMPLE_RATE
        assert (signal == audio.read(corpus.audio_path(caption))).all()
        assert json.loads(sample["json"])["text"] == caption.text


def test_packing_again_gives_the_same_bytes(tiny_corpus, packed, tmp_path):
    pack(tiny_corpus, tmp_path / "c", shard_bytes=SMALL)
    for name in ("captions.jsonl", *(f"shards/{shard.name}" for shard in shards_of(packed))):
        assert (tmp_path / "c" / name).read_bytes() == (packed / name).read_bytes()


@pytest.fixture(scope="module")
def flac_corpus(tmp_path_factory, tiny_corpus):
    """The tiny corpus in FLAC of 16 bits, but for one sound in 24."""
    root = shutil.copytree(tiny_corpus, tmp_path_factory.mktemp("flac") / "c")
    for index, wav in enumerate(sorted((root / "audio").glob("*.wav"))):
        samples = soundfile.read(wav, dtype="int16")[0]
        flac = wav.with_suffix(".flac")
        if index:
            soundfile.write(flac, samples, audio.SAMPLE_RATE, subtype="PCM_16")
        else:
            soundfile.write(flac, (samples.astype(np.int32) << 16) + 256, audio.SAMPLE_RATE, subtype="PCM_24")
        wav.unlink()
    captions = root / "captions.jsonl"
    captions.write_text(captions.read_text().replace(".wav", ".flac"))
    return root


def test_flac_is_packed_as_it_is_or_decoded_to_the_same_samples(flac_corpus, tmp_path):
    flac = Corpus.open(flac_corpus)
    suffixes = {}
    for decode in (False, True):
        root = tmp_path / f"decode-{decode}"
        pack(flac_corpus, root, decode=decode)
        packed = Corpus.open(root)
        for split in flac.splits:
            for before, after in zip(flac.captions(split), packed.captions(split), strict=True):
                there = audio.read(flac.audio_path(before))
                assert (audio.read(packed.audio_path(after)) == there).all()
        suffixes[decode] = Counter()
        for shard in shards_of(root):
            with tarfile.open(shard) as tar:
                suffixes[decode].update(name.rpartition(".")[2] for name in tar.getnames())
    total = len(list((flac_corpus / "audio").iterdir()))
    assert suffixes == {
        False: {"flac": total, "json": total},
        True: {"wav": total - 1, "flac": 1, "json": total},
    }


def sound_of(root):
    corpus = Corpus.open(root)
    return corpus.audio_path(corpus.captions("train")[5])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: sound_of(root).unlink(), "no such sound file"),
        (lambda root: audio.write_wav(sound_of(root), audio.read(sound_of(root), 500)), "is not of"),
        (
            lambda root: audio.write_wav(sound_of(root), 0 * audio.read(sound_of(root))),
            "train-002-1: .*silent from start to end",
        ),
    ],
)
def test_a_faulty_sound_is_named_and_nothing_is_left(tiny_corpus, tmp_path, damage, message):
    root = shutil.copytree(tiny_corpus, tmp_path / "source")
    damage(root)
    with pytest.raises(VgsplusError, match=message):
        pack(root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_corpus_is_not_packed_over_itself(tiny_corpus, tmp_path):
    copy = shutil.copytree(tiny_corpus, tmp_path / "copy")
    (tmp_path / "link").symlink_to(copy)
    for path in (copy, tmp_path / "link"):
        with pytest.raises(CorpusError, match=r"is not overwritten, because the new corpus uses .*images"):
            pack(path, path, overwrite=True)
    assert validate(copy) == []


def test_a_packed_corpus_is_not_packed_again(packed, tmp_path):
    with pytest.raises(CorpusError, match="packed already"):
        pack(packed, tmp_path / "c")


def test_what_breaks_off_or_is_gone_is_named(packed, tmp_path):
    root = shutil.copytree(packed, tmp_path / "c")
    shard = shards_of(root, "test")[0]
    os.truncate(shard, 1000)
    assert any(f"{shard}:512:" in fault for fault in validate(root))
    shard.unlink()
    with pytest.raises(AudioError, match="no such sound file"):
        dataset(root, "test")[BatchIndices((0,))]


PACK_SLOWLY = """
import sys, time
from vgsplus.corpora.packing import pack
from vgsplus.progress import Progress
class Slow(Progress):
    def update(self, stage, done, total=None, detail=""):
        time.sleep(60 if stage == "packing" and done == 3 else 0)
pack(sys.argv[1], sys.argv[2], progress=Slow())
"""


def test_a_killed_packing_leaves_no_corpus_and_the_next_one_works(tiny_corpus, tmp_path):
    shards = tmp_path / ".c.writing" / "shards"
    with subprocess.Popen([sys.executable, "-c", PACK_SLOWLY, tiny_corpus, tmp_path / "c"]) as process:
        while process.poll() is None and not (shards.is_dir() and any(shards.iterdir())):
            time.sleep(0.02)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "c").exists()
    pack(tiny_corpus, tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
