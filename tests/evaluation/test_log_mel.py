import numpy as np
import pytest
from transformers.audio_utils import mel_filter_bank, spectrogram

from vgsplus.evaluation.abx_layers import BANDS, FRAME_RATE, log_mel, mel_filters


def test_filters_are_those_of_an_independent_implementation():
    theirs = mel_filter_bank(257, BANDS, 0.0, 8000.0, 16_000, norm=None, mel_scale="htk")
    np.testing.assert_allclose(mel_filters(), theirs.T, atol=1e-9)


def test_energies_are_those_of_an_independent_implementation():
    signal = np.random.default_rng(0).normal(size=8123).astype(np.float32)
    padded = np.pad(signal, 120)
    window = np.hanning(401)[:-1]
    filters = mel_filters().T
    theirs = spectrogram(
        padded, window, 400, 160, 512, power=2.0, center=False, mel_filters=filters, log_mel="log"
    ).T[:50]
    ours = log_mel(signal)
    assert ours.shape == (50, BANDS)
    np.testing.assert_allclose(ours, theirs - theirs.mean(axis=0), atol=1e-4)


def test_frames_are_centred_and_bands_have_no_mean():
    assert FRAME_RATE == 100
    signal = np.zeros(16_000, np.float32)
    signal[int(0.505 * 16_000)] = 1.0  # the centre of frame 50
    energies = log_mel(signal)
    assert energies.dtype == np.float32
    assert int(energies.mean(axis=1).argmax()) == 50
    np.testing.assert_allclose(energies[49], energies[51], atol=1e-4)
    np.testing.assert_allclose(energies.mean(axis=0), 0, atol=1e-4)


@pytest.mark.parametrize("samples", [160, 161, 399, 400])
def test_short_signals_have_frames(samples):
    assert log_mel(np.ones(samples, np.float32)).shape == (samples // 160, BANDS)
