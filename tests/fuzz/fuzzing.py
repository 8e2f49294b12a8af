"""Readers of users' files on mutated inputs: each is read, or refused by a VgsplusError, soon and cleanly.

A case is a function of (reader, seed, index): a valid input in a folder, one file of it changed, and the
reader called as the product calls it. Cases run in child processes, so that a hang or a crash is that of its
case.
"""

import io
import json
import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import h5py
import numpy as np
import soundfile
from PIL import Image

from vgsplus.errors import CorpusError, VgsplusError

SECONDS = 10.0
"""A case that takes longer hangs."""
MEMORY = 12 << 30
"""Bytes of address space that a child may take."""
type Files = dict[str, bytes]


@dataclass(frozen=True)
class Reader:
    """How a kind of input is made and read; only the files in `changed` are mutated, all by default."""

    make: Callable[[], Files]
    read: Callable[[Path], object]
    changed: tuple[str, ...] = ()


# ---- valid inputs -----------------------------------------------------------------------------------------


def sound(kind: str = "WAV", subtype: str | None = None, seed: int = 0, rate: int = 16_000) -> bytes:
    """Half a second of noise as a file."""
    file = io.BytesIO()
    noise = np.random.default_rng(seed).normal(0, 0.1, rate // 2)
    soundfile.write(file, noise, rate, format=kind, subtype=subtype)
    return file.getvalue()


def picture(kind: str = "PNG", seed: int = 0) -> bytes:
    """A small picture of noise as a file."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def hdf5(write: Callable[[h5py.File], object]) -> bytes:
    """What h5py writes as a file."""
    stream = io.BytesIO()
    with h5py.File(stream, "w") as file:
        write(file)
    return stream.getvalue()


def table() -> Files:
    """A table of recordings and pictures."""
    rows = [f"s{n}.wav,p{n}.png,{n / 20},,anna,train,a word,de" for n in range(4)]
    text = "audio,image,start,end,speaker,split,text,language\n" + "\n".join(rows) + "\n"
    files = {"table.csv": text.encode()}
    for n in range(4):
        files |= {f"s{n}.wav": sound(seed=n), f"p{n}.png": picture(seed=n)}
    return files


def kaldi() -> Files:
    """A Kaldi data folder."""
    return {
        "long.wav": sound(seed=1),
        "train/wav.scp": b"rec ../long.wav\n",
        "train/segments": b"a-1 rec 0.0 0.25\na-2 rec 0.25 -1\n",
        "train/utt2spk": b"a-1 anna\na-2 anna\n",
        "train/text": b"a-1 ein Wort\na-2 noch eins\n",
    }


def manifest() -> Files:
    """A manifest with a file, a member of an archive and a range."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a.wav", sound(seed=1))
    start = archive.getvalue().index(b"RIFF")
    size = len(sound(seed=1))
    text = f".\na.wav\t8000\nall.zip:{start}:{size}\t8000\na.wav:0:6000\t6000\n"
    return {"train.tsv": text.encode(), "a.wav": sound(seed=0), "all.zip": archive.getvalue()}


def librispeech() -> Files:
    """Two subsets of one chapter each."""
    files: Files = {
        "LibriSpeech/SPEAKERS.TXT": b"; ID\n1 | F | train-clean-100 | 2.0 | A\n2 | M | dev-clean | 2.0 | B\n"
    }
    for speaker, subset in (("1", "train-clean-100"), ("2", "dev-clean")):
        folder = f"LibriSpeech/{subset}/{speaker}/9"
        names = [f"{speaker}-9-{n:04d}" for n in range(2)]
        files[f"{folder}/{speaker}-9.trans.txt"] = "".join(f"{name} A WORD\n" for name in names).encode()
        files |= {f"{folder}/{name}.flac": sound("FLAC", seed=n) for n, name in enumerate(names)}
    return files


def regions_store() -> bytes:
    """The published HDF5 of regions of the pictures 1 and 2."""
    rng = np.random.default_rng(0)

    def write(file: h5py.File) -> None:
        file["img_id"] = np.array([f"COCO_train2014_{n:012d}" for n in (1, 2)], "S40")
        file["img_h"] = file["img_w"] = np.array([100, 100])
        file["objects_conf"] = rng.random((2, 3), np.float32)
        corners = rng.uniform(0, 50, (2, 3, 2)).astype(np.float32)
        file["boxes"] = np.concatenate([corners, corners + 40], axis=2)
        file.create_dataset("features", data=rng.random((2, 3, 5), np.float32), compression="gzip")

    return hdf5(write)


def regions_tsv() -> bytes:
    """The obj36 TSV of the pictures 1 and 2."""
    import base64  # noqa: PLC0415 - used here alone

    def cell(array: object, kind: str) -> str:
        return base64.b64encode(np.asarray(array, kind).tobytes()).decode()

    rows = []
    for n in (1, 2):
        boxes, features = [[1, 2, 30, 40], [5, 5, 50, 60]], np.arange(6) / (n + 1)
        arrays = [cell([0, 1], "<i8"), cell([0.5, 0.2], "<f4"), cell([0, 1], "<i8"), cell([0.1, 0.1], "<f4")]
        row = [
            f"COCO_train2014_{n:012d}",
            "100",
            "100",
            *arrays,
            "2",
            cell(boxes, "<f4"),
            cell(features, "<f4"),
        ]
        rows.append("\t".join(row))
    return ("\n".join(rows) + "\n").encode()


def spokencoco() -> Files:
    """Lists of captions with regions as TSV and as HDF5."""
    files: Files = {"regions.tsv": regions_tsv(), "regions.h5": regions_store()}
    for n, split in ((1, "train"), (2, "val")):
        caption = {"text": "A DOG", "speaker": f"m{n}", "uttid": f"m{n}-u", "wav": f"u{n}.wav"}
        entry = {"image": f"train2014/COCO_train2014_{n:012d}.jpg", "captions": [caption]}
        files |= {
            f"SpokenCOCO_{split}.json": json.dumps({"data": [entry]}).encode(),
            f"u{n}.wav": sound(seed=n),
        }
    return files


def flickr8k() -> Files:
    """Flickr8k's lists with pictures."""
    names = {"train": "1_a", "dev": "2_b", "test": "3_c"}
    files: Files = {
        "audio/wav2capt.txt": "".join(f"{n}_0.wav {n}.jpg #0\n" for n in names.values()).encode(),
        "audio/wav2spk.txt": "".join(f"{n}_0.wav 7\n" for n in names.values()).encode(),
        "text/Flickr8k.token.txt": "".join(f"{n}.jpg#0\tA dog .\n" for n in names.values()).encode(),
    }
    for split, name in names.items():
        files[f"text/Flickr_8k.{split}Images.txt"] = f"{name}.jpg\n".encode()
        files[f"audio/wavs/{name}_0.wav"] = sound()
        files[f"images/{name}.jpg"] = picture("JPEG")
    return files


def places() -> Files:
    """A list of Places with a picture."""
    entry = {"uttid": "A-1", "speaker": "A", "asr_text": "a word", "wav": "a.wav", "image": "r/run/1.jpg"}
    data = json.dumps({"image_base_path": "/x", "data": [entry]}).encode()
    return {"train_2020.json": data, "a.wav": sound(), "images/r/run/1.jpg": picture("JPEG")}


def items() -> Files:
    """An ABX item file with its sounds."""
    rows = [f"s{n % 2} 0.{n}0 0.{n}8 {'ab'[n % 2]} x y spk{n // 2 % 2}" for n in range(1, 5)]
    text = "#file onset offset #phone prev-phone next-phone speaker\n" + "\n".join(rows) + "\n"
    return {"x.item": text.encode(), "sounds/s0.wav": sound(), "sounds/s1.flac": sound("FLAC")}


PHONE_TIMES = tuple((f"{0.05 * n:.2f}", f"{0.05 * n + 0.05:.2f}", "kateto"[n]) for n in range(6))


def alignments() -> Files:
    """A TextGrid in the long format, one in the short, a CTM file, and labels of xlabel and TIMIT."""
    first = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n'
    grid = f"{first}xmin = 0\nxmax = 0.5\ntiers? <exists>\nsize = 1\nitem []:\n item [1]:\n"
    grid += '  class = "IntervalTier"\n  name = "phones"\n  xmin = 0\n  xmax = 0.5\n  intervals: size = 6\n'
    grid += "".join(
        f'  intervals [{n + 1}]:\n   xmin = {start}\n   xmax = {end}\n   text = "{label}"\n'
        for n, (start, end, label) in enumerate(PHONE_TIMES)
    )
    short = first + '0\n0.5\n<exists>\n1\n"IntervalTier"\n"phones"\n0\n0.5\n6\n'
    short += "".join(f'{start}\n{end}\n"{label}"\n' for start, end, label in PHONE_TIMES)
    texts = {
        "s0.TextGrid": grid,
        "s1.TextGrid": short,
        "s2.ctm": "".join(f"s2 1 {start} 0.05 {label}\n" for start, _, label in PHONE_TIMES),
        "s3.lab": "#\n" + "".join(f"{end} 125 {label}\n" for _, end, label in PHONE_TIMES),
        "s4.phn": "".join(
            f"{800 * n} {800 * n + 800} {label}\n" for n, (*_, label) in enumerate(PHONE_TIMES)
        ),
    }
    return {name: text.encode() for name, text in texts.items()} | {f"s{n}.wav": sound() for n in range(5)}


def festvox() -> Files:
    """A voice of four sentences."""
    names = [f"a{n}" for n in range(4)]
    labels = "#\n" + "".join(f"{end} 125 {label}\n" for _, end, label in PHONE_TIMES)
    lines = "".join(f'( {name} "Sentence {name}." )\n' for name in names)
    return {
        "voice/etc/txt.done.data": lines.encode(),
        **{f"voice/lab/{name}.lab": labels.encode() for name in names},
        **{f"voice/wav/{name}.wav": sound(seed=n) for n, name in enumerate(names)},
    }


def checkpoint(kind: str) -> Files:
    """A tiny wav2vec 2.0 as a fairseq checkpoint, new or legacy, or as a Hugging Face folder."""
    import torch  # noqa: PLC0415 - takes seconds
    from safetensors.torch import save  # noqa: PLC0415

    rng = np.random.default_rng(0)

    def tensor(*shape: int) -> object:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    fairseq = {
        "feature_extractor.conv_layers.0.0.weight": tensor(4, 1, 10),
        **{f"feature_extractor.conv_layers.0.2.{p}": tensor(4) for p in ("weight", "bias")},
        **{f"layer_norm.{p}": tensor(4) for p in ("weight", "bias")},
        "post_extract_proj.weight": tensor(8, 4),
        "post_extract_proj.bias": tensor(8),
        "encoder.pos_conv.0.weight_g": tensor(1, 1, 4),
        "encoder.pos_conv.0.weight_v": tensor(8, 4, 4),
        "encoder.pos_conv.0.bias": tensor(8),
        **{f"encoder.layer_norm.{p}": tensor(8) for p in ("weight", "bias")},
    }
    shapes = {f"self_attn.{p}_proj": (8, 8) for p in ("q", "k", "v", "out")} | {
        "fc1": (16, 8),
        "fc2": (8, 16),
    }
    for name, (rows, columns) in shapes.items():
        fairseq[f"encoder.layers.0.{name}.weight"] = tensor(rows, columns)
        fairseq[f"encoder.layers.0.{name}.bias"] = tensor(rows)
    for name in ("self_attn_layer_norm", "final_layer_norm"):
        fairseq |= {f"encoder.layers.0.{name}.{p}": tensor(8) for p in ("weight", "bias")}
    args = {
        "encoder_layers": 1,
        "encoder_embed_dim": 8,
        "encoder_attention_heads": 2,
        "layer_norm_first": False,
    }
    args |= {"conv_feature_layers": "[(4, 10, 5)]", "conv_pos": 4, "conv_pos_groups": 2, "normalize": True}
    if kind != "hf":
        file = io.BytesIO()
        saved = {"cfg": {"model": args}, "model": fairseq}
        torch.save(saved, file, _use_new_zipfile_serialization=kind == "zip")
        return {"model.pt": file.getvalue()}
    config = {
        "model_type": "wav2vec2",
        "conv_dim": [4],
        "conv_kernel": [10],
        "conv_stride": [5],
        "hidden_size": 8,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_conv_pos_embeddings": 4,
        "num_conv_pos_embedding_groups": 2,
    }
    names = [
        ("post_extract_proj", "feature_projection.projection"),
        ("encoder.pos_conv.0", "encoder.pos_conv_embed.conv"),
        ("self_attn_layer_norm", "layer_norm"),
        ("self_attn", "attention"),
        ("fc1", "feed_forward.intermediate_dense"),
        ("fc2", "feed_forward.output_dense"),
        ("conv_layers.0.0", "conv_layers.0.conv"),
        ("conv_layers.0.2", "conv_layers.0.layer_norm"),
    ]
    renamed = {}
    for name, value in fairseq.items():
        own = f"feature_projection.{name}" if name.startswith("layer_norm") else name
        for old, new in names:
            own = own.replace(old, new)
        renamed[own] = value
    return {"config.json": json.dumps(config).encode(), "model.safetensors": save(renamed)}


def corpus() -> Files:
    """A prepared corpus."""
    from vgsplus.corpora.sources.table import prepare_table  # noqa: PLC0415 - as the readers

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        put(folder / "in", table())
        prepare_table(folder / "in/table.csv", folder / "out")
        files = {p.relative_to(folder / "out").as_posix(): p.read_bytes() for p in files_of(folder / "out")}
        info = json.loads(files["corpus.json"])
        files["corpus.json"] = json.dumps(info | {"audio_root": "audio", "image_root": "images"}).encode()
        text = files["captions.jsonl"].decode().replace(f"{folder / 'in'}/", "")
        files["captions.jsonl"] = text.encode()
        for path in files_of(folder / "in"):
            files[f"{'images' if path.suffix == '.png' else 'audio'}/{path.name}"] = path.read_bytes()
        return files


def config() -> Files:
    """A configuration of a run."""
    model, schedule = "model:\n  mask_span: 8\n  heads: 6\n", "schedule:\n  variant: vgs+\n"
    return {"run.yaml": f"corpus: somewhere\nseed: 3\nbatch_size: 4\n{model}{schedule}".encode()}


# ---- readers ----------------------------------------------------------------------------------------------
# What they call is imported in the child, which pays for PyTorch once.


def read_sound(folder: Path) -> object:
    from vgsplus import audio  # noqa: PLC0415

    (path,) = folder.iterdir()
    try:
        audio.read_crop(path, 1000, 0.5)
        audio.num_samples(path)
    except VgsplusError:
        pass
    return audio.load_any(path), audio.duration(path)


def read_picture(folder: Path) -> object:
    from vgsplus.regions.images import open_image  # noqa: PLC0415
    from vgsplus.regions.pixel_grid import grid_regions  # noqa: PLC0415

    (path,) = folder.iterdir()
    return grid_regions(open_image(path))


def read_table(folder: Path) -> object:
    from vgsplus.corpora.sources.table import prepare_table  # noqa: PLC0415

    return prepare_table(folder / "table.csv", folder / "out")


def read_kaldi(folder: Path) -> object:
    from vgsplus.corpora.sources.kaldi import prepare_kaldi  # noqa: PLC0415

    return prepare_kaldi({"train": folder / "train"}, folder / "out")


def read_manifest(folder: Path) -> object:
    from vgsplus.corpora.sources.manifest import prepare_manifests  # noqa: PLC0415

    text = (folder / "train.tsv").read_bytes()
    if text.startswith(b".\n"):
        (folder / "train.tsv").write_bytes(str(folder).encode() + text[1:])
    return prepare_manifests([folder / "train.tsv"], [], folder / "out")


def read_librispeech(folder: Path) -> object:
    from vgsplus.corpora.sources.librispeech import prepare_librispeech  # noqa: PLC0415

    return prepare_librispeech(folder, folder / "out")


def read_spokencoco(features: str) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        from vgsplus.corpora.sources.spokencoco import prepare_spokencoco  # noqa: PLC0415

        lists = {"train": folder / "SpokenCOCO_train.json", "validation": folder / "SpokenCOCO_val.json"}
        return prepare_spokencoco(
            folder / "out", lists=lists, audio_root=folder, features=[folder / features], skip_faulty=False
        )

    return read


def read_flickr8k(folder: Path) -> object:
    from vgsplus.corpora.sources.flickr8k import prepare_flickr8k  # noqa: PLC0415

    return prepare_flickr8k(
        folder / "out", audio=folder / "audio", text=folder / "text", image_root=folder / "images"
    )


def read_places(folder: Path) -> object:
    from vgsplus.corpora.sources.lists import find_lists  # noqa: PLC0415
    from vgsplus.corpora.sources.places import LIST_NAMES, prepare_places  # noqa: PLC0415

    lists = find_lists([folder, folder / "metadata"], LIST_NAMES)
    return prepare_places(folder / "out", lists=lists, audio_root=folder, image_root=folder / "images")


def read_items(folder: Path) -> object:
    from vgsplus.evaluation import abx_items  # noqa: PLC0415

    return abx_items.read_items(folder / "x.item", audio_root=folder / "sounds")


def read_alignments(folder: Path) -> object:
    from vgsplus.corpora.alignments.abx import write_items  # noqa: PLC0415

    return write_items(folder, folder / "out.item")


def read_festvox(folder: Path) -> object:
    from vgsplus.corpora.sources.festvox import prepare_festvox  # noqa: PLC0415

    return prepare_festvox([folder / "voice"], folder / "out", held_out=1)


def read_checkpoint(folder: Path) -> object:
    import vgsplus  # noqa: PLC0415

    return vgsplus.load(folder / "model.pt" if (folder / "model.pt").exists() else folder)


def read_corpus(folder: Path) -> object:
    from vgsplus.corpora import Corpus, validate  # noqa: PLC0415

    if faults := validate(folder):
        raise CorpusError(faults)
    opened = Corpus.open(folder)
    return [opened.stored_regions([c.image for c in opened.captions(split)]) for split in opened.splits]


def read_config(folder: Path) -> object:
    from vgsplus.config import load_config  # noqa: PLC0415

    return load_config(folder / "run.yaml")


def _sound_files(kind: str, subtype: str | None = None) -> Callable[[], Files]:
    return lambda: {f"a.{kind.lower()}": sound(kind, subtype)}


SOUNDS = (("WAV", None), ("FLAC", None), ("MP3", None), ("OGG", None), ("OGG", "OPUS"), ("WAV", "GSM610"))
SOUNDS += (
    ("WAV", "MS_ADPCM"),
    ("NIST", None),
    ("AIFF", None),
    ("AU", "G721_32"),
    ("CAF", None),
    ("W64", None),
)
PICTURES = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")
READERS: dict[str, Reader] = {
    **{f"sound {k} {s or ''}".strip(): Reader(_sound_files(k, s), read_sound) for k, s in SOUNDS},
    **{f"picture {k}": Reader(lambda k=k: {f"a.{k.lower()}": picture(k)}, read_picture) for k in PICTURES},
    "table": Reader(table, read_table, ("table.csv",)),
    "kaldi": Reader(kaldi, read_kaldi, ("train/wav.scp", "train/segments", "train/utt2spk", "train/text")),
    "manifest": Reader(manifest, read_manifest, ("train.tsv", "all.zip")),
    "librispeech": Reader(librispeech, read_librispeech),
    "regions TSV": Reader(spokencoco, read_spokencoco("regions.tsv"), ("regions.tsv",)),
    "regions HDF5": Reader(spokencoco, read_spokencoco("regions.h5"), ("regions.h5",)),
    "spokencoco": Reader(
        spokencoco, read_spokencoco("regions.h5"), ("SpokenCOCO_train.json", "SpokenCOCO_val.json")
    ),
    "flickr8k": Reader(flickr8k, read_flickr8k),
    "places": Reader(places, read_places, ("train_2020.json",)),
    "items": Reader(items, read_items),
    "alignments": Reader(
        alignments, read_alignments, ("s0.TextGrid", "s1.TextGrid", "s2.ctm", "s3.lab", "s4.phn")
    ),
    "festvox": Reader(festvox, read_festvox),
    "fairseq": Reader(lambda: checkpoint("zip"), read_checkpoint),
    "fairseq, legacy": Reader(lambda: checkpoint("legacy"), read_checkpoint),
    "Hugging Face": Reader(lambda: checkpoint("hf"), read_checkpoint),
    "corpus": Reader(corpus, read_corpus, ("corpus.json", "captions.jsonl", "regions.h5")),
    "config": Reader(config, read_config),
}


# ---- mutations --------------------------------------------------------------------------------------------

EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, (1 << 64) - 1)
VALUES = (
    b"-1",
    b"0",
    b"1e999",
    b"nan",
    b"99999999999999999999",
    b"null",
    b"[]",
    b"{}",
    b'"x"',
    b"true",
    b"\xff",
)
INSERTS = (
    b"\0",
    b"\xff\xfe",
    "\u202e\u2028é".encode(),
    b'"',
    b"\t",
    b"\r",
    b"../",
    b"{",
    b"\n\n",
    b" " * 300,
)


def mutate(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """A file changed in one way, drawn at random; `other` is another file of the input."""
    if rng.random() < 0.5:
        return _change_bytes(content, other, rng)
    lines = content.split(b"\n")
    one, two = (int(n) for n in rng.integers(len(lines), size=2))
    match rng.integers(5):
        case 0:
            lines[one], lines[two] = lines[two], lines[one]
        case 1:
            lines[one : one + 1] = [lines[one]] * int(rng.choice([0, 2]))
        case 2:
            lines[one] = _swap_fields(lines[one], rng)
        case 3:
            lines[one] = _change_value(lines[one], rng)
        case _:
            text = content.decode("utf-8", errors="replace")
            encoding = str(rng.choice(["utf-16", "utf-8-sig", "latin-1", "utf-32-le"]))
            return text.encode(encoding, errors="replace")
    return b"\n".join(lines)


def _change_bytes(content: bytes, other: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, bytes changed or put in, a field set to an extreme value, or the end of another file."""
    place = int(rng.integers(len(content) + 1))
    # Headers are where most goes wrong.
    front = place if rng.random() < 0.5 else min(place, int(rng.integers(200)))
    match rng.integers(6):
        case 0:
            return content[:place]
        case 1 | 2:
            changed = bytearray(content)
            for _ in range(rng.integers(1, 6)):
                changed[front : front + 1] = rng.bytes(1)
                front = int(rng.integers(front + 100))
            return bytes(changed)
        case 3:
            size = int(rng.choice([2, 4, 8]))
            value = EXTREMES[rng.integers(len(EXTREMES))] % (1 << 8 * size)
            field_bytes = value.to_bytes(size, "little" if rng.random() < 0.5 else "big")
            return content[:front] + field_bytes + content[front + size :]
        case 4:
            return content[:place] + INSERTS[rng.integers(len(INSERTS))] + content[place:]
        case _:
            return content[:place] + other[int(rng.integers(len(other) + 1)) :]


def _swap_fields(line: bytes, rng: np.random.Generator) -> bytes:
    separator = next((s for s in (b"\t", b",", b"|", b" ", b":") if s in line), b" ")
    fields = line.split(separator)
    one, two = rng.integers(len(fields), size=2)
    fields[one], fields[two] = fields[two], fields[one]
    return separator.join(fields)


def _change_value(line: bytes, rng: np.random.Generator) -> bytes:
    """One word, number or JSON value of a line as another."""
    import re  # noqa: PLC0415 - used here alone

    words = [match.span() for match in re.finditer(rb'"[^"]*"|[^\s,:\t{}\[\]]+', line)]
    if not words:
        return line
    start, end = words[rng.integers(len(words))]
    return line[:start] + VALUES[rng.integers(len(VALUES))] + line[end:]


# ---- running ----------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of a reader's cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    failures: list[str] = field(default_factory=list)


def put(folder: Path, files: Files) -> None:
    """Write the files of an input."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def files_of(folder: Path) -> list[Path]:
    """Every file below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def run_case(name: str, files: Files, seed: int, index: int, folder: Path) -> str:
    """Run one case: "read", "refused", or what is wrong."""

    reader = READERS[name]
    rng = np.random.default_rng([seed, list(READERS).index(name), index])
    targets = reader.changed or tuple(files)
    target = targets[int(rng.integers(len(targets)))]
    other = files[list(files)[int(rng.integers(len(files)))]]
    put(folder, files | {target: mutate(files[target], other, rng)})
    before = set(files_of(folder))
    try:
        reader.read(folder)
    except VgsplusError:
        left = {path.relative_to(folder).as_posix() for path in set(files_of(folder)) - before}
        # What was read of regions stays for the next call.
        left = {path for path in left if not path.startswith(".out.regions/")}
        return f"left {sorted(left)[:3]} after refusing a change of {target}" if left else "refused"
    except Exception as error:  # noqa: BLE001 - what this is about
        where = traceback.extract_tb(error.__traceback__)
        ours = next((f for f in reversed(where) if "/vgsplus/" in f.filename), where[-1])
        place = f"{Path(ours.filename).name}:{ours.lineno}"
        return f"{type(error).__name__} at {place} after a change of {target}: {str(error)[:120]}"
    return "read"


def _child(name: str, files: Files, seed: int, first: int, last: int, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    logging.disable()
    # Codecs write what they meet to standard error by themselves.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    for index in range(first, last):
        with tempfile.TemporaryDirectory(prefix="fuzz") as folder:
            pipe.send((index, None))
            pipe.send((index, run_case(name, files, seed, index, Path(folder))))
    pipe.close()


def fuzz(name: str, cases: int, seed: int) -> Tally:
    """Run the cases of one reader in a child, which is started anew after a hang or a crash."""
    tally, index = Tally(), 0
    files = READERS[name].make()
    context = multiprocessing.get_context("fork")
    while index < cases:
        ours, theirs = context.Pipe(duplex=False)
        child = context.Process(target=_child, args=(name, files, seed, index, cases, theirs))
        child.start()
        theirs.close()
        started = time.monotonic()
        while index < cases:
            outcome: str | None = f"hangs for more than {SECONDS:g} s"
            try:
                if ours.poll(SECONDS):
                    _, outcome = ours.recv()
            except (EOFError, OSError, pickle.UnpicklingError):
                outcome = "ends the process"
            if outcome is None:
                started = time.monotonic()
                continue
            tally.slowest = max(tally.slowest, time.monotonic() - started)
            known = outcome if outcome in ("read", "refused") else "failed"
            tally.outcomes[known] += 1
            if known == "failed":
                tally.failures.append(f"{name}, seed {seed}, case {index}: {outcome}")
            index += 1
            if outcome.startswith(("hangs", "ends")):
                break
        child.kill()
        child.join()
        ours.close()
    for left in Path(tempfile.gettempdir()).glob("fuzz*"):
        shutil.rmtree(left, ignore_errors=True)
    return tally
