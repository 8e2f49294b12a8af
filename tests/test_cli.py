import json
import shlex
import shutil

import pytest
from typer.main import get_command

from vgsplus.cli import app, main
from vgsplus.config import load_config, save_config
from vgsplus.doctor.run import recorded_command


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return stop.value.code, out, err


def test_help_lists_the_commands(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("data", "train", "reproduce", "embed", "evaluate", "report", "doctor"):
        assert command in out


def test_help_of_data_lists_the_corpora(capsys):
    code, out, _ = run(capsys, "data", "--help")
    assert code == 0
    for command in ("toy", "stamps", "librispeech", "manifest", "to-manifest", "table", "places", "flickr8k"):
        assert command in out
    for command in ("spokencoco", "festvox", "items", "regions", "fetch", "check"):
        assert command in out


def test_regions_name_the_models_before_any_work(capsys, tmp_path):
    code, _, err = run(capsys, "data", "regions", tmp_path, tmp_path / "out.h5", "--model", "resnet")
    assert code == 1
    assert "there is no model 'resnet'" in err
    assert "efficientnet-lite0" in err
    code, _, err = run(
        capsys, "data", "regions", tmp_path, tmp_path / "x.h5", "--model", "dinov2-small", "--layer", "13"
    )
    assert code == 1
    assert "dinov2-small: has layers 1 to 12, not 13" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["absent"], "neither a file nor a preset; the presets are paper, smoke, speech, stamps, toy"),
        (["smoke", "--variants", "vgs++"], "there is no variant 'vgs++'"),
        (["paper"], "--corpus"),
        (["stamps"], "--root"),
        (["smoke", "--corpus", "/nowhere/at/all"], "/nowhere/at/all: there is no such folder"),
        (["smoke", "--set", "batch_sice=3"], "the nearest is 'batch_size'"),
        (["smoke", "--item", "dev.item"], "--item and --audio must be given together"),
    ],
)
def test_reproduce_says_what_is_wrong_and_writes_nothing(tmp_path, capsys, arguments, said):
    out = tmp_path / "out"
    code, _, err = run(capsys, "reproduce", *arguments, "--out", out)
    assert code == 1
    assert said in err
    assert "Traceback" not in err
    assert not list(out.glob("*/*"))


def test_check_tells_a_good_corpus_from_a_bad_one(tiny_corpus, tmp_path, capsys):
    code, out, _ = run(capsys, "data", "check", tiny_corpus)
    assert code == 0
    assert "no faults" in out
    code, _, err = run(capsys, "data", "check", tmp_path)
    assert code == 1
    assert str(tmp_path) in err


SMOKE = [
    *("reproduce", "smoke", "--variants", "VGS, VGS+", "--variants", "(VGS, W2V2)"),
    *("--set", "accelerator=cpu", "--set", "schedule.epochs=0.4"),
]


WIDTH = "model.feature_dim=7"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A reproduction of two variants; tests must not change it."""
    out = tmp_path_factory.mktemp("finished") / "out"
    with pytest.raises(SystemExit) as stop:
        main([*SMOKE, "--out", str(out)])
    assert stop.value.code == 0
    return out


@pytest.fixture
def reproduced(finished, tmp_path):
    """A copy of the reproduction."""
    return shutil.copytree(finished, tmp_path / "out")


def test_smoke_reproduces_two_variants_and_finishes_once(reproduced, capsys):
    tmp_path, arguments = reproduced, [*SMOKE, "--out", reproduced]
    logs = {path: path.read_text() for path in sorted(tmp_path.glob("runs/*/log.jsonl"))}
    first, second = ([json.loads(line) for line in log.splitlines()] for log in logs.values())
    shared = [record for record in first if record["phase_index"] == 0]
    assert shared
    assert shared == [record for record in second if record["phase_index"] == 0]
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert [variant["key"] for variant in results["variants"]] == ["vgs,vgs+", "vgs,w2v2"]
    assert all(variant["retrieval"]["test"]["images"] == 12 for variant in results["variants"])
    assert all(len(variant["recalls"]) >= 2 for variant in results["variants"])
    assert results["gallery"]

    assert all(variant["abx"][-1]["errors"]["across"].keys() == {"1", "2"} for variant in results["variants"])
    assert {row["features"] for row in results["abx"]["baselines"]} == {"untrained", "log-Mel"}
    assert not results["repeats"]

    assert run(capsys, *arguments, "--seeds", "2")[0] == 0
    argv = json.loads((tmp_path / "command.json").read_text())["argv"]
    settings = ["--set", "accelerator=cpu", "--set", "schedule.epochs=0.4"]
    variants = ["--variants", "VGS, VGS+", "--variants", "(VGS, W2V2)"]
    assert argv == ["reproduce", "smoke", "--out", str(tmp_path), *variants, "--seeds", "2", *settings]
    assert {path: path.read_text() for path in logs} == logs
    again = json.loads((tmp_path / "report" / "results.json").read_text())
    assert again["variants"] == results["variants"]
    (repeat,) = again["repeats"]
    assert repeat["seed"] == 1
    assert [variant["key"] for variant in repeat["variants"]] == ["vgs,vgs+", "vgs,w2v2"]
    assert repeat["variants"][0]["losses"] != again["variants"][0]["losses"]
    assert (tmp_path / "runs" / "seed-1" / "vgs-then-w2v2" / "config.yaml").is_file()
    code, out, _ = run(capsys, "evaluate", "retrieval", tmp_path / "runs" / "vgs-then-vgs+")
    assert code == 0
    assert "12 pictures" in out


def test_a_reproduction_goes_on_with_its_own_corpus_and_items_alone(reproduced, tmp_path, capsys):
    before = (reproduced / "report" / "results.json").read_bytes()
    other = shutil.copytree(reproduced / "corpus", tmp_path / "other")
    lines = (other / "captions.jsonl").read_text().splitlines()
    (other / "captions.jsonl").write_text("\n".join(lines[::-1]) + "\n")
    items = (other / "test.item").read_text().splitlines()
    (other / "test.item").write_text("\n".join(items[:-1]) + "\n")
    arguments = [*SMOKE, "--out", reproduced]
    code, _, err = run(capsys, *arguments, "--corpus", other)
    assert (code, "was trained on another corpus" in err) == (1, True), err
    code, _, err = run(capsys, *arguments, "--item", other / "test.item", "--audio", other / "audio")
    assert (code, "scored on other ABX items" in err) == (1, True), err
    assert (reproduced / "report" / "results.json").read_bytes() == before


def test_what_would_stop_a_reproduction_late_stops_it_early(tmp_path, capsys):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "notes.txt").write_text("mine")
    code, _, err = run(capsys, *SMOKE, "--out", tmp_path)
    assert (code, "is not a report" in err) == (1, True), err
    (tmp_path / "report" / "notes.txt").unlink()
    code, _, err = run(capsys, "reproduce", "smoke", "--variants", "W2V2", "--out", tmp_path, "--set", WIDTH)
    assert (code, "the model takes 7 (model.feature_dim)" in err) == (1, True), err
    items = (tmp_path / "corpus" / "test.item").read_text().splitlines()
    words = items[1].split()
    words[2] = f"{float(words[1]) + 0.001:.4f}"
    (tmp_path / "short.item").write_text("\n".join([items[0], " ".join(words), *items[2:]]) + "\n")
    given = ["--item", tmp_path / "short.item", "--audio", tmp_path / "corpus" / "audio"]
    code, _, err = run(capsys, *SMOKE, "--out", tmp_path, *given)
    assert (code, "short.item:2" in err) == (1, True), err
    assert not (tmp_path / "runs").exists()


def test_a_prepared_corpus_is_reproduced_on(tiny_corpus, tmp_path, capsys):
    out = tmp_path / "some" / "where"
    arguments = ["reproduce", "smoke", "--out", out, "--corpus", tiny_corpus, "--variants", "VGS"]
    settings = ["accelerator=cpu", "schedule.epochs=0.4", "model.feature_dim=12"]
    code, _, err = run(capsys, *arguments, *(word for setting in settings for word in ("--set", setting)))
    assert code == 0, err
    assert not (out / "corpus").exists()
    assert "data:audio" in (out / "report" / "index.html").read_text()


def test_a_phase_whose_end_was_removed_is_no_obstacle(reproduced, capsys):
    (end,) = (reproduced / "runs" / "vgs-then-vgs+" / "checkpoints").glob("*-end-of-vgs")
    shutil.rmtree(end)
    assert run(capsys, *SMOKE, "--out", reproduced)[0] == 0


def test_a_reproduction_records_the_command_that_resumes_it(finished):
    assert shlex.split(recorded_command(finished)) == [
        *("vgsplus", "reproduce", "smoke", "--out", str(finished)),
        *("--variants", "VGS, VGS+", "--variants", "(VGS, W2V2)"),
        *("--set", "accelerator=cpu", "--set", "schedule.epochs=0.4"),
    ]


def test_a_report_is_drawn_again_with_the_corpus_of_its_runs(reproduced, tmp_path, capsys):
    elsewhere = (reproduced / "corpus").rename(tmp_path / "elsewhere")
    for path in reproduced.glob("runs/*/config.yaml"):
        save_config(load_config(path, [f"corpus={elsewhere}"]), path)
    assert run(capsys, "report", reproduced)[0] == 0
    page = (reproduced / "report" / "index.html").read_text()
    assert "data:audio" in page
    assert 'class="shade"' in page


@pytest.mark.parametrize(("variant", "scored"), [("VGS", True), ("W2V2", False)])
def test_training_scores_what_it_grounded(tiny_corpus, tmp_path, capsys, variant, scored):
    arguments = ["--set", f"corpus={tiny_corpus}", "--set", f"schedule.variant={variant}"]
    arguments += ["--set", "schedule.epochs=1", "--set", "accelerator=cpu", "--set", "model.feature_dim=12"]
    code, out, err = run(capsys, "train", "smoke", "--out", tmp_path / "run", *arguments)
    assert code == 0, err
    shown = [line.strip() for line in out.splitlines() if line.startswith("  vgsplus ")]
    assert shown == [
        *([f"vgsplus evaluate retrieval {tmp_path}/run"] if scored else []),
        f"vgsplus evaluate abx {tmp_path}/run {tiny_corpus}/test.item {tiny_corpus}/audio",
        f"vgsplus report {tmp_path}/run",
        *([f"vgsplus search {tiny_corpus} --model {tmp_path}/run"] if scored else []),
    ]
    for command in shown[:3] if scored else ():
        code, _, err = run(capsys, *shlex.split(command)[1:])
        assert code == 0, err
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    scores = [record["scores"] for record in records if record["kind"] == "evaluation"]
    assert bool(scores) == scored
    assert all("test/speech_to_image/R@10" in found for found in scores)


def test_every_argument_and_option_is_explained():
    commands = {"vgsplus": get_command(app)}
    while commands:
        name, command = commands.popitem()
        assert command.help, name
        unexplained = [parameter.name for parameter in command.params if not parameter.help]
        assert not unexplained, name
        commands |= {f"{name} {sub}": child for sub, child in getattr(command, "commands", {}).items()}
