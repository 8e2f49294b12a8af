"""Speech synthesis with eSpeak NG (library of the wheel espeakng-loader), with times of phones and words."""

import ctypes
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import espeakng_loader
import numpy as np

from vgsplus.audio import Signal, resample
from vgsplus.errors import VgsplusError

SILENCE_PHONE = "SIL"
SHORTEST_PHONE = 0.030
"""Minimum duration of a phone in seconds. Shorter ones (taps, glides) are merged with the previous phone."""

# Names and numbers of espeak-ng/speak_lib.h.
_AUDIO_OUTPUT_SYNCHRONOUS = 2
_INITIALIZE_PHONEME_EVENTS = 0x0001
_INITIALIZE_PHONEME_IPA = 0x0002
_INITIALIZE_DONT_EXIT = 0x8000
_CHARS_UTF8 = 1
_RATE, _PITCH, _RANGE = 1, 3, 4
_EVENT_LIST_TERMINATED, _EVENT_PHONEME = 0, 7
_NAME_BYTES = 8
_STRESS_MARKS = "ˈˌ"
_LENGTH_MARK = (
    "\N{MODIFIER LETTER TRIANGULAR COLON}"  # a few phones of eSpeak's accents carry a colon in its place
)


@dataclass(frozen=True, slots=True)
class Voice:
    """A voice of eSpeak NG; `rate` in words per minute, `pitch` and pitch `range` from 0 to 99."""

    name: str
    rate: int
    pitch: int
    range: int = 50


@dataclass(frozen=True, slots=True)
class Interval:
    """A phone by its IPA symbol without stress marks, or SIL, or a word; times in seconds."""

    name: str
    onset: float
    offset: float


@dataclass(frozen=True, slots=True)
class Speech:
    """16 kHz mono samples, the phones that cover them from start to end, and the words.

    What eSpeak NG speaks as one word is one, such as "of_an".
    """

    samples: Signal
    phones: tuple[Interval, ...]
    words: tuple[Interval, ...]


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("symbol", ctypes.c_char * _NAME_BYTES),  # of phones; a union of 8 bytes with the ids of other events
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


def speak(sentences: Iterable[tuple[Voice, str]]) -> list[Speech]:
    """Synthesise each sentence with its voice. Samples are a function of the list of sentences.

    Exceptions are voices with "breath", which differ from call to call.

    Raises:
        VgsplusError: a voice is unknown or the library fails.
    """
    with closing(_Library()) as library:
        return [library.speak(voice, text) for voice, text in sentences]


class _Library:
    """A newly loaded library.

    Global variables of eSpeak NG (oscillator phases, flutter, noise) cannot be reset, so the library is
    loaded again to start from the same state. Loading takes about two milliseconds.
    """

    def __init__(self) -> None:
        self._system: Any = ctypes.CDLL(None)
        self._library: Any = ctypes.CDLL(str(espeakng_loader.get_library_path()))
        self._chunks: list[np.ndarray[Any, np.dtype[np.int16]]] = []
        self._starts: list[tuple[int, str, int]] = []
        self._callback = _Callback(self._receive)
        self._library.espeak_Initialize.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
        options = _INITIALIZE_PHONEME_EVENTS | _INITIALIZE_PHONEME_IPA | _INITIALIZE_DONT_EXIT
        data = str(espeakng_loader.get_data_path()).encode()
        self._rate: int = self._library.espeak_Initialize(_AUDIO_OUTPUT_SYNCHRONOUS, 0, data, options)
        if self._rate <= 0:
            raise VgsplusError(f"eSpeak NG does not start with its data in {data.decode()}.")
        self._library.espeak_SetSynthCallback(self._callback)
        self._system.srand(0)  # eSpeak NG draws noise from the generator of the C library

    def speak(self, voice: Voice, text: str) -> Speech:
        self._chunks.clear()
        self._starts.clear()
        if self._library.espeak_SetVoiceByName(voice.name.encode()) != 0:
            raise VgsplusError(f"eSpeak NG has no voice {voice.name!r}.")
        for parameter, value in ((_RATE, voice.rate), (_PITCH, voice.pitch), (_RANGE, voice.range)):
            self._library.espeak_SetParameter(parameter, value, 0)
        encoded = text.encode() + b"\0"
        size = ctypes.c_size_t(len(encoded))
        if self._library.espeak_Synth(encoded, size, 0, 0, 0, _CHARS_UTF8, None, None) != 0:
            raise VgsplusError(f"eSpeak NG failed to synthesise {text!r}.")
        pcm = np.concatenate(self._chunks or [np.empty(0, np.int16)])
        if not pcm.any():
            raise VgsplusError(f"eSpeak NG returned no samples for {text!r}.")
        samples = resample(pcm.astype(np.float32) / 32768.0, self._rate)
        starts = [(start, name) for start, name, _ in self._starts]
        words = _words(self._starts, text, len(pcm), self._rate)
        return Speech(samples, _phones(starts, len(pcm), self._rate), words)

    def close(self) -> None:
        self._library.espeak_Terminate()
        self._system.dlclose(ctypes.c_void_p(self._library._handle))  # noqa: SLF001 - ctypes has no other way

    def _receive(self, samples: Any, count: int, events: Any) -> int:  # noqa: ANN401 - ctypes pointers
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _EVENT_LIST_TERMINATED:
            event = events[index]
            if event.type == _EVENT_PHONEME:
                self._starts.append((event.sample, _phone_name(event.symbol), event.text_position))
            index += 1
        return 0


def _phone_name(symbol: bytes) -> str:
    name = symbol.decode("utf-8", errors="ignore").strip(_STRESS_MARKS + " ")
    return name.replace(":", _LENGTH_MARK) or SILENCE_PHONE


def _phones(starts: list[tuple[int, str]], length: int, rate: int) -> tuple[Interval, ...]:
    """Return phones from their first samples; each ends at the next. Short ones are merged."""
    kept: list[tuple[int, str]] = []
    ends = [start for start, _ in starts[1:]] + [length]
    for (start, name), end in zip(starts, ends, strict=True):
        if end - start >= SHORTEST_PHONE * rate or not kept:
            kept.append((start, name))
    ends = [start for start, _ in kept[1:]] + [length]
    return tuple(
        Interval(name, start / rate, end / rate) for (start, name), end in zip(kept, ends, strict=True)
    )


def _words(starts: list[tuple[int, str, int]], text: str, length: int, rate: int) -> tuple[Interval, ...]:
    """Return words from the first sample, name and place of each phone: of its word in the text, from 1."""
    spans: dict[int, tuple[int, int]] = {}
    ends = [start for start, _, _ in starts[1:]] + [length]
    for (start, name, position), end in zip(starts, ends, strict=True):
        if name != SILENCE_PHONE and end > start:
            spans[position] = (spans.get(position, (start, end))[0], end)
    positions = list(spans)
    words = [
        text[at - 1 : after - 1] for at, after in zip(positions, [*positions[1:], len(text) + 1], strict=True)
    ]
    return tuple(
        Interval("_".join(word.split()), start / rate, end / rate)
        for word, (start, end) in zip(words, spans.values(), strict=True)
    )
