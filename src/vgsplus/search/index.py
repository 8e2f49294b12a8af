"""The embeddings of a corpus' pictures and captions: computed once, kept on disk, searched exactly.

Shape letters: N pictures, M captions, D embedding, K results.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vgsplus.audio_files import parse_path, sound_exists
from vgsplus.corpora import Caption, Corpus
from vgsplus.corpora.format import INFO_FILE
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.evaluation.embeddings import embed_split
from vgsplus.experiments.scoring import check_retrieval
from vgsplus.files import as_on_disk, atomic_folder, lock_file, read_text
from vgsplus.interop.pretrained import PretrainedModel
from vgsplus.progress import SILENT, Progress
from vgsplus.regions.restore import describe
from vgsplus.regions.store import REGIONS_FILE
from vgsplus.remote import RemotePath, cache
from vgsplus.training.checkpoint import save_tensors

ALL = "all"
"""Name of all splits together."""
FILE = "embeddings.safetensors"
_FORMAT = 1
MOVED = "If the files were moved, prepare the corpus again."


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Index:
    """Pictures and captions with their embeddings, float32 on the CPU.

    Attributes:
        image_ids: N distinct image ids, in the order in which captions first refer to them.
        images: (N, D), in the order of `image_ids`.
        captions: M captions.
        speech: (M, D), in the order of `captions`.
        image_of_caption: M rows of `image_ids`.
    """

    model: PretrainedModel
    corpus: Corpus
    split: str
    image_ids: tuple[str, ...]
    images: Tensor
    captions: tuple[Caption, ...]
    speech: Tensor
    image_of_caption: tuple[int, ...]


def nearest(query: Tensor, embeddings: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the K = `count` largest dot products of a query (D,) with embeddings (N, D), and their rows.

    All N products are computed. Fewer than K if N is smaller.
    """
    scores, rows = (embeddings @ query).topk(min(count, len(embeddings)))
    return scores, rows


def open_index(
    model: PretrainedModel, corpus: Corpus, split: str = "test", *, progress: Progress = SILENT
) -> Index:
    """Embed the pictures and captions of a split, or read what an earlier call embedded.

    The embeddings are kept in the folder "search" of the cache (`vgsplus.remote.cache`), under a key of the
    model's sizes and weights and of the corpus: captions, and size and time of the files that are embedded.

    Args:
        model: on any device.
        corpus: with its pictures.
        split: name of a split, or "all".
        progress: receives the stages "pictures" and "captions", for each split of its own.

    Raises:
        VgsplusError: as `check`; an embedding is not finite; or another process embeds the same.
        OSError: the cache cannot be written.
    """
    splits = check(model, corpus, split)
    captions = tuple(caption for name in splits for caption in corpus.captions(name))
    image_rows = {image: row for row, image in enumerate(dict.fromkeys(_image(c) for c in captions))}
    folder = cache.folder() / "search" / _key(model, corpus, captions)
    shapes = {"images": len(image_rows), "speech": len(captions)}
    found = _read(folder / FILE, shapes, model.config.dim)
    if found is None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            with lock_file(folder.with_suffix(".lock")):
                found = _embed(model, corpus, splits, list(image_rows), progress)
                with atomic_folder(folder, replace=True) as new:
                    save_tensors(new / FILE, found)
        except BlockingIOError as error:
            raise VgsplusError(
                f"{corpus.root}: {error.strerror} computes the same embeddings. Wait until it has finished."
            ) from None
    return Index(
        model=model,
        corpus=corpus,
        split=split,
        image_ids=tuple(image_rows),
        images=found["images"],
        captions=captions,
        speech=found["speech"],
        image_of_caption=tuple(image_rows[_image(caption)] for caption in captions),
    )


def check(model: PretrainedModel, corpus: Corpus, split: str) -> tuple[str, ...]:
    """Return the names of the splits that `split` stands for.

    Raises:
        VgsplusError: the model is not grounded, or was trained on regions of another kind; the corpus has no
            pictures or no such split, a caption has no picture, or the files were moved.
    """
    if not corpus.feature_dim:
        raise CorpusError(f"{corpus.root}: is a corpus of speech alone; search needs one with pictures.")
    check_retrieval(model.config, corpus)
    provenance = corpus.info["provenance"]
    described = provenance.get("regions") if isinstance(provenance, dict) else None
    trained = model.about.get("regions")
    if model.config.image is None and trained and described and trained != described:
        raise CorpusError(
            f"{corpus.root}: its pictures are described by {describe(described)}; those of the model's "
            f"training, by {describe(trained)}. Prepare the corpus with the regions of the training."
        )
    splits = tuple(filter(corpus.captions, corpus.splits)) if split == ALL else (split,)
    for name in splits:
        captions = corpus.captions(name)
        if (captions.image_rows < 0).any():
            raise CorpusError(f"{corpus.root}: the split {name!r} has captions without pictures.")
        # Preparation checked every file; the first one shows whether they were moved since.
        for exists, path in (
            (sound_exists(corpus.audio_path(captions[0])), corpus.audio_path(captions[0])),
            ((picture := corpus.image_path(_image(captions[0]))).is_file(), picture),
        ):
            if not exists:
                raise CorpusError(f"{path}: does not exist. {MOVED}")
    return splits


def _image(caption: Caption) -> str:
    assert caption.image is not None
    return caption.image


# ---- embeddings -------------------------------------------------------------------------------------------


def _embed(
    model: PretrainedModel,
    corpus: Corpus,
    splits: Sequence[str],
    image_ids: Sequence[str],
    progress: Progress,
) -> dict[str, Tensor]:
    images: dict[str, Tensor] = {}
    speech = []
    for split in splits:
        embedded = embed_split(
            model,
            corpus,
            split,
            device=next(model.parameters()).device,
            pad_to_max=model.config.padding == "published",
            progress=progress,
        )
        images |= zip(embedded.image_ids, embedded.images, strict=True)
        speech.append(embedded.speech)
        progress.close()
    return {"images": torch.stack([images[image] for image in image_ids]), "speech": torch.cat(speech)}


def _read(path: Path, rows: dict[str, int], dim: int) -> dict[str, Tensor] | None:
    """Return the tensors of a file, or None if it is missing or broken."""
    try:
        found = load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None
    expected = {name: ((count, dim), torch.float32) for name, count in rows.items()}
    stored = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in found.items()}
    return found if stored == expected else None


def _key(model: PretrainedModel, corpus: Corpus, captions: Sequence[Caption]) -> str:
    digest = hashlib.sha256(f"{_FORMAT}".encode())
    for text in _description(model, corpus, captions):
        digest.update(text.encode() + b"\0")
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _description(model: PretrainedModel, corpus: Corpus, captions: Sequence[Caption]) -> Iterator[str]:
    yield json.dumps(dataclasses.asdict(model.config), sort_keys=True)
    yield read_text(corpus.root / INFO_FILE)
    for caption in captions:
        yield json.dumps(dataclasses.asdict(caption))
    files = dict.fromkeys(parse_path(os.fspath(corpus.audio_path(caption)))[0] for caption in captions)
    if model.config.image is None:
        files[corpus.root / REGIONS_FILE] = None
    else:
        files |= dict.fromkeys(corpus.image_path(_image(caption)) for caption in captions)
    for path in files:
        if isinstance(path, RemotePath):
            yield f"{path} {path.version}"
        else:
            try:
                stat = as_on_disk(path).stat()
            except OSError as error:
                raise CorpusError(f"{path}: {error.strerror}. {MOVED}") from None
            yield f"{path} {stat.st_size} {stat.st_mtime_ns}"
