"""Pack the sounds of a corpus into few large tar files, for cluster file systems and object stores.

    corpus.json, captions.jsonl, regions.h5    as in any corpus; `audio` of a caption is
                                               "SPLIT-000000.tar:START:SIZE" (see `vgsplus.audio_files`)
    shards/SPLIT-000000.tar                    for each caption KEY.wav or KEY.flac, the original or decoded
                                               file, and KEY.json, its fields: a sample of webdataset

Captions are read by random access, so shuffling and resumption are the same as with any corpus. Shards are
plain tar files (ustar) and deterministic.
"""

import io
import json
import re
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

from vgsplus import audio
from vgsplus.corpora.format import Caption
from vgsplus.corpora.reader import Corpus
from vgsplus.corpora.writer import RESERVED_KEYS, CorpusWriter, Summary
from vgsplus.errors import AudioError, CorpusError
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.store import REGIONS_FILE
from vgsplus.remote import RemotePath

SHARDS_FOLDER = "shards"
SHARD_BYTES = 1 << 30
PACKED = re.compile(r".+\.tar:\d+:\d+", re.DOTALL)
PACKED_ALREADY = "the corpus is packed already. Pack the original corpus."


def pack(
    source: str | Path,
    root: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    decode: bool = False,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Summary:
    """Pack the corpus at `source` into a new corpus at `root`.

    Images are used in place. ABX items are not copied, because ABX requires sound files. Shards have
    `shard_bytes` bytes or more, except for the last one of a split. With `decode`, 16-bit FLAC is stored as
    WAV: up to twice the size, read 2.5 to 3 times as fast. Stages of `progress`: "packing" and "checking".

    Raises:
        CorpusError: `source` is not a corpus, is packed or faulty, or `root` exists.
        AudioError: a sound is missing, broken or not 16 kHz mono.
    """
    corpus = Corpus.open(source)
    if isinstance(corpus.root, RemotePath):
        raise CorpusError(f"{corpus.root}: {PACKED_ALREADY}")
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
        for key in sorted(corpus.info.keys() - RESERVED_KEYS):
            writer.set_info(key, corpus.info[key])
        if corpus.info["regions"] is not None:
            copied = Path(shutil.copyfile(corpus.root / REGIONS_FILE, writer.folder / f"{REGIONS_FILE}.copy"))
            writer.move_regions(copied)
        folder = writer.folder / SHARDS_FOLDER
        folder.mkdir()
        packed = (c for split in splits for c in _pack_split(corpus, split, folder, shard_bytes, decode))
        for done, caption in enumerate(packed, start=1):
            writer.add_caption(caption)
            progress.update("packing", done, total)
        return writer.finish()


def _pack_split(
    corpus: Corpus, split: str, folder: Path, shard_bytes: int, decode: bool
) -> Iterator[Caption]:
    """Write the shards of a split to `folder`; yield its captions with `audio` in the shards."""
    shards = 0
    shard: tarfile.TarFile | None = None
    with ExitStack() as opened:
        for index, caption in enumerate(corpus.captions(split)):
            path = corpus.audio_path(caption)
            if PACKED.fullmatch(str(path)):
                raise CorpusError(f"{path}: {PACKED_ALREADY}")
            if audio.num_samples(path) != caption.num_samples:
                raise AudioError(
                    f"{path}: is not of {caption.num_samples} samples as stated by caption {caption.id}."
                )
            if shard is None or shard.offset >= shard_bytes:
                opened.close()
                name = f"{split}-{shards:06d}.tar"
                shard = opened.enter_context(tarfile.open(folder / name, "w", format=tarfile.USTAR_FORMAT))
                shards += 1
            suffix, sound = audio.contents(path, decode=decode)
            start = _append(shard, f"{index:09d}{suffix}", sound)
            _append(shard, f"{index:09d}.json", json.dumps(asdict(caption), ensure_ascii=False).encode())
            yield replace(caption, audio=f"{name}:{start}:{len(sound)}")


def _append(shard: tarfile.TarFile, name: str, content: bytes) -> int:
    """Append a file without owner and time to a shard; return the offset of its content."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    start = shard.offset + tarfile.BLOCKSIZE
    shard.addfile(member, io.BytesIO(content))
    return start
