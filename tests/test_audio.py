import numpy as np
import pytest
import soundfile

from vgsplus.audio import SAMPLE_RATE, AudioError, duration, load_any, normalise, read, write_wav


def tone(frequency, seconds=0.5, rate=SAMPLE_RATE):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_write_then_read_keeps_the_signal_to_half_a_step(tmp_path):
    signal = tone(440)
    write_wav(tmp_path / "a.wav", signal)
    assert np.abs(read(tmp_path / "a.wav") - signal).max() <= 0.5 / 32768 + 1e-7
    write_wav(tmp_path / "b.wav", read(tmp_path / "a.wav"))
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


def test_write_clips_instead_of_wrapping(tmp_path):
    write_wav(tmp_path / "a.wav", np.array([2.0, -2.0, 1.0, -1.0], np.float32))
    np.testing.assert_allclose(read(tmp_path / "a.wav"), [1, -1, 1, -1], atol=1e-4)


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_read_gives_the_crop(tmp_path, suffix):
    soundfile.write(tmp_path / f"a.{suffix}", tone(300), SAMPLE_RATE)
    whole = read(tmp_path / f"a.{suffix}")
    assert whole.dtype == np.float32
    assert whole.shape == (8000,)
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}", 1234), whole[:1234])
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}", 10**9), whole)


@pytest.mark.parametrize("rate", [8000, SAMPLE_RATE, 44_100])
def test_duration_is_in_seconds_at_any_rate(tmp_path, rate):
    soundfile.write(tmp_path / "a.flac", tone(300, 0.75, rate), rate)
    assert duration(tmp_path / "a.flac") == pytest.approx(0.75, abs=1 / rate)


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (tone(300), 8000, "8000 Hz, 1 channel.*expected 16000 Hz mono"),
        (np.stack([tone(300)] * 2, 1), SAMPLE_RATE, "16000 Hz, 2 channel.*expected 16000 Hz mono"),
        (np.empty(0, np.float32), SAMPLE_RATE, "holds no samples"),
    ],
)
def test_read_refuses_what_is_not_prepared(tmp_path, samples, rate, message):
    soundfile.write(tmp_path / "odd.wav", samples, rate)
    with pytest.raises(AudioError, match=rf"odd\.wav: .*{message}"):
        read(tmp_path / "odd.wav")


@pytest.mark.parametrize("reader", [read, load_any, duration])
def test_absent_and_broken_files_are_named(tmp_path, reader):
    with pytest.raises(AudioError, match=r"none\.wav: there is no such"):
        reader(tmp_path / "none.wav")
    (tmp_path / "broken.wav").write_bytes(b"RIFF of something else")
    with pytest.raises(AudioError, match=r"broken\.wav: cannot be read"):
        reader(tmp_path / "broken.wav")


@pytest.mark.parametrize("reader", [read, load_any])
def test_a_flac_cut_in_the_middle_is_refused(tmp_path, reader):
    path = tmp_path / "cut.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 50_000), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[:40_000])
    with pytest.raises(AudioError, match=r"cut\.flac"):
        reader(path)


@pytest.mark.parametrize("kind", ["WAV", "WAVEX"])
def test_a_wav_cut_short_is_refused(tmp_path, kind):
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.1 * np.sin(np.arange(4000)), 44_100, format=kind, subtype="PCM_24")
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(AudioError, match=r"a\.wav: breaks off before the end"):
        load_any(path)


@pytest.mark.parametrize("reader", [read, load_any, duration])
def test_a_flac_that_does_not_state_its_length_is_refused(tmp_path, reader):
    path = tmp_path / "a.flac"
    soundfile.write(path, 0.1 * np.sin(np.arange(4000)), SAMPLE_RATE)
    streamed = bytearray(path.read_bytes())
    streamed[21] &= 0xF0  # STREAMINFO's count of samples: 36 bits, 0 where the length was unknown
    streamed[22:26] = bytes(4)
    path.write_bytes(streamed)
    with pytest.raises(AudioError, match=r"a\.flac: its header does not state how long it is"):
        reader(path)


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_load_any_resamples_without_changing_pitch_or_level(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(1000, 1.0, rate), rate, subtype="FLOAT")
    signal = load_any(tmp_path / "a.wav")
    assert abs(len(signal) - SAMPLE_RATE) <= 1
    spectrum = np.abs(np.fft.rfft(signal, SAMPLE_RATE))
    assert spectrum.argmax() == 1000
    assert np.abs(signal[2000:-2000]).max() == pytest.approx(0.5, abs=0.01)


def test_load_any_averages_channels(tmp_path):
    left, right = tone(300), tone(700)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), SAMPLE_RATE, subtype="FLOAT")
    np.testing.assert_allclose(load_any(tmp_path / "a.wav"), (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.empty(0, np.float32), "holds no samples"),
        (np.zeros(1000, np.float32), "is silent"),
        (np.full(1000, 0.2, np.float32), "is silent"),
        (np.array([0.1, np.nan, 0.2], np.float32), "not finite"),
        (np.array([0.1, np.inf, 0.2], np.float32), "not finite"),
    ],
)
def test_load_any_says_what_is_wrong(tmp_path, samples, message):
    soundfile.write(tmp_path / "odd.wav", samples, SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=rf"odd\.wav: .*{message}"):
        load_any(tmp_path / "odd.wav")


def test_normalise_gives_zero_mean_and_unit_population_deviation():
    signal = normalise(tone(440) * 0.01 + 0.3)
    assert signal.dtype == np.float32
    assert signal.mean() == pytest.approx(0, abs=1e-5)
    assert signal.std() == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(normalise(signal * 7 + 2), signal, atol=1e-4)


def test_normalise_agrees_with_double_precision():
    signal = (np.random.default_rng(0).normal(0.2, 0.05, 480_000)).astype(np.float32)
    exact = (signal.astype(np.float64) - signal.mean(dtype=np.float64)) / signal.std(dtype=np.float64)
    np.testing.assert_allclose(normalise(signal), exact, rtol=1e-5, atol=1e-5)


def test_normalise_turns_a_constant_into_zeros():
    np.testing.assert_array_equal(normalise(np.full(100, 0.25, np.float32)), np.zeros(100, np.float32))


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_16_bit_samples_are_read_as_libsndfile_scales_them(tmp_path, kind):
    every = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(tmp_path / "a", every, SAMPLE_RATE, subtype="PCM_16", format=kind)
    expected, _ = soundfile.read(tmp_path / "a", dtype="float32")
    samples = read(tmp_path / "a")
    assert samples.dtype == np.float32
    assert np.array_equal(samples, expected)
