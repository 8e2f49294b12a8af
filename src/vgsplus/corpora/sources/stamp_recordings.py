"""The recordings in a folder of Tux Paint stamps, found by the names of their files."""

import re
from dataclasses import dataclass
from pathlib import Path

from vgsplus.errors import CorpusError

RECORDING = re.compile(
    r"(?P<name>.+)_desc(?:_(?P<language>[a-z]{2,3}(?:_[A-Z]{2})?))?(?P<ending>(?:\.(?:ogg|wav))+)"
)
MEND = (
    "Name the folder of Tux Paint's stamps. Debian and Ubuntu: apt-get install tuxpaint-stamps-default; "
    "dpkg -L tuxpaint-stamps-default shows where they are (/usr/share/tuxpaint/stamps)."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A spoken description found in the stamps folder; `name` is its picture's path without ending."""

    name: str
    language: str
    path: Path
    text: str | None

    @property
    def id(self) -> str:
        """The caption's id."""
        return f"{self.name}_{self.language}".replace(" ", "-")


@dataclass(frozen=True, slots=True, kw_only=True)
class Take:
    """A recording whose sound is good: its length at 16 kHz and the digest of its samples.

    `scaled` says whether its level had to be changed to store it.
    """

    recording: Recording
    num_samples: int
    sound: str
    scaled: bool = False

    @property
    def audio(self) -> str:
        """The prepared file, relative to audio_root."""
        return f"{self.recording.id}.wav"


def find_recordings(stamps: Path) -> tuple[list[Recording], list[tuple[str, str]]]:
    """The recordings that have a picture and a text, and (reason, file) of those left out.

    Raises:
        CorpusError: `stamps` is no folder of stamps.
    """
    if not stamps.is_dir():
        raise CorpusError(f"{stamps}: there is no such folder. {MEND}")
    names = {path.relative_to(stamps).as_posix() for path in stamps.rglob("*") if path.is_file()}
    spoken = sorted(name for name in names if "_desc" in name and name.endswith((".ogg", ".wav")))
    if not spoken:
        raise CorpusError(f"{stamps}: holds no spoken description (NAME_desc_LANG.ogg). {MEND}")
    recordings: dict[str, Recording] = {}
    skipped: list[tuple[str, str]] = []
    texts: dict[str, dict[str, str]] = {}
    for name in spoken:
        match = RECORDING.fullmatch(name)
        if match is None:
            skipped.append(("file name not understood", name))
            continue
        stem, language = match["name"], match["language"] or "en"
        if reason := _missing(stem, names):
            skipped.append((reason, name))
            continue
        if stem not in texts:
            texts[stem] = read_texts(stamps / f"{stem}.txt")
        text = texts[stem].get(language)
        recording = Recording(name=stem, language=language, path=stamps / name, text=text)
        if recording.id in recordings:
            skipped.append(("second recording of a picture in a language", name))
        else:
            recordings[recording.id] = recording
    if not recordings:
        raise CorpusError(f"{stamps}: no recording has a picture NAME.png and a text NAME.txt. {MEND}")
    return list(recordings.values()), skipped


def _missing(stem: str, names: set[str]) -> str | None:
    """What keeps a recording from being used, by the names of the files alone."""
    if f"{stem}.png" not in names:
        return "picture only as SVG" if f"{stem}.svg" in names else "no picture"
    return None if f"{stem}.txt" in names else "no text"


def read_texts(path: Path) -> dict[str, str]:
    """The texts of a stamp by language: English on the first line, then `lang.utf8=text`."""
    first, *others = path.read_text(encoding="utf-8-sig", errors="replace").splitlines() or [""]
    texts = {"en": first.strip()}
    for line in others:
        key, equals, text = line.partition("=")
        if equals:
            texts.setdefault(key.strip().removesuffix(".utf8"), text.strip())
    return {language: text for language, text in texts.items() if text}
