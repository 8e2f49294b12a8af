import csv
import dataclasses
import itertools
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from vgsplus import audio
from vgsplus.cli import main
from vgsplus.corpora.sources.toy.corpus import prepare_toy
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.abx import score
from vgsplus.evaluation.abx_items import read_items
from vgsplus.evaluation.abx_layers import (
    AbxResults,
    AbxTask,
    log_mel,
    score_layers,
    score_log_mel,
    untrained_model,
)
from vgsplus.evaluation.hidden_states import (
    LayerStore,
    frame_rate,
    iterate_hidden_states,
    max_missing_frames,
    parse_layers,
    receptive_field_shift,
)
from vgsplus.progress import Progress

STANDARD = ((4, 10, 5), *[(8, 3, 2)] * 4, *[(8, 2, 2)] * 2)
FAST = STANDARD[:-1]  # 10 ms, as the paper's text has it
WIDE = ((4, 10, 5), *[(8, 3, 2)] * 4, (8, 4, 2), (8, 8, 2))  # 95 ms every 20 ms, as the toy preset


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora") / "toy"
    prepare_toy(root, train_images=1, validation_images=1, test_images=6)
    return root


@pytest.fixture(scope="module")
def task(toy):
    return AbxTask(items=read_items(toy / "test.item", audio_root=toy / "audio"))


def features_of(model, task, layer):
    """The features of a layer as `score` takes them, each file alone in its pass."""
    features = {}
    for file, path in task.items.audio.items():
        wave = torch.from_numpy(audio.normalise(audio.read(path)))[None]
        with torch.no_grad():
            outputs, _ = model.speech_layers(wave, torch.tensor([wave.shape[1]]))
        features[file] = outputs[layer - 1][0]
    return features


# ---- layers -----------------------------------------------------------------------------------------------


def test_each_layer_has_the_score_of_its_features(task, make_model):
    model = make_model()
    rows = score_layers(model, task, batch_seconds=5)
    assert [(row.features, row.layer, row.context, row.as_published) for row in rows] == [
        ("model", layer, "within", False) for layer in (1, 2, 3)
    ]
    for row in rows:
        expected = score(features_of(model, task, row.layer), task.items.path)
        assert row.errors == pytest.approx(expected, abs=2e-3)
    assert len({row.errors["across"] for row in rows}) == 3


def test_published_rows_come_beside_the_corrected_ones(task, make_model):
    asked = dataclasses.replace(task, as_published=True, conditions=("within",))
    model = make_model()
    rows = score_layers(model, asked, layers=[2])
    assert [row.as_published for row in rows] == [False, True]
    features = features_of(model, task, 2)
    for row in rows:
        expected = score(features, task.items.path, conditions=["within"], as_published=row.as_published)
        assert row.errors == pytest.approx(expected, abs=2e-3)


def test_one_pass_serves_all_layers(task, monkeypatch, make_model):
    model, lengths = make_model(), []
    run = model.speech_layers
    monkeypatch.setattr(
        model, "speech_layers", lambda waves, samples: lengths.extend(samples.tolist()) or run(waves, samples)
    )
    score_layers(model, dataclasses.replace(task, as_published=True))
    assert sorted(lengths) == sorted(len(audio.read(path)) for path in task.items.audio.values())


def test_batches_are_bounded_and_longest_first(task, monkeypatch, make_model):
    model, batches = make_model(), []
    run = model.speech_layers
    monkeypatch.setattr(
        model, "speech_layers", lambda waves, samples: batches.append(waves.shape) or run(waves, samples)
    )
    list(iterate_hidden_states(model, task.items.audio, [1], batch_seconds=6))
    assert all(rows * samples <= 6 * 16_000 for rows, samples in batches)
    assert max(rows for rows, _ in batches) > 1
    assert [samples for _, samples in batches] == sorted((s for _, s in batches), reverse=True)
    batches.clear()
    list(iterate_hidden_states(model, task.items.audio, [1], batch_seconds=0.1))
    assert all(rows == 1 for rows, _ in batches)


def test_published_padding_hears_one_file_at_a_time(task, make_model):
    model = make_model(padding="published")
    rows = score_layers(model, task, layers=[3])
    expected = score(features_of(model, task, 3), task.items.path)
    assert rows[0].errors == pytest.approx(expected, abs=1e-6)


def test_the_model_keeps_its_modes_and_gathers_no_gradient(task, make_model):
    model = make_model().train()
    model.image.eval()
    before = [module.training for module in model.modules()]
    for _, outputs in itertools.islice(iterate_hidden_states(model, task.items.audio, [1, 3]), 1):
        assert not any(output.requires_grad for output in outputs)
    score_layers(model, task, layers=[1])
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("kept", ["memory", "folder"])
def test_frames_are_kept_where_asked_and_nothing_stays(task, tmp_path, kept, make_model):
    model = make_model()
    seen = []

    def open_files():
        """Files without a name of their own are those below the folder, as "…/new/#123 (deleted)"."""
        links = [link.readlink() for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return sum(link.is_relative_to(tmp_path) for link in links)

    class Watch(Progress):
        def update(self, stage, done, total=None, *_):
            seen.append((stage, done, total, open_files()))

    cache = tmp_path / "new" if kept == "folder" else None
    rows = score_layers(model, task, layers=[1, 2], cache=cache, progress=Watch())
    assert [row.errors for row in rows] == [row.errors for row in score_layers(model, task, layers=[1, 2])]
    files, pairs = len(task.items.audio), 2 * task.scorers(50)[0].pairs
    assert [entry[:3] for entry in seen[:files]] == [
        ("model: files", done, files) for done in range(1, files + 1)
    ]
    assert {entry[0] for entry in seen[files:]} == {"model: pairs of tokens"}
    assert {entry[2] for entry in seen[files:]} == {pairs}
    done = [entry[1] for entry in seen[files:]]
    assert (done[0], done[-1]) == (0, pairs)
    assert done == sorted(done)
    held = [entry[3] for entry in seen]
    assert held == sorted(held, reverse=True)
    assert set(held) == ({2, 1, 0} if kept == "folder" else {0})
    assert not [path for path in tmp_path.rglob("*") if path != cache]


def test_a_store_gives_back_what_it_was_given(tmp_path):
    frames = torch.randn(9, 4)
    for folder in (None, tmp_path):
        store = LayerStore([1, 5], folder)
        for part in frames.split([2, 3, 4]):
            store.add(5, part)
            store.add(1, -part)
        assert torch.equal(store.take(5), frames)
        assert torch.equal(store.take(1), -frames)


def test_a_folder_that_cannot_be_written_is_an_error_to_read(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VgsplusError, match="the frames of the layers cannot be written there"):
        LayerStore([1, 2], tmp_path / "file" / "folder")


# ---- frames of other encoders -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("convolutions", "rate", "field", "lead"),
    [
        (STANDARD, 50, 400, 0),
        (FAST, 100, 240, 0),
        (WIDE, 50, 1520, 2),
        (((4, 10, 7),), Fraction(16000, 7), 10, 0),
    ],
)
def test_rate_and_lead_come_from_the_convolutions(convolutions, rate, field, lead, make_model):
    model = make_model(conv_layers=convolutions)
    assert frame_rate(model) == rate
    assert model.speech.waveform.receptive_field == field
    assert model.speech.waveform.num_frames(torch.tensor([field - 1, field])).tolist() == [0, 1]
    assert receptive_field_shift(model) == lead


@pytest.mark.parametrize("convolutions", [STANDARD, FAST, WIDE])
def test_no_sound_lacks_more_frames_than_is_said(convolutions, make_model):
    model = make_model(conv_layers=convolutions)
    encoder = model.speech.waveform
    samples = torch.arange(encoder.receptive_field, encoder.receptive_field + 3 * encoder.stride)
    asked = torch.floor(samples / encoder.stride + 0.5) - receptive_field_shift(model)
    missing = asked - encoder.num_frames(samples)
    assert 0 < int(missing.max()) <= max_missing_frames(model)


def test_a_faster_encoder_is_scored_at_its_own_rate(task, make_model):
    model = make_model(conv_layers=FAST)
    (row,) = score_layers(model, task, layers=[1])
    expected = score(features_of(model, task, 1), task.items.path, 100)
    assert row.errors == pytest.approx(expected, abs=2e-3)


def test_a_wide_encoder_is_read_where_it_hears(task, make_model):
    model = make_model(conv_layers=WIDE)
    (row,) = score_layers(model, task, layers=[1])
    led = {
        file: torch.cat([frames[:1].expand(2, -1), frames, frames[-1:].expand(2, -1)])
        for file, frames in features_of(model, task, 1).items()
    }
    assert row.errors == pytest.approx(score(led, task.items.path), abs=2e-3)


# ---- baselines --------------------------------------------------------------------------------------------


def test_an_untrained_model_is_drawn_from_its_seed_and_leaves_the_generator(task, make_model):
    model = make_model(seed=9)
    before = torch.random.get_rng_state()
    untrained = untrained_model(model.config, seed=4)
    assert torch.equal(torch.random.get_rng_state(), before)
    (row,) = score_layers(untrained, task, layers=[2], features="untrained")
    (expected,) = score_layers(make_model(seed=4), task, layers=[2])
    assert (row.features, row.layer, row.errors) == ("untrained", 2, expected.errors)


def test_log_mel_energies_have_a_row(task):
    (row,) = score_log_mel(task)
    features = {file: log_mel(audio.read(path)) for file, path in task.items.audio.items()}
    assert (row.features, row.layer) == ("log-Mel", None)
    assert row.errors == score(features, task.items.path, 100)


# ---- results that are continued ---------------------------------------------------------------------------


def scored(model, task, folder, layers=None, fail=None, **settings):
    """Score with results in a folder; after `fail` layers the evaluation is interrupted."""
    calls, tables = [], []

    class Stop(Progress):
        def update(self, stage, *_):
            calls.append(stage)

        def note(self, text):
            calls.append(text)
            if fail and sum(", layer" in call for call in calls) == fail:
                raise KeyboardInterrupt

    results = AbxResults(folder / "abx.json", task, tables.append)
    settings = {"layers": layers, "results": results, "progress": Stop()} | settings
    try:
        rows = score_layers(model, task, **settings)
    except KeyboardInterrupt:
        return tables[-1], calls, tables
    return rows, calls, tables


def test_an_interrupted_evaluation_continues_with_what_is_missing(task, tmp_path, make_model):
    task, model = dataclasses.replace(task, as_published=True), make_model()
    expected = score_layers(model, task)
    found, _, _ = scored(model, task, tmp_path, fail=1)
    assert found == expected[:2]
    found, calls, tables = scored(make_model(), task, tmp_path)
    assert found == expected
    assert tables == [expected[:2], expected[:4], expected]
    assert [call.split(":")[0] for call in calls if ", layer" in call] == [
        f"model, layer {layer}" for layer in (2, 2, 3, 3)
    ]
    found, calls, tables = scored(make_model(), task, tmp_path)
    assert (found, calls, tables) == (expected, [], [expected])
    assert scored(model, task, tmp_path, layers=[3])[::2] == (expected[4:], [expected[4:]])
    assert scored(model, task, tmp_path)[1] == []


@pytest.mark.parametrize("other", ["weights", "conditions", "sounds", "items"])
def test_rows_of_other_inputs_are_not_taken_over(toy, task, tmp_path, make_model, other):
    model = make_model()
    scored(model, task, tmp_path, layers=[1])
    if other == "weights":
        model = make_model(seed=1)
    elif other == "conditions":
        task = dataclasses.replace(task, conditions=("within",))
    else:
        shutil.copytree(toy / "audio", tmp_path / "audio")
        item = Path(shutil.copy(toy / "test.item", tmp_path))
        if other == "items":
            lines = item.read_text().splitlines()
            item.write_text("\n".join(lines[:-1]) + "\n")
        else:
            sound = tmp_path / "audio" / next(iter(task.items.audio.values())).relative_to(toy / "audio")
            audio.write_wav(sound, audio.read(sound)[::-1])
        task = dataclasses.replace(task, items=read_items(item, audio_root=tmp_path / "audio"))
    found, calls, _ = scored(model, task, tmp_path, layers=[1])
    assert found == score_layers(model, task, layers=[1])
    assert any("files" in call for call in calls)


def test_kinds_of_features_are_kept_beside_each_other(task, tmp_path, make_model):
    tables = []
    for _ in range(2):
        results = AbxResults(tmp_path / "abx.json", task, tables.append)
        rows = score_layers(make_model(), task, layers=[1], results=results)
        rows += score_log_mel(task, results=results)
        assert rows == tables[-1]
    assert tables == [rows[:1], rows, rows[:1], rows]


@pytest.mark.parametrize(
    "text", ["", "[]", '{"model": {}}', '{"model": {"inputs": "", "rows": [{"layer": 1}]}}']
)
def test_a_broken_file_of_results_is_named(task, tmp_path, text):
    (tmp_path / "abx.json").write_text(text)
    with pytest.raises(VgsplusError, match=r"abx\.json: is broken .* Remove it"):
        AbxResults(tmp_path / "abx.json", task, print)


# ---- errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "chosen"), [("all", (1, 2, 3)), ("2", (2,)), ("3,1,3", (3, 1)), (" 1, 2 ", (1, 2))]
)
def test_layers_are_chosen_by_number(text, chosen):
    assert parse_layers(text, 3) == chosen


@pytest.mark.parametrize("text", ["0", "4", "1,4", "-1", "one", "", "1,", "²"])
def test_layers_that_are_not_there_are_refused(text):
    with pytest.raises(VgsplusError, match="name layers from 1 to 3"):
        parse_layers(text, 3)


def test_a_diverged_model_is_named(task, make_model):
    model = make_model()
    with torch.no_grad():
        model.speech.layers[1].ffn_norm.bias.fill_(torch.nan)
    with pytest.raises(VgsplusError, match=r"layer 2 are not finite. The model has diverged"):
        score_layers(model, task)


def test_a_sound_shorter_than_a_frame_is_named(tmp_path, make_model):
    soundfile.write(tmp_path / "f.wav", np.sin(np.arange(300)), 16_000)
    with pytest.raises(VgsplusError, match=r"f\.wav: is too short for one frame"):
        list(iterate_hidden_states(make_model(), {"f": tmp_path / "f.wav"}, [1]))


# ---- the command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, make_model, save_run):
    run = tmp_path_factory.mktemp("runs") / "run"
    return save_run(make_model(), run)


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "abx", *map(str, arguments)])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def read_csv(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_command_scores_every_layer(toy, run_folder, task, capsys, make_model):
    code, out, err = command(capsys, run_folder, toy / "test.item", toy / "audio")
    assert code == 0, err
    rows = read_csv(run_folder / "abx.csv")
    expected = score_layers(make_model(), task)
    assert [(row["features"], row["layer"], row["condition"], float(row["error"])) for row in rows] == [
        ("model", str(row.layer), condition, error)
        for row in expected
        for condition, error in row.errors.items()
    ]
    assert {row["protocol"] for row in rows} == {"corrected"}
    for condition in ("within", "across"):
        best = min(row.errors[condition] for row in expected)
        assert f"{100 * best:.2f}*" in out
    assert f"{len(task.items.tokens)} tokens" in out
    assert str(run_folder / "abx.csv") in out
    assert {path.name for path in run_folder.iterdir()} == {"abx.csv", "abx.json", "checkpoints"}
    assert f"model, layer 2: {100 * expected[1].errors['within']:.2f} % within" in err


def test_the_command_takes_every_option(toy, run_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    arguments = ["--layers", "1,3", "--condition", "within", "--context", "any", "--as-published"]
    code, out, err = command(
        capsys,
        run_folder,
        toy / "validation.item",
        toy,
        *arguments,
        "--baseline",
        "--out",
        tmp_path / "deep" / "out",
    )
    assert code == 0, err
    rows = read_csv(tmp_path / "deep" / "out" / "abx.csv")
    assert [(row["features"], row["layer"], row["protocol"]) for row in rows] == [
        (features, layer, protocol)
        for features, layer in [
            ("model", "1"),
            ("model", "3"),
            ("untrained", "1"),
            ("untrained", "3"),
            ("log-Mel", ""),
        ]
        for protocol in ("corrected", "as published")
    ]
    assert {(row["context"], row["condition"]) for row in rows} == {("any", "within")}
    assert "within, as published" in out
    assert "across" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "4"], "There is no layer '4'"),
        (["--condition", "between"], "Choose from within, across; got between"),
    ],
)
def test_the_command_reports_what_is_wrong(toy, run_folder, capsys, arguments, message):
    code, _, err = command(capsys, run_folder, toy / "test.item", toy / "audio", *arguments)
    assert code == 1
    assert message in err


def test_the_command_checks_the_items_before_the_model(toy, tmp_path, capsys):
    code, _, err = command(capsys, tmp_path / "no-run", toy / "test.item", toy / "images")
    assert code == 1
    assert f"{toy / 'images'}: holds no sound files" in err
