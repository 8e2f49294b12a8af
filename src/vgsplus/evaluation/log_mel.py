"""Log-Mel energies, a baseline for learned representations.

Shape letters: S samples, T frames, M Mel bands, F frequencies.
"""

import numpy as np
from numpy.typing import NDArray

from vgsplus.audio import SAMPLE_RATE, Signal

WINDOW, HOP, FFT, BANDS = 400, 160, 512, 80
FRAME_RATE = SAMPLE_RATE / HOP
FLOOR = 1e-10
"""Smallest energy of a band, so that its logarithm is finite."""


def log_mel(signal: Signal) -> NDArray[np.float32]:
    """Return log energies in 80 Mel bands (T, M) of a 16 kHz signal (S,), T = S // 160.

    Hann windows of 25 ms every 10 ms, power spectrum, triangular filters that divide the Mel scale (2595
    log10(1 + f / 700)) evenly from 0 to 8000 Hz. Frame t is centred at (t + 1/2) · 10 ms; the signal is
    zero-padded. Each band has zero mean over the utterance, because angles between frames would otherwise
    depend mostly on loudness and channel.
    """
    frames = len(signal) // HOP
    margin = (WINDOW - HOP) // 2
    padded = np.pad(signal, (margin, margin))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:frames]
    power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW + 1)[:-1], FFT)) ** 2  # (T, F)
    energies = np.log(np.maximum(power @ mel_filters().T, FLOOR))
    centred: NDArray[np.float32] = (energies - energies.mean(axis=0)).astype(np.float32)
    return centred


def mel_filters() -> NDArray[np.float64]:
    """Return triangular filters (M, F) of height 1 over the frequencies of the spectrum."""
    highest = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, highest, BANDS + 2) / 2595) - 1)
    frequencies = np.linspace(0, SAMPLE_RATE / 2, FFT // 2 + 1)
    low, centre, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - low) / (centre - low)
    falling = (high - frequencies) / (high - centre)
    return np.maximum(0, np.minimum(rising, falling))
