"""Packing a corpus for cluster file systems and object stores: its sounds in few large tar files.

    corpus.json, captions.jsonl, regions.h5    a corpus as any other, whose captions' `audio` is
                                               "SPLIT-000000.tar:START:SIZE" (see `vgsplus.audio`)
    shards/SPLIT-000000.tar                    for each caption KEY.wav or KEY.flac, the file as it was or
                                               decoded, and KEY.json, its fields: a webdataset sample

Where a sound lies is known, so that packed captions are read in any order, and order and resumption are those
of every corpus. Shards are plain tar files (ustar), byte for byte the same for the same corpus.
"""

import io
import json
import re
import shutil
import tarfile
from dataclasses import asdict, replace
from pathlib import Path
from types import TracebackType
from typing import Self

from vgsplus import audio
from vgsplus.audio import num_samples
from vgsplus.corpora.format import Caption
from vgsplus.corpora.reader import Corpus
from vgsplus.corpora.writer import OWN_KEYS, CorpusWriter, Summary
from vgsplus.errors import AudioError, CorpusError
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.store import REGIONS_FILE

SHARDS_FOLDER = "shards"
SHARD_BYTES = 1 << 30
PACKED = re.compile(r".+\.tar:\d+:\d+", re.DOTALL)


def pack(
    source: str | Path,
    root: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    decode: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Summary:
    """Pack the corpus at `source` as one at `root`, whose sounds lie in shards of about `shard_bytes`.

    Pictures stay where they are. ABX items are left out: ABX reads the sounds as files.

    Args:
        source: A prepared corpus.
        root: The corpus folder to make.
        shard_bytes: A shard ends with the sound that reaches this size.
        decode: Store FLAC as WAV, the same samples in up to twice the bytes, which are read 2.5 to 3 times as
            fast. FLAC of more than 16 bits stays as it is.
        overwrite: Replace a corpus that is there.
        progress: stages "packing", of captions, and "checking", of sounds.

    Raises:
        CorpusError: `source` is no corpus, is packed already or is faulty, or `root` is taken.
        AudioError: a sound is absent, broken or not 16 kHz mono.
    """
    corpus = Corpus.open(source)
    splits = [split for split in corpus.splits if corpus.info["counts"].get(split, {}).get("captions")]
    total = sum(len(corpus.captions(split)) for split in splits)
    image_root = corpus.info["image_root"]
    with CorpusWriter(
        root,
        name=corpus.name,
        version=corpus.info["version"],
        provenance=corpus.info["provenance"],
        licence=corpus.info.get("licence", "unknown"),
        image_root=None if image_root is None else (corpus.root / image_root).absolute(),
        audio_root=SHARDS_FOLDER,
        overwrite=overwrite,
        progress=progress,
    ) as writer:
        for key in corpus.info.keys() - OWN_KEYS:
            writer.note(key, corpus.info[key])
        if corpus.info["regions"] is not None:
            copied = Path(shutil.copyfile(corpus.root / REGIONS_FILE, writer.folder / f"{REGIONS_FILE}.copy"))
            writer.adopt_regions(copied)
        (writer.folder / SHARDS_FOLDER).mkdir()
        done = 0
        for split in splits:
            with _Shards(writer.folder / SHARDS_FOLDER, split, shard_bytes, decode=decode) as shards:
                for caption in corpus.captions(split):
                    writer.add_caption(shards.add(caption, corpus.audio_path(caption)))
                    done += 1
                    progress.update("packing", done, total)
        return writer.finish()


class _Shards:
    """The shards of a split, written one after the other."""

    def __init__(self, folder: Path, split: str, shard_bytes: int, *, decode: bool) -> None:
        self._folder = folder
        self._split = split
        self._shard_bytes = shard_bytes
        self._decode = decode
        self._shard: tarfile.TarFile | None = None
        self._shards = self._samples = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def add(self, caption: Caption, path: Path) -> Caption:
        """Append a caption; returns it as the packed corpus names it."""
        if PACKED.fullmatch(str(path)):
            raise CorpusError(f"{path}: the corpus is packed already. Pack the one that it was made from.")
        if num_samples(path) != caption.num_samples:
            raise AudioError(
                f"{path}: is not of {caption.num_samples} samples as caption {caption.id} states."
            )
        if self._shard is not None and self._shard.offset >= self._shard_bytes:
            self._close()
        if self._shard is None:
            name = f"{self._split}-{self._shards:06d}.tar"
            # It stays open from caption to caption.
            self._shard = tarfile.open(self._folder / name, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
            self._shards += 1
        suffix, sound = audio.contents(path, decode=self._decode)
        key = f"{self._samples:09d}"
        self._samples += 1
        start = _append(self._shard, f"{key}{suffix}", sound)
        _append(self._shard, f"{key}.json", json.dumps(asdict(caption), ensure_ascii=False).encode())
        return replace(caption, audio=f"{Path(str(self._shard.name)).name}:{start}:{len(sound)}")

    def _close(self) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shard = None


def _append(shard: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a file of no owner and no time; returns where its content starts."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    start = shard.offset + tarfile.BLOCKSIZE
    shard.addfile(member, io.BytesIO(content))
    return start
