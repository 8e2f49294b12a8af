import json
import re
from itertools import product

import numpy as np
import pytest
from PIL import Image

from vgsplus.audio import SAMPLE_RATE, is_silent, read
from vgsplus.corpora import Corpus, validate
from vgsplus.corpora.alignments.folder import read_alignments
from vgsplus.corpora.sources.toy.corpus import TOKENS_PER_CELL, VOICES, prepare_toy
from vgsplus.corpora.sources.toy.espeak import Voice, speak
from vgsplus.corpora.sources.toy.pictures import SIDE, box_of, draw
from vgsplus.corpora.sources.toy.scenes import COLOURS, HELD_OUT, SHAPES, Scene, Thing, describe, draw_scene
from vgsplus.errors import VgsplusError
from vgsplus.regions.pixel_grid import PIXEL_GRID

SIZES = {"train_images": 24, "validation_images": 3, "test_images": 12}


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora") / "toy"
    prepare_toy(root, **SIZES)
    return root


@pytest.fixture(scope="module")
def items(toy):
    lines = (toy / "test.item").read_text().splitlines()
    assert lines[0] == "#file onset offset #phone prev-phone next-phone speaker"
    return [line.split() for line in lines[1:]]


def contents(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_corpus_is_sound_and_of_the_sizes_asked_for(toy):
    assert validate(toy) == []
    corpus = Corpus.open(toy)
    assert {split: len(corpus.captions(split)) for split in corpus.splits} == {
        "train": 120,
        "validation": 15,
        "test": 60,
    }


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(toy, tmp_path, recorded_progress):
    prepare_toy(tmp_path / "again", **SIZES, workers=2, progress=recorded_progress)
    assert contents(tmp_path / "again") == contents(toy)
    assert recorded_progress.of("images") == [(done, 39) for done in range(1, 40)]


def test_another_seed_gives_another_corpus(toy, tmp_path):
    prepare_toy(tmp_path / "other", train_images=2, validation_images=1, test_images=1, seed=1)
    ours, other = contents(toy), contents(tmp_path / "other")
    assert ours["images/train/000000.png"] != other["images/train/000000.png"]
    assert ours["audio/train/000000_0.wav"] != other["audio/train/000000_0.wav"]


def test_the_captions_of_an_image_differ_in_words_and_speaker(toy):
    corpus = Corpus.open(toy)
    for split in corpus.splits:
        captions = corpus.captions(split)
        for image in {caption.image for caption in captions}:
            own = [caption for caption in captions if caption.image == image]
            assert len(own) == len({caption.text for caption in own}) == 5
            assert len({caption.speaker for caption in own}) == 5
    assert len({caption.speaker for caption in corpus.captions("test")}) >= 12


def test_speech_is_audible_and_of_the_length_of_a_sentence(toy):
    corpus = Corpus.open(toy)
    lengths = []
    for caption in corpus.captions("test"):
        samples = read(corpus.audio_path(caption))
        assert 0.01 < samples.std() < 0.5
        lengths.append(len(samples) / SAMPLE_RATE)
    assert 1.5 < np.mean(lengths) < 2.5
    assert min(lengths) > 0.5
    assert max(lengths) < 4.5


def test_no_split_has_no_images(tmp_path):
    with pytest.raises(VgsplusError, match="at least one image, asked for test 0"):
        prepare_toy(tmp_path / "toy", test_images=0)
    assert not (tmp_path / "toy").exists()


# Scenes and captions


def test_only_test_scenes_show_held_out_combinations():
    for number in range(300):
        rng = np.random.default_rng(number)
        assert draw_scene(rng, held_out=True).held_out
        assert not draw_scene(rng, held_out=False).held_out


def test_the_corpus_says_what_is_held_out(toy):
    provenance = json.loads((toy / "corpus.json").read_text())["provenance"]
    assert provenance["regions"] == PIXEL_GRID
    told = set(provenance["held_out"])
    assert told == {f"{colour} {shape}" for shape, colour in HELD_OUT}
    captions = Corpus.open(toy).captions("train")
    assert not any(pair in caption.text for pair, caption in product(told, captions))


def test_training_uses_every_word_of_the_test():
    def words(start, *, held_out):
        rngs = [np.random.default_rng([start, number]) for number in range(400)]
        return {
            word
            for rng in rngs
            for text in describe(draw_scene(rng, held_out=held_out), rng, 5)
            for word in text.split()
        }

    assert words(1, held_out=True) <= words(0, held_out=False)
    assert {*SHAPES, *COLOURS} <= words(0, held_out=False)


def thing(shape="star", colour="red", x=0.5, y=0.5, *, radius=0.15):
    return Thing(shape, colour, "big", x, y, radius, 0.0)


@pytest.mark.parametrize(
    ("place", "true", "false"),
    [
        ((0.2, 0.5), {"left"}, {"right", "above", "over", "below", "under", "beneath"}),
        ((0.5, 0.2), {"above", "over"}, {"left", "right", "below", "under", "beneath"}),
    ],
)
def test_captions_tell_relations_as_they_are(place, true, false):
    scene = Scene((thing("star", x=place[0], y=place[1]), thing("moon", "blue", x=0.5, y=0.5)), 0.0)
    texts = describe(scene, np.random.default_rng(0), 80)
    # What stands between the two nouns tells where the first is as seen from the second.
    between = [
        text.split(" star ")[1].split(" moon")[0]
        for text in texts
        if re.search(r"^(a|the) .*star .* moon$", text)
    ]
    said = {word for words in between for word in words.split()}
    assert said & true
    assert not said & false


def test_captions_of_askew_things_tell_no_relation():
    scene = Scene((thing("star", x=0.2, y=0.2), thing("moon", "blue", x=0.7, y=0.7)), 0.0)
    said = {word for text in describe(scene, np.random.default_rng(0), 60) for word in text.split()}
    assert not said & {"left", "right", "above", "over", "below", "under", "beneath"}


def test_captions_name_only_what_is_there():
    rng = np.random.default_rng(5)
    for _ in range(50):
        scene = draw_scene(rng, held_out=False)
        said = {word for text in describe(scene, rng, 5) for word in text.split()}
        assert said & set(SHAPES) <= {thing.shape for thing in scene.things}
        assert said & set(COLOURS) <= {thing.colour for thing in scene.things}
        assert not said & {"small", "little", "tiny"} or any(thing.size == "small" for thing in scene.things)


def test_things_stay_inside_the_picture_and_apart():
    for number in range(300):
        things = draw_scene(np.random.default_rng(number), held_out=False).things
        for one in things:
            assert one.radius * 0.8 < min(one.x, one.y, 1 - one.x, 1 - one.y)
        for one, other in product(things, things):
            apart = np.hypot(one.x - other.x, one.y - other.y)
            assert one is other or apart > 0.75 * (one.radius + other.radius)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_drawn_in_its_colour_and_differs_from_the_others(shape):
    picture = draw(Scene((thing(shape, "blue", radius=0.3),), 0.0))
    assert picture.size == (SIDE, SIDE)
    pixels = np.asarray(picture).astype(int)
    blue = pixels[..., 2] - pixels[..., 0] > 60
    assert 0.03 < blue.mean() < 0.35
    for other in set(SHAPES) - {shape}:
        drawn = np.asarray(draw(Scene((thing(other, "blue", radius=0.3),), 0.0))).astype(int)
        assert (np.abs(drawn - pixels).max(axis=2) > 60).mean() > 0.01


def test_pictures_on_disk_are_the_scenes(toy):
    with Image.open(toy / "images" / "train" / "000000.png") as picture:
        assert (picture.size, picture.mode) == ((SIDE, SIDE), "RGB")


# Speech and phones


def test_speech_does_not_depend_on_what_was_spoken_before():
    voice, other = VOICES["us-ben"], VOICES["sc-neil"]
    (first,) = speak([(voice, "a red star")])
    speak([(other, "something else entirely")])
    again, _ = speak([(voice, "a red star"), (other, "more")])
    np.testing.assert_array_equal(first.samples, again.samples)
    assert first.phones == again.phones


def test_every_speaker_sounds_different():
    spoken = [speak([(voice, "a red star")])[0].samples for voice in VOICES.values()]
    assert len({samples.tobytes() for samples in spoken}) == len(VOICES)


def test_phones_cover_the_speech_and_tell_what_is_said():
    (speech,) = speak([(VOICES["us-adam"], "a small fish")])
    assert "".join(phone.name for phone in speech.phones).startswith("ɐsm")
    assert speech.phones[-1].name == "ʃ"
    assert speech.phones[0].onset == 0
    assert speech.phones[-1].offset == pytest.approx(len(speech.samples) / SAMPLE_RATE, abs=1e-3)
    for phone, after in zip(speech.phones, speech.phones[1:], strict=False):
        assert phone.offset == after.onset
    for phone in speech.phones:
        assert phone.offset - phone.onset >= 0.03
        span = speech.samples[int(phone.onset * SAMPLE_RATE) : int(phone.offset * SAMPLE_RATE)]
        assert not is_silent(span)


def test_phone_times_point_at_the_sound():
    (speech,) = speak([(VOICES["us-adam"], "a small fish")])

    def crossings(name):
        phone = next(phone for phone in speech.phones if phone.name == name)
        span = speech.samples[int(phone.onset * SAMPLE_RATE) : int(phone.offset * SAMPLE_RATE)]
        return np.mean(np.diff(np.sign(span)) != 0)

    assert min(crossings("s"), crossings("ʃ")) > 2 * max(crossings("m"), crossings("ɔː"))


def test_unknown_voices_and_empty_sentences_are_refused():
    with pytest.raises(VgsplusError, match="has no voice 'xx-none'"):
        speak([(Voice("xx-none", rate=170, pitch=50), "a")])
    with pytest.raises(VgsplusError, match="no samples"):
        speak([(VOICES["us-adam"], "")])


def test_items_lie_in_their_caption_and_name_their_speaker(toy, items):
    captions = {caption.id: caption for caption in Corpus.open(toy).captions("test")}
    for file, onset, offset, *names, speaker in items:
        assert 0 < float(onset) < float(offset) < captions[file].num_samples / SAMPLE_RATE
        assert float(offset) - float(onset) >= 0.0299
        assert "SIL" not in names
        assert captions[file].speaker == speaker


def test_items_allow_both_abx_conditions(items):
    speakers, tokens = {}, {}
    for _, _, _, phone, before, after, speaker in items:
        speakers.setdefault((before, after), {}).setdefault(phone, set()).add(speaker)
        cell = (phone, before, after, speaker)
        tokens[cell] = tokens.get(cell, 0) + 1
    assert 2 <= max(tokens.values()) <= TOKENS_PER_CELL
    contrasts = [phones for phones in speakers.values() if len(phones) > 1]
    assert any(len(names) > 1 for phones in contrasts for names in phones.values())
    assert len(contrasts) > 10


def test_words_are_those_of_the_caption_and_begin_with_a_phone():
    (speech,) = speak([(VOICES["us-adam"], "a small fish next to the left of an orange moon")])
    assert [word.name for word in speech.words] == [
        *("a", "small", "fish", "next", "to", "the", "left", "of_an", "orange", "moon")
    ]
    assert {word.onset for word in speech.words} <= {phone.onset for phone in speech.phones}
    for word, after in zip(speech.words, speech.words[1:], strict=False):
        assert word.onset < word.offset <= after.onset


def test_the_words_of_every_split_are_an_alignment_of_its_captions(toy):
    corpus = Corpus.open(toy)
    for split in corpus.splits:
        aligned = read_alignments(toy / f"{split}.ctm", words=True, audio_root=toy / "audio")
        spoken = {track.file: " ".join(segment.label for segment in track.segments) for track in aligned}
        captions = corpus.captions(split)
        assert [text.replace("_", " ") for text in spoken.values()] == [caption.text for caption in captions]
        assert all(caption.id.endswith(file) for file, caption in zip(spoken, captions, strict=True))


def test_a_box_holds_all_of_a_thing_and_nothing_else():
    rng = np.random.default_rng(3)
    for shape in SHAPES:
        thing = Thing(shape, "black", "big", *rng.uniform(0.3, 0.7, 2), 0.2, rng.uniform(-12, 12))
        drawn, empty = (np.asarray(draw(Scene(things, 0.5)), int) for things in ((thing,), ()))
        rows, columns = np.abs(drawn - empty).max(-1).nonzero()
        extent = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / SIDE
        np.testing.assert_allclose(box_of(thing), extent, atol=0.025)  # of pixels and the edge


def test_every_shape_that_is_spoken_has_a_box_at_its_time(toy):
    for split in ("train", "validation", "test"):
        header, *lines = (toy / f"{split}.boxes").read_text().splitlines()
        assert header == "#file onset offset word x1 y1 x2 y2"
        named = [line.split() for line in lines]
        spoken = [line.split() for line in (toy / f"{split}.ctm").read_text().splitlines()]
        shapes = [(row, shape) for row in spoken for shape in row[4].split("_") if shape in SHAPES]
        assert [(row[0], row[3]) for row in named] == [(row[0], shape) for row, shape in shapes]
        times = [(float(row[2]), float(row[2]) + float(row[3])) for row, _ in shapes]
        assert np.array([row[1:3] for row in named], float) == pytest.approx(np.array(times), abs=2e-4)
