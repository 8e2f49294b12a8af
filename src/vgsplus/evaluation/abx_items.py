"""Read and check ABX item files (see `corpora.items`) for scoring."""

import dataclasses
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

from vgsplus import audio
from vgsplus.corpora.items import (
    TIME_TOLERANCE,
    Items,
    SoundIndex,
    label_faults,
    parse_items,
    repeat_faults,
    shown,
)
from vgsplus.errors import AudioError, CorpusError
from vgsplus.files import as_on_disk, files_below
from vgsplus.parallel import parallel_map


def read_items(
    path: str | Path,
    *,
    conditions: Sequence[str] = ("within", "across"),
    audio_root: str | Path | None = None,
) -> Items:
    """Read an item file.

    Args:
        path: the item file.
        conditions: to be scored; "across" requires two speakers.
        audio_root: a folder with the sound of every file (a suffix of `audio.SUFFIXES`), at any depth; None
            if no sounds are needed.

    Raises:
        CorpusError: all faults, each with its line: an absent file, not text, a header or a line that lacks
            columns, times that are not numbers, negative, in the wrong order or after the end of the sound, a
            token listed twice, a label in two Unicode forms, a file without sound or with several, a single
            phone or speaker, or no items.
    """
    items, faults = parse_items(Path(path))
    path = items.path
    if not items.tokens and not faults:
        raise CorpusError(f"{path}: holds no items, only a header. Add a line for each phone token.")
    if len({token.phone for token in items.tokens}) == 1:
        phone = shown(items.tokens[0].phone)
        faults.append(f"{path}: holds one phone only, {phone!r}; ABX compares at least two.")
    if "across" in conditions and len({token.speaker for token in items.tokens}) == 1:
        speaker = shown(items.tokens[0].speaker)
        faults.append(f"{path}: holds one speaker only, {speaker!r}; score it within speakers only.")
    faults += label_faults(items)
    if audio_root is not None:
        items = dataclasses.replace(items, audio=_find_audio(items, as_on_disk(Path(audio_root)), faults))
        faults += _late_tokens(items)
    faults += repeat_faults(items, {file: sound.resolve() for file, sound in items.audio.items()})
    if faults:
        raise CorpusError(faults)
    return items


def _find_audio(items: Items, root: Path, faults: list[str]) -> dict[str, Path]:
    """Return the sound of each file below `root`; add a fault for each file with none or several."""
    if not root.is_dir():
        what = "is a file, not a folder of sounds" if root.exists() else "there is no such folder of sounds"
        faults.append(f"{root}: {what}.")
        return {}
    kinds = ", ".join(sorted(audio.SUFFIXES))
    sounds = [path for path in files_below(root) if path.suffix.lower() in audio.SUFFIXES]
    if not sounds:
        faults.append(f"{root}: holds no sound files ({kinds}).")
        return {}
    index = SoundIndex(root, sounds)
    found = {}
    for file, indices in items.by_file().items():
        places = index.find(file)
        if len(places) == 1:
            found[file] = places[0]
            continue
        first = items.where(items.tokens[indices[0]])
        if places:
            listed = " and ".join(str(place) for place in sorted(places)[:2])
            faults.append(
                f"{first}: file {shown(file)} may be {listed}. Name it by more of its path, or with its "
                "suffix."
            )
        else:
            many = f" ({len(indices)} lines)" if len(indices) > 1 else ""
            faults.append(f"{first}: there is no sound {shown(file)} below {root}{many}.")
    return found


def _late_tokens(items: Items) -> list[str]:
    """Return a fault for each token that ends after its sound, and for each sound that cannot be read."""
    indices = items.by_file()

    def faults_of(file: str) -> list[str]:
        try:
            seconds = audio.duration(items.audio[file])
        except AudioError as error:
            return [f"{items.where(items.tokens[indices[file][0]])}: {error}"]
        limit = Decimal(seconds) + TIME_TOLERANCE
        late = [token for token in map(items.tokens.__getitem__, indices[file]) if token.offset > limit]
        return [
            f"{items.where(token)}: offset {token.offset} is after the end of {file}, {seconds:.3f} s."
            for token in late
        ]

    return [fault for faults in parallel_map(faults_of, list(items.audio)) for fault in faults]
