import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import soundfile
from PIL import Image

from vgsplus.audio import SAMPLE_RATE, read
from vgsplus.corpora import Corpus, validate
from vgsplus.corpora.format import CaptionEntry
from vgsplus.corpora.sounds import Sound
from vgsplus.corpora.sources.stamps.corpus import image_digest, prepare_stamps, read_texts
from vgsplus.corpora.sources.stamps.splits import assign_splits, unite_copies
from vgsplus.errors import CorpusError

LANGUAGES = ("en", "bg", "pt_BR", "ru")


def tone(path: Path, pitch: float, seconds: float = 0.5, rate: int = 44_100, channels: int = 1):
    signal = 0.3 * np.sin(2 * np.pi * pitch * np.arange(int(seconds * rate)) / rate)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "WAV" if path.suffix == ".wav" else "OGG"
    soundfile.write(path, np.repeat(signal[:, None], channels, axis=1), rate, format=kind)


def picture(path: Path, seed: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 4), dtype=np.uint8)
    Image.fromarray(pixels, "RGBA").save(path)


def stamp(folder: Path, name: str, seed: int, languages=LANGUAGES):
    picture(folder / f"{name}.png", seed)
    (folder / f"{name}.txt").write_text(
        f"A {name}.\nbg.utf8=БГ {name}\npt_BR.utf8=Um {name}\n\nnot a line of a text\n", encoding="utf-8"
    )
    for index, language in enumerate(languages):
        ending = "" if language == "en" else f"_{language}"
        tone(folder / f"{name}_desc{ending}.ogg", 200 + 31 * seed + 7 * index)


@pytest.fixture(scope="module")
def stamps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stamps")
    for seed in range(14):
        stamp(folder, f"things/thing{seed}", seed)
    tone(folder / "things/thing0.ogg", 900)  # a sound effect
    tone(folder / "things/thing0_desc_da.ogg.ogg", 300)
    tone(folder / "things/thing1_desc_da.wav", 301, rate=8_000)
    tone(folder / "things/thing2_desc_da.ogg", 302, channels=2)
    tone(folder / "things/thing3_desc_da.ogg", 303, seconds=0.1)
    (folder / "things/thing4_desc_da.ogg").write_bytes(b"OggS and then nothing of the kind")
    soundfile.write(folder / "things/thing5_desc_da.ogg", np.zeros(8000), 16_000)
    tone(folder / "things/thing6_desc_ru.ogg.ogg", 306)
    tone(folder / "things/thing7_desc_Danish.ogg", 307)
    tone(folder / "none/nothing_desc_da.ogg", 308)
    tone(folder / "none/drawing_desc_da.ogg", 309)
    (folder / "none/drawing.svg").write_text("<svg/>")
    tone(folder / "none/silentfilm_desc_da.ogg", 310)
    picture(folder / "none/silentfilm.png", 99)
    tone(folder / "none/torn_desc_da.ogg", 311)
    (folder / "none/torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    (folder / "none/torn.txt").write_text("Torn.")
    return folder


@pytest.fixture(scope="module")
def prepared(stamps, tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora") / "stamps"
    return root, prepare_stamps(stamps, root)


def all_captions(corpus):
    return [caption for split in corpus.splits for caption in corpus.captions(split)]


def test_the_corpus_is_sound_and_says_what_it_left_out(prepared):
    root, summary = prepared
    assert validate(root) == []
    assert summary.skipped == {
        "shorter than 0.25 s": 1,
        "cannot be read as sound": 1,
        "is silent from start to end": 1,
        "second recording of a picture in a language": 1,
        "file name not understood": 1,
        "no picture": 1,
        "picture only as SVG": 1,
        "no text": 1,
        "broken picture": 1,
    }
    assert sum(count.captions for count in summary.kept.values()) == 14 * 4 + 3


def test_captions_hold_text_language_and_speaker_of_their_recording(prepared):
    captions = {caption.id: caption for caption in all_captions(Corpus.open(prepared[0]))}
    english, brazilian = captions["things/thing3_en"], captions["things/thing3_pt_BR"]
    assert (english.text, english.language, english.image) == (
        "A things/thing3.",
        "en",
        "things/thing3.png",
    )
    assert (brazilian.text, brazilian.speaker) == ("Um things/thing3", "pt_BR")
    assert captions["things/thing3_ru"].text is None
    assert not any("900" in caption.audio or caption.id == "things/thing0" for caption in captions.values())


@pytest.mark.parametrize("caption", ["things/thing0_da", "things/thing1_da", "things/thing2_da"])
def test_any_rate_channels_and_ending_become_16_khz_mono(prepared, caption):
    corpus = Corpus.open(prepared[0])
    found = next(one for one in all_captions(corpus) if one.id == caption)
    signal = read(corpus.audio_path(found))
    assert abs(len(signal) - SAMPLE_RATE // 2) < 100
    spectrum = np.abs(np.fft.rfft(signal))
    assert np.argmax(spectrum) * SAMPLE_RATE / len(signal) == pytest.approx(300, abs=6)


def test_oddities_licence_and_speakers_are_stated(prepared):
    info = Corpus.open(prepared[0]).info
    assert info["doubled_endings"] == ["things/thing0_desc_da.ogg.ogg"]
    assert "GPL-2" in info["licence"]
    assert "speaker" in info["provenance"]["speakers"]
    assert info["without_text"] == 14 + 3  # Russian and Danish have no text here


def test_pictures_are_copied_unchanged(prepared, stamps):
    corpus = Corpus.open(prepared[0])
    for image_id in corpus.image_ids:
        assert corpus.image_path(image_id).read_bytes() == (stamps / image_id).read_bytes()


def test_new_pictures_are_new_and_new_recordings_are_of_known_pictures(prepared):
    corpus = Corpus.open(prepared[0])
    images = {split: {one.image for one in corpus.captions(split)} for split in corpus.splits}
    assert set(images) == {"train", "validation", "test_recordings", "test_images"}
    assert not images["test_images"] & (images["train"] | images["validation"] | images["test_recordings"])
    assert images["test_recordings"] | images["validation"] <= images["train"]
    assert len(images["test_recordings"]) == len(corpus.captions("test_recordings"))
    new = Counter(one.image for one in corpus.captions("test_images"))
    assert all(count >= 4 for count in new.values())


def test_the_same_seed_gives_the_same_corpus_and_another_another(prepared, stamps, tmp_path):
    root = prepared[0]
    prepare_stamps(stamps, tmp_path / "same")
    prepare_stamps(stamps, tmp_path / "other", seed=1)
    for file in ("captions.jsonl", "corpus.json", "regions.h5"):
        assert (root / file).read_bytes() == (tmp_path / "same" / file).read_bytes()
    assert (root / "captions.jsonl").read_bytes() != (tmp_path / "other/captions.jsonl").read_bytes()


def recording(image, language, digest):
    name = f"{image}_{language}"
    entry = CaptionEntry(origin=name, audio="x", id=name, language=language, image=f"{image}.png")
    return entry, Sound(f"{name}.wav", 8000, digest)


def recordings(images: int, languages="abcdefgh"):
    return [recording(f"p{n}", language, f"{n}{language}") for n in range(images) for language in languages]


def digests(images: int):
    return {f"p{number}.png": f"look{number}" for number in range(images)}


def test_copied_sounds_and_pictures_alike_are_never_held_out():
    copied = {"0a": "1a", "2b": "3b"}
    found = [
        (entry, replace(sound, digest=copied.get(sound.digest, sound.digest)))
        for entry, sound in recordings(60)
    ]
    images = digests(60) | {"p4.png": "same", "p5.png": "same"}
    for seed in range(10):
        splits = assign_splits(found, images, seed)
        new = {name.split("_")[0] for name, split in splits.items() if split == "test_images"}
        assert not new & {"p0", "p1", "p2", "p3", "p4", "p5"}
        assert {splits[name] for name in ("p0_a", "p1_a", "p2_b", "p3_b")} == {"train"}


def test_held_out_recordings_are_spread_over_the_languages():
    found = [*recordings(100), *recordings(30, languages="z")]
    splits = assign_splits(found, digests(100), seed=3)
    held = Counter(name[-1] for name, split in splits.items() if split == "test_recordings")
    assert sum(held.values()) == 86  # 100 less a seventh of new pictures
    assert set(held) == set("abcdefghz")
    assert (
        max(held[language] for language in "abcdefgh") - min(held[language] for language in "abcdefgh") <= 2
    )
    assert held["z"] < held["a"]


def test_pictures_with_few_recordings_keep_them_for_training():
    found = [*recordings(40), *recordings(50, languages="ab")[2 * 40 :]]
    splits = assign_splits(found, digests(50), seed=0)
    few = {split for name, split in splits.items() if int(name[1:-2]) >= 40}
    assert few <= {"train", "test_images"}
    left = Counter(name[:-2] for name, split in splits.items() if split == "train")
    assert min(left.values()) >= 2


def test_one_recording_encoded_twice_is_one_sound(tmp_path):
    generator = np.random.default_rng(0)
    signal = generator.normal(0, 0.1, 8000)
    signals = {
        "a": signal,
        "b": signal + generator.normal(0, 0.005, 8000),
        "c": generator.normal(0, 0.1, 8000),
    }
    found = [recording(name, "bg", f"sound {name}") for name in signals]
    for (_, sound), samples in zip(found, signals.values(), strict=True):
        soundfile.write(tmp_path / sound.audio, samples, SAMPLE_RATE)
    united = [sound.digest for _, sound in unite_copies(found, tmp_path)]
    assert united == ["sound a", "sound a", "sound c"]


def test_mirrored_and_transparent_pixels_do_not_make_another_look():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 4), dtype=np.uint8)
    pixels[:, 0, 3] = 0
    hidden = pixels.copy()
    hidden[:, 0, :3] = 7
    look = image_digest(Image.fromarray(pixels, "RGBA"))
    assert look == image_digest(Image.fromarray(hidden, "RGBA"))
    assert look == image_digest(Image.fromarray(np.ascontiguousarray(pixels[:, ::-1]), "RGBA"))
    assert look != image_digest(Image.fromarray(np.ascontiguousarray(pixels[::-1]), "RGBA"))


def test_an_empty_text_and_a_byte_order_mark_are_survived(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffA frog.\nbg.utf8=\nru.utf8=Жаба = жаба\n".encode())
    (tmp_path / "b.txt").write_bytes(b"")
    assert read_texts(tmp_path / "a.txt") == {"en": "A frog.", "ru": "Жаба = жаба"}
    assert read_texts(tmp_path / "b.txt") == {}


@pytest.mark.parametrize("case", ["absent", "empty", "no pictures"])
def test_a_folder_that_holds_no_stamps_is_refused_with_the_mend(tmp_path, case):
    folder = tmp_path / "folder"
    if case != "absent":
        folder.mkdir()
    if case == "no pictures":
        tone(folder / "a_desc_bg.ogg", 300)
    with pytest.raises(CorpusError, match="apt-get install tuxpaint-stamps-default"):
        prepare_stamps(folder, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} <= {"folder"}


def test_an_existing_corpus_is_replaced_only_on_demand(prepared, stamps, recorded_progress):
    root = prepared[0]
    with pytest.raises(CorpusError, match="overwrite"):
        prepare_stamps(stamps, root)
    prepare_stamps(stamps, root, overwrite=True, progress=recorded_progress)
    assert recorded_progress.of("sounds")[-1] == (14 * 4 + 6, 14 * 4 + 6)
    assert validate(root) == []


def test_pictures_may_be_described_by_a_file_of_regions(stamps, tmp_path):
    pictures = sorted(stamps.rglob("*.png"))
    with h5py.File(tmp_path / "regions.h5", "w") as file:
        file["features"] = np.ones((len(pictures), 2, 3), np.float16)
        file["boxes"] = np.zeros((len(pictures), 2, 4), np.float32)
        text = h5py.string_dtype("utf-8")
        file.create_dataset("image_ids", data=[one.name for one in pictures], dtype=text)
        digests = [hashlib.sha256(one.read_bytes()).hexdigest() for one in pictures]
        file.create_dataset("sha256", data=digests, dtype=text)
        file.attrs["provenance"] = '{"model": "ones"}'
    prepare_stamps(stamps, tmp_path / "out", regions=tmp_path / "regions.h5")
    corpus = Corpus.open(tmp_path / "out")
    assert (corpus.num_regions, corpus.feature_dim) == (2, 3)
    assert corpus.info["provenance"]["regions"] == {"model": "ones"}
    with h5py.File(tmp_path / "regions.h5", "r+") as file:
        file["sha256"][pictures.index(stamps / "things/thing3.png")] = "0" * 64
    with pytest.raises(CorpusError, match=r"thing3\.png: .* holds no regions"):
        prepare_stamps(stamps, tmp_path / "out", regions=tmp_path / "regions.h5", overwrite=True)
