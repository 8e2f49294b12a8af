"""Voices of festvox as unpacked: sentences read for speech synthesis, with phone times and without images.

    ROOT/wav/NAME.wav
    ROOT/etc/txt.done.data      lines ( NAME "TEXT" )
    ROOT/lab/NAME.lab           phones in the format of ESPS xlabel, optional

Among them are CMU ARCTIC and the voices in packages of Debian, such as festvox-ru. The name of ROOT is the
speaker.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vgsplus.audio import SUFFIXES
from vgsplus.corpora import CorpusWriter, Summary
from vgsplus.corpora.alignments.abx import item_text, item_tokens
from vgsplus.corpora.alignments.folder import Aligned, read_alignments
from vgsplus.corpora.format import CaptionEntry
from vgsplus.corpora.keyed_lines import numbered_lines
from vgsplus.corpora.prepare import Usable, add_captions
from vgsplus.corpora.sources.table_rows import absolute
from vgsplus.corpora.validation import BLANK
from vgsplus.errors import CorpusError, VgsplusError
from vgsplus.files import nfc
from vgsplus.progress import SILENT, Progress

TEXTS_FILE = "etc/txt.done.data"
HELD_OUT = ("validation", "test")
HELD_OUT_FRACTION = 0.1
NO_TEXT, NO_SOUND = f"no line in {TEXTS_FILE}", "no sound"
LINE = re.compile(r'\(\s*(\S+)\s+"((?:[^"\\]|\\.)*)"\s*\)')


def prepare_festvox(
    roots: Sequence[Path],
    root: Path,
    *,
    held_out: float = HELD_OUT_FRACTION,
    language: str = "und",
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Summary:
    """Prepare voices of festvox as a corpus without images at `root`.

    A sentence, which all speakers may read, is in one split with all its recordings. Of sentences with phone
    times, triphones of the held-out ones become the ABX items validation.item and test.item (see
    `alignments.abx`). Sounds that are not in the list of texts, and texts without a sound, are skipped and
    counted. The id of a caption is NAME, or SPEAKER/wav/NAME if there are several roots.

    Args:
        roots: folder of each voice.
        root: the corpus folder to create.
        held_out: sentences in validation, and as many in test: a number, or a fraction below 1.
        language: language of the captions.
        seed: random seed of the splits.
        overwrite: whether to replace an existing corpus.
        progress: stages "alignments", "sounds" and "checking".

    Raises:
        CorpusError: all faults of the voices: folders or files that are missing, two of one name, lines that
            cannot be read, faults of phone times; too few sentences for the splits; or `root` exists.
    """
    folders = [absolute(Path.cwd(), str(folder)) for folder in roots]
    names = Counter(folder.name for folder in folders)
    faults = [
        f"{name}: {count} roots are named so. Rename one." for name, count in names.items() if count > 1
    ]
    # Blanks separate the columns of ABX items, which name speakers, and sounds by their folders.
    faults += [
        f"{folder}: has a blank in its name. Rename it." for folder in folders if BLANK.search(folder.name)
    ]
    entries: list[CaptionEntry] = []
    aligned: list[Aligned] = []
    for folder in folders:
        prefix = f"{folder.name}/wav/" if len(folders) > 1 else ""
        try:
            entries += _sentences(folder, prefix, language, faults)
            if (folder / "lab").is_dir():
                found = read_alignments(folder / "lab", audio_root=folder / "wav", progress=progress)
                aligned += (replace(one, file=prefix + one.file, speaker=folder.name) for one in found)
        except CorpusError as error:
            faults += error.faults
    if faults:
        raise CorpusError(faults)

    splits = _splits([entry for entry in entries if entry.problem is None], held_out, seed)

    def review(writer: CorpusWriter, usable: list[Usable]) -> Iterator[Usable]:
        kept = {entry.id for entry, _ in usable}
        for split in HELD_OUT:
            own = [one for one in aligned if one.file in kept and splits[one.file] == split]
            if tokens := list(item_tokens(own, "triphone", Counter())):
                (writer.folder / f"{split}.item").write_text(item_text(tokens, "triphone"), encoding="utf-8")
        for entry, sound in usable:
            yield replace(entry, split=splits[entry.id]), sound

    with CorpusWriter(
        root,
        name="-".join(names),
        licence="see the voices",
        provenance={"source": "festvox", "voices": [str(folder) for folder in folders], "seed": seed},
        image_root=None,
        overwrite=overwrite,
        progress=progress,
    ) as writer:
        add_captions(writer, entries, skip={NO_TEXT, NO_SOUND}, review=review)
        return writer.finish()


def _sentences(folder: Path, prefix: str, language: str, faults: list[str]) -> Iterator[CaptionEntry]:
    """Yield the sentences of a voice: sounds, and texts without a sound; faults are appended."""
    wav, texts = folder / "wav", _texts(folder / TEXTS_FILE, faults)
    if not wav.is_dir():
        raise CorpusError(f"{wav}: there is no such folder of sounds. A voice has wav/, etc/ and lab/.")
    sounds: dict[str, Path] = {}
    for path in sorted(wav.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("._"):
            name = "_".join(path.stem.split())
            if sounds.setdefault(name, path) != path:
                faults.append(f"{path}: is the same sentence as {sounds[name]}. Remove one of them.")
    for name in sorted(sounds.keys() | texts.keys()):
        line, text = texts.get(name, (0, None))
        problem = NO_SOUND if name not in sounds else NO_TEXT if text is None else None
        yield CaptionEntry(
            origin=f"{folder / TEXTS_FILE}:{line}" if line else str(sounds[name]),
            audio=str(sounds.get(name, name)),
            id=f"{prefix}{name}",
            speaker=folder.name,
            language=language,
            text=text or None,
            problem=problem,
        )


def _texts(path: Path, faults: list[str]) -> dict[str, tuple[int, str]]:
    """Return (line, text) of each sentence by name; faults are appended."""
    found: dict[str, tuple[int, str]] = {}
    for number, line in numbered_lines(path):
        parts = LINE.fullmatch(line)
        if parts is None:
            faults.append(f'{path}:{number}: expected ( NAME "TEXT" ).')
        elif parts[1] in found:
            faults.append(f"{path}:{number}: {parts[1]} is in line {found[parts[1]][0]} already. Remove one.")
        else:
            found[parts[1]] = number, re.sub(r"\\(.)", r"\1", parts[2]).strip()
    return found


def _splits(entries: Sequence[CaptionEntry], held_out: float, seed: int) -> dict[str, str]:
    """Return the split of each caption id; recordings of one text are in one split."""
    sentences = sorted({nfc(entry.text or "").casefold() for entry in entries})
    size = round(held_out * len(sentences)) if held_out < 1 else round(held_out)
    if not 0 < size * len(HELD_OUT) < len(sentences):
        raise VgsplusError(
            f"--held-out {held_out:g}: {size} of {len(sentences)} sentences cannot be in validation, {size} "
            "in test and the others in train. Choose another number."
        )
    order = np.random.default_rng([seed]).permutation(len(sentences))
    names = [split for split in HELD_OUT for _ in range(size)]
    chosen = {sentences[index]: split for index, split in zip(order, names, strict=False)}
    return {entry.id: chosen.get(nfc(entry.text or "").casefold(), "train") for entry in entries}
