import io
import os
import struct
import tarfile
import unicodedata
import zipfile

import numpy as np
import pytest
import soundfile

from vgsplus.audio import (
    SAMPLE_RATE,
    contents,
    duration,
    header,
    load_any,
    needs_conversion,
    normalise,
    num_samples,
    read,
    read_crop,
    write_wav,
)
from vgsplus.audio_files import sound_exists
from vgsplus.errors import AudioError


def tone(frequency, seconds=0.5, rate=SAMPLE_RATE):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def test_write_then_read_keeps_the_signal_to_half_a_step(tmp_path):
    signal = tone(440)
    write_wav(tmp_path / "a.wav", signal)
    assert np.abs(read(tmp_path / "a.wav") - signal).max() <= 0.5 / 32768 + 1e-7
    write_wav(tmp_path / "b.wav", read(tmp_path / "a.wav"))
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 2.1, 20.0, 32768.0])
def test_a_signal_that_16_bits_do_not_fit_is_scaled_and_stays_what_it_was(tmp_path, scale):
    signal = tone(440) * np.float32(scale)
    factor = write_wav(tmp_path / "a.wav", signal)
    stored = read(tmp_path / "a.wav")
    assert np.abs(stored).max() == pytest.approx(32767 / 32768)
    np.testing.assert_allclose(stored, signal * np.float32(factor), atol=0.5 / 32768 + 1e-7)
    assert np.corrcoef(stored, signal)[0, 1] > 1 - 1e-8


@pytest.mark.parametrize("peak", [0.02, 0.5, 1.0])
def test_a_signal_that_fits_16_bits_keeps_its_level(tmp_path, peak):
    signal = tone(440) * np.float32(2 * peak)
    assert write_wav(tmp_path / "a.wav", signal) == 1.0
    np.testing.assert_allclose(read(tmp_path / "a.wav"), signal, atol=1 / 32768)


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
    with pytest.raises(AudioError, match=r"broken\.wav: cannot be read as sound \(Format not recognised\.\)"):
        reader(tmp_path / "broken.wav")


@pytest.mark.parametrize("reader", [read, load_any])
def test_a_flac_cut_in_the_middle_is_refused(tmp_path, reader):
    path = tmp_path / "cut.flac"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 50_000), SAMPLE_RATE)
    path.write_bytes(path.read_bytes()[:40_000])
    with pytest.raises(AudioError, match=r"cut\.flac"):
        reader(path)


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "W64", "AIFF", "AU"])
def test_a_file_cut_short_is_refused(tmp_path, kind):
    path = tmp_path / "a.wav"
    soundfile.write(path, 0.1 * np.sin(np.arange(4000)), 44_100, format=kind, subtype="PCM_24")
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(AudioError, match=r"a\.wav: is shorter than its header states"):
        load_any(path)


@pytest.mark.parametrize("reader", [read, load_any, duration])
def test_a_flac_that_does_not_state_its_length_is_refused(tmp_path, reader):
    path = tmp_path / "a.flac"
    soundfile.write(path, 0.1 * np.sin(np.arange(4000)), SAMPLE_RATE)
    streamed = bytearray(path.read_bytes())
    streamed[21] &= 0xF0  # STREAMINFO's count of samples: 36 bits, 0 where the length was unknown
    streamed[22:26] = bytes(4)
    path.write_bytes(streamed)
    with pytest.raises(AudioError, match=r"a\.flac: its header does not state its length"):
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


@pytest.mark.parametrize("scale", [1e4, 1e20, 1e35])
def test_normalise_keeps_the_shape_of_huge_samples(scale):
    signal = np.random.default_rng(0).normal(0, 1, 16_000).astype(np.float32)
    np.testing.assert_allclose(normalise(signal * np.float32(scale)), normalise(signal), atol=1e-4)


@pytest.mark.parametrize("kind", ["WAV", "FLAC"])
def test_16_bit_samples_are_read_as_libsndfile_scales_them(tmp_path, kind):
    every = np.arange(-32768, 32768, dtype=np.int16)
    soundfile.write(tmp_path / "a", every, SAMPLE_RATE, subtype="PCM_16", format=kind)
    expected, _ = soundfile.read(tmp_path / "a", dtype="float32")
    samples = read(tmp_path / "a")
    assert samples.dtype == np.float32
    assert np.array_equal(samples, expected)


# ---- codecs -----------------------------------------------------------------------------------------------

CODECS = [
    (kind, subtype)
    for kind in ("WAV", "AU", "AIFF", "FLAC", "OGG", "MP3", "CAF", "W64", "RF64", "NIST")
    for subtype in soundfile.available_subtypes(kind)
    if not subtype.startswith("DWVW")  # libsndfile writes it and cannot read it
]


@pytest.mark.parametrize(("kind", "subtype"), CODECS)
def test_a_crop_is_the_same_samples_as_in_the_whole_file(tmp_path, kind, subtype):
    path = tmp_path / "a"
    noise = np.random.default_rng(0).normal(0, 0.03, 48_000)
    try:
        soundfile.write(path, tone(300, 3.0) + noise, SAMPLE_RATE, format=kind, subtype=subtype)
    except soundfile.LibsndfileError:
        pytest.skip("not a codec of 16 kHz mono in this container")
    whole = read(path)
    assert len(whole) == num_samples(path) == len(load_any(path))
    assert np.corrcoef(whole[:48_000], tone(300, 3.0))[0, 1] > 0.9
    for crop in (0.0, 0.31, 0.77, 0.999):
        start = int(crop * (len(whole) - 1600 + 1))
        np.testing.assert_array_equal(read_crop(path, 1600, crop)[0], whole[start : start + 1600])


@pytest.mark.parametrize("seed", range(4))
def test_the_last_samples_of_a_vorbis_file_are_those_of_the_whole(tmp_path, seed):
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.1, int(rng.integers(40_000, 150_000)))
    soundfile.write(tmp_path / "a.ogg", noise, SAMPLE_RATE, subtype="VORBIS")
    whole = read(tmp_path / "a.ogg")
    for start in range(len(whole) - 6000, len(whole) - 2000, 500):
        crop = (start + 0.5) / (len(whole) - 2000 + 1)
        np.testing.assert_array_equal(
            read_crop(tmp_path / "a.ogg", 2000, crop)[0], whole[start : start + 2000]
        )


def test_what_libsndfile_cannot_decode_is_an_error_of_the_file(tmp_path):
    soundfile.write(tmp_path / "a.aiff", tone(300), SAMPLE_RATE, subtype="DWVW_16")
    with pytest.raises(AudioError, match=r"a\.aiff: cannot be decoded"):
        load_any(tmp_path / "a.aiff")


# ---- parts of files ---------------------------------------------------------------------------------------


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(300) + np.linspace(0, 0.3, 8000, dtype=np.float32), SAMPLE_RATE)
    return path


def test_a_range_of_samples_is_a_sound_of_its_own(sound):
    whole = read(sound)
    part = f"{sound}:1000:3000"
    np.testing.assert_array_equal(read(part), whole[1000:4000])
    np.testing.assert_array_equal(load_any(part), whole[1000:4000])
    np.testing.assert_array_equal(read_crop(part, 100, 0.5)[0], whole[2450:2550])
    assert num_samples(part) == 3000
    assert duration(part) == 3000 / SAMPLE_RATE
    assert sound_exists(part)
    assert not needs_conversion(part)


def test_a_range_counts_samples_at_the_files_own_rate(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(300, 1.0, 8000), 8000)
    assert header(path) == (8000, 8000)
    assert duration(f"{path}:4000:2000") == 0.25
    assert len(load_any(f"{path}:4000:2000")) == 4000


@pytest.mark.parametrize("part", ["7000:1001", "8001:1", "999999999999:1"])
def test_a_range_beyond_the_end_is_refused_with_the_length(sound, part):
    with pytest.raises(AudioError, match="the file has 8000 samples, fewer than"):
        read(f"{sound}:{part}")


def test_a_file_that_is_named_like_a_range_is_that_file(sound):
    named = sound.with_name("a.flac:0:10")
    named.write_bytes(sound.read_bytes())
    assert num_samples(named) == 8000


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_of_an_archive_is_read_from_its_bytes(tmp_path, sound, kind):
    archive = tmp_path / f"all.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as opened:
            opened.writestr("other", b"0" * 100)
            opened.write(sound, "a.flac")
    else:
        with tarfile.open(archive, "w") as opened:
            opened.add(sound, "a.flac")
    start, size = archive.read_bytes().index(b"fLaC"), sound.stat().st_size
    part = f"{archive}:{start}:{size}"
    np.testing.assert_array_equal(read(part), read(sound))
    assert sound_exists(part)
    assert not sound_exists(f"{archive}x:{start}:{size}")
    with pytest.raises(AudioError, match=rf"the archive has \d+ bytes, fewer than {start} \+ 999999"):
        read(f"{archive}:{start}:999999")


def test_a_compressed_member_is_refused_as_such(tmp_path, sound):
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.write(sound, "a.flac")
    with pytest.raises(AudioError, match="is compressed in its archive"):
        read(f"{archive}:36:1000")


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
def test_the_contents_of_a_range_are_its_samples(tmp_path, subtype):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(300), SAMPLE_RATE, subtype=subtype)
    suffix, data = contents(f"{path}:1000:3000")
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    assert (suffix, rate) == (".wav", SAMPLE_RATE)
    np.testing.assert_array_equal(samples, read(path)[1000:4000])


@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_sound_is_found_under_either_unicode_form(tmp_path, stored, asked):
    soundfile.write(tmp_path / unicodedata.normalize(stored, "größe.wav"), tone(300), SAMPLE_RATE)
    path = tmp_path / unicodedata.normalize(asked, "größe.wav")
    assert sound_exists(path)
    assert num_samples(path) == num_samples(f"{path}:0:8000") == 8000


# ---- what is not silent, empty or absent ------------------------------------------------------------------


@pytest.mark.parametrize("noise", [0.0, 0.005])
def test_channels_that_cancel_each_other_are_told_from_silence(tmp_path, noise):
    left = tone(300)
    right = -left + np.random.default_rng(0).normal(0, noise, len(left)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], 1), SAMPLE_RATE)
    with pytest.raises(AudioError, match=r"a\.wav: its channels have opposite polarity"):
        load_any(tmp_path / "a.wav")


def test_one_silent_channel_of_two_is_no_fault(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.stack([tone(300), 0 * tone(300)], 1), SAMPLE_RATE)
    np.testing.assert_allclose(load_any(tmp_path / "a.wav"), tone(300) / 2, atol=1e-4)


@pytest.mark.parametrize("kind", ["WAV", "WAVEX"])
def test_a_wav_whose_sizes_were_left_at_0_is_read_to_its_end(tmp_path, kind):
    path = tmp_path / "a.wav"
    soundfile.write(path, tone(300), SAMPLE_RATE, format=kind, subtype="PCM_16")
    whole, data = read(path), bytearray(path.read_bytes())
    place = data.index(b"data")
    data[4:8] = data[place + 4 : place + 8] = bytes(4)
    path.write_bytes(data)
    assert num_samples(path) == 8000
    np.testing.assert_array_equal(read_crop(path, 1000, 0.5)[0], whole[3500:4500])
    np.testing.assert_array_equal(load_any(path), whole)
    assert needs_conversion(path)


def test_a_wav_without_samples_before_further_chunks_is_empty(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.empty(0, np.float32), SAMPLE_RATE)
    with (tmp_path / "a.wav").open("ab") as file:
        file.write(b"LIST" + struct.pack("<I", 6000) + bytes(6000))
    with pytest.raises(AudioError, match=r"a\.wav: (holds no samples|its header states a length of 0)"):
        load_any(tmp_path / "a.wav")


@pytest.mark.parametrize("reader", [read, load_any, num_samples])
def test_a_header_that_cannot_be_true_is_refused(tmp_path, reader):
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(300), SAMPLE_RATE)
    data = bytearray(path.read_bytes())
    data[22:26] = b"\x7f" * 4
    path.write_bytes(data)
    with pytest.raises(AudioError, match=r"a\.flac: its header states \d+ samples, which \d+ bytes cannot"):
        reader(path)


def test_a_rate_that_cannot_be_true_is_refused(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(300), 3)
    with pytest.raises(AudioError, match=r"a\.wav: states a sample rate of 3 Hz"):
        load_any(tmp_path / "a.wav")


@pytest.mark.parametrize("reader", [read, load_any, duration])
def test_a_folder_and_an_odd_name_are_refused(tmp_path, reader):
    with pytest.raises(AudioError, match="is a folder"):
        reader(tmp_path)
    for name in ("a\0b.wav", "a" * 5000, "a" * 5000 + ".wav:0:1"):
        with pytest.raises(AudioError, match="there is no such sound file"):
            reader(tmp_path / name)


# ---- crops ------------------------------------------------------------------------------------------------


def test_a_silent_crop_moves_to_where_there_is_sound(tmp_path):
    path = tmp_path / "a.wav"
    quiet = np.full(16_000, 0.25, np.float32)
    gap = np.concatenate([quiet, tone(300) + 0.25, quiet, tone(700) + 0.25, quiet])
    soundfile.write(path, gap, SAMPLE_RATE)
    whole = read(path)
    onsets = {0.0: 16_001, 0.3: 18_933, 0.45: 40_001, 0.999: 48_000 - 4000}
    for crop, start in onsets.items():
        signal, moved = read_crop(path, 4000, crop)
        assert len(signal) == 4000
        assert np.abs(signal - signal.mean()).max() > 0.4
        assert moved == (crop != 0.3)
        if moved:
            np.testing.assert_array_equal(signal, whole[start : start + 4000])


def test_a_crop_with_some_sound_stays(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.concatenate([np.zeros(15_000, np.float32), tone(300)]), SAMPLE_RATE)
    signal, moved = read_crop(path, 16_000)
    assert not moved
    np.testing.assert_array_equal(signal, read(path)[:16_000])


@pytest.mark.parametrize("kind", ["MP3", "FLAC", "WAV"])
def test_the_companion_that_a_mac_adds_does_not_hide_a_sound(tmp_path, kind):
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, tone(300), SAMPLE_RATE, format=kind)
    (tmp_path / f"._{path.name}").write_bytes(b"\0\5\x16\7 of a Mac")
    assert len(load_any(path)) == num_samples(path) == 8000


def test_a_name_that_is_no_utf8_is_opened(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.wav")
    soundfile.write(tmp_path / "a.wav", tone(300), SAMPLE_RATE)
    (tmp_path / "a.wav").rename(path)
    assert num_samples(path) == 8000


def test_a_range_of_no_samples_is_refused_as_such(sound):
    with pytest.raises(AudioError, match="names 0 samples"):
        read(f"{sound}:5:0")


def test_a_wav_without_sizes_is_read_from_an_archive_too(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(300), SAMPLE_RATE, subtype="PCM_16")
    data = bytearray((tmp_path / "a.wav").read_bytes())
    place = data.index(b"data")
    data[4:8] = data[place + 4 : place + 8] = bytes(4)
    (tmp_path / "all.tar").write_bytes(bytes(512) + data)
    np.testing.assert_array_equal(read(f"{tmp_path}/all.tar:512:{len(data)}"), read(tmp_path / "a.wav"))
