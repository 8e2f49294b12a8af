import re

import pytest

from vgsplus import config as settings
from vgsplus.config import RunConfig, differences, from_dict, load_config, save_config, to_dict
from vgsplus.errors import ConfigError
from vgsplus.schedule import Alpha, OptimizerSettings, Schedule

YAML = """
corpus: data/toy
batch_size: 8
schedule:
  - {name: warm, alpha: 0, epochs: 1.5}
  - name: joint
    alpha: {linear: [0.0, 0.5]}
    epochs: 2
    init: weights.safetensors
    optimizer: {name: adamw, lr: 1e-3, betas: [0.9, 0.98], decay: cosine}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    return path


def test_a_file_gives_typed_settings(file):
    config = load_config(file)
    assert (config.corpus, config.batch_size, config.max_seconds, config.seed) == ("data/toy", 8, 8.0, 0)
    warm, joint = config.schedule.phases
    assert warm.alpha == Alpha.parse(0.0)
    assert (warm.epochs, warm.init, warm.optimizer) == (1.5, None, OptimizerSettings())
    assert joint.alpha == Alpha.parse({"linear": [0.0, 0.5]})
    assert joint.init == "weights.safetensors"
    assert joint.optimizer == OptimizerSettings(name="adamw", lr=1e-3, betas=(0.9, 0.98), decay="cosine")


def test_settings_survive_the_way_through_yaml_and_plain_values(file, tmp_path):
    config = load_config(file)
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(tmp_path / "saved.yaml") == config
    assert from_dict(to_dict(config)) == config
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml", "saved.yaml"}


@pytest.mark.parametrize("variant", ["(W2V2, VGS+)", "w2v2,vgs+"])
def test_a_schedule_may_be_the_name_of_a_variant(variant):
    config = from_dict({"corpus": "c", "schedule": variant})
    assert config.schedule == Schedule.variant("w2v2,vgs+")


def test_a_variant_takes_lengths_alpha_and_optimizer():
    raw = {
        "variant": "VGS+, VGS",
        "pretraining_epochs": 1,
        "epochs": 3,
        "plus_alpha": 0.3,
        "optimizer": {"lr": 0.01},
    }
    expected = Schedule.variant(
        "vgs+,vgs",
        pretraining_epochs=1,
        epochs=3,
        plus_alpha=0.3,
        optimizer=OptimizerSettings(lr=0.01),
    )
    assert from_dict({"corpus": "c", "schedule": raw}).schedule == expected


def test_overrides_reach_everywhere(file):
    overrides = [
        "schedule.0.alpha={steps: [[0, 0.1], [0.5, 0.2]]}",
        "schedule.1.optimizer.lr=2e-4",
        "seed=7",
        "validate_every=null",
        "corpus=a=b",
    ]
    config = load_config(file, overrides)
    assert config.schedule.phases[0].alpha == Alpha.parse({"steps": [[0.0, 0.1], [0.5, 0.2]]})
    assert config.schedule.phases[1].optimizer.lr == 2e-4
    assert config.schedule.phases[1].optimizer.name == "adamw"
    assert (config.seed, config.validate_every, config.corpus) == (7, None, "a=b")


@pytest.mark.parametrize("key", ["schedule.1.alpha", "schedule.phases.1.alpha"])
def test_phases_of_lists_and_of_variants_are_overridden_alike(file, key):
    for schedule in (
        [],
        ['schedule={variant: "w2v2,vgs", epochs: 4, pretraining_epochs: 1}'],
        ["schedule=w2v2,vgs"],
    ):
        before, after = load_config(file, schedule), load_config(file, [*schedule, f"{key}=0.25"])
        assert after.schedule.phases[1].alpha == Alpha.parse(0.25)
        assert after.schedule.phases[0] == before.schedule.phases[0]
        assert after.schedule.phases[1].epochs == before.schedule.phases[1].epochs


def test_a_variants_name_and_lengths_can_be_overridden_apart(file):
    config = load_config(file, ["schedule=w2v2", "schedule.epochs=2"])
    assert config.schedule == Schedule.variant("w2v2", epochs=2)
    file.write_text("corpus: c\nschedule: vgs")
    assert load_config(file, ["schedule.epochs=2"]).schedule == Schedule.variant("vgs", epochs=2)
    assert load_config(file, ["schedule=w2v2"]).schedule == Schedule.variant("w2v2")


PHASE = {"name": "a", "alpha": 0, "epochs": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batchsize": 3}, r"^batchsize: there is no such key; the nearest is 'batch_size'"),
        ({"batch_size": 0}, r"^batch_size: input should be greater than or equal to 1, not 0"),
        ({"batch_size": "many"}, r"^batch_size: .*valid integer.*not 'many'"),
        ({"seed": -1}, r"^seed: .*not -1"),
        ({"max_seconds": float("nan")}, r"^max_seconds: "),
        ({"precision": "8"}, r"^precision: .*'32-true'.*not '8'"),
        ({"accelerator": "gpu"}, r"^accelerator: .*'cuda'"),
        ({"checkpoint_minutes": 0}, r"^checkpoint_minutes: "),
        ({"corpus": ""}, r"^corpus: "),
        ({"model": {"no_such_size": 3}}, r"^model\.no_such_size: there is no such key; the nearest is "),
        ({"schedule": []}, r"^schedule: .*at least one phase"),
        ({"schedule": 3}, r"^schedule: must be a list of phases"),
        ({"schedule": "vsg"}, r"^schedule: .*the nine are .*The nearest is 'vgs'"),
        ({"schedule": {"variant": "vgs", "epoch": 3}}, r"^schedule\.epoch: .*nearest is 'epochs'"),
        ({"schedule": [PHASE | {"alpha": 2}]}, r"^schedule\.0\.alpha: α must lie in \[0, 1\], not 2"),
        ({"schedule": [PHASE | {"alpha": "half"}]}, r"^schedule\.0\.alpha: α is a number"),
        ({"schedule": [PHASE, PHASE]}, r"^schedule: every phase needs a name of its own"),
        (
            {"schedule": [PHASE | {"epochs": 0}]},
            r"^schedule\.0\.epochs: .*greater than 0, not 0",
        ),
        ({"schedule": [PHASE | {"optimizer": {"lrr": 1}}]}, r"^schedule\.0\.optimizer\.lrr: .*'lr'"),
        (
            {"schedule": [PHASE | {"optimizer": {"lr": -1}}]},
            r"^schedule\.0\.optimizer\.lr: .*than 0, not -1",
        ),
        ({"schedule": [{"name": "a", "epochs": 1}]}, r"^schedule\.0\.alpha: is missing"),
        ({"schedule": ["vgs"]}, r"^schedule\.0: "),
    ],
)
def test_faults_are_named_with_path_reason_and_nearest_key(changes, message):
    with pytest.raises(ConfigError) as error:
        from_dict({"corpus": "c", "schedule": "vgs"} | changes)
    assert re.search(message, str(error.value), re.DOTALL), str(error.value)


def test_every_fault_is_named_at_once():
    with pytest.raises(ConfigError) as error:
        from_dict({"schedule": "vgs", "seed": "x", "workers": -1})
    assert [line.split(":")[0] for line in str(error.value).splitlines()] == ["corpus", "seed", "workers"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "must read key=value"),
        ("=3", "must read key=value"),
        ("schedule.2.epochs=1", "schedule is a list of 2"),
        ("schedule.first.epochs=1", "schedule is a list of 2"),
        ("batch_size.x=1", "batch_size is 8"),
        ("model.x=[1", "not valid YAML"),
        ("sead=1", "nearest is 'seed'"),
    ],
)
def test_bad_overrides_are_refused(file, override, message):
    with pytest.raises(ConfigError, match=message):
        load_config(file, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1,\nb: }", r"run\.yaml:2: is not valid YAML"), ("- 1", "must hold keys"), ("", "must hold keys")],
)
def test_files_that_are_no_settings_are_refused(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_a_fault_names_its_file(file):
    with pytest.raises(ConfigError, match=rf"{re.escape(str(file))}: seed: "):
        load_config(file, ["seed=x"])


def test_an_unknown_name_is_answered_with_the_presets():
    with pytest.raises(ConfigError, match="neither a file nor a preset") as error:
        load_config("no-such-preset")
    assert all(name in str(error.value) for name in settings.presets())


@pytest.mark.parametrize("name", settings.presets())
def test_every_preset_is_valid(name):
    assert isinstance(load_config(name, ["corpus=anything"]), RunConfig)


def test_presets_are_read_by_name(tmp_path, monkeypatch, file):
    (tmp_path / "presets").mkdir()
    file.rename(tmp_path / "presets" / "small.yaml")
    monkeypatch.setattr(settings.resources, "files", lambda _: tmp_path)
    assert settings.presets() == ("small",)
    assert load_config("small").batch_size == 8


def test_differences_name_the_path_and_both_values():
    old = {"a": 1, "b": {"c": [1, {"d": 2}], "e": 0}, "f": [1]}
    new = {"a": 1, "b": {"c": [1, {"d": 3}], "g": 4}, "f": [1, 2]}
    assert differences(old, new) == [
        "b.c.1.d: 2 → 3",
        "b.e: 0 → None",
        "b.g: None → 4",
        "f: [1] → [1, 2]",
    ]
    assert differences(old, old) == []
