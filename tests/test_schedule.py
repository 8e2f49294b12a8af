import math

import pytest

from vgsplus.errors import ConfigError
from vgsplus.schedule import (
    VARIANTS,
    Alpha,
    OptimizerSettings,
    Phase,
    Schedule,
    lr_factor,
    parse_variant,
    variant_title,
)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (0.5, {0.0: 0.5, 0.99: 0.5}),
        ({"linear": [0, 1]}, {0.0: 0.0, 0.25: 0.25, 0.5: 0.5}),
        ({"linear": [1.0, 0.5]}, {0.0: 1.0, 0.5: 0.75}),
        ({"cosine": [0.2, 1.0]}, {0.0: 0.2, 0.5: 0.6, 1 / 3: 0.4}),
        ({"steps": [[0.0, 0.1], [0.5, 0.9], [0.75, 0.0]]}, {0.0: 0.1, 0.49: 0.1, 0.5: 0.9, 0.8: 0.0}),
    ],
)
def test_alpha_follows_its_form_and_is_written_as_it_was_read(written, expected):
    alpha = Alpha.parse(written)
    assert {progress: pytest.approx(alpha.at(progress)) for progress in expected} == expected
    assert Alpha.parse(alpha.plain()) == alpha


@pytest.mark.parametrize(
    "written",
    [
        1.5,
        -0.1,
        math.nan,
        True,
        "half",
        None,
        {"linear": [0, 2]},
        {"linear": [0]},
        {"linear": [0, 1], "cosine": [0, 1]},
        {"quadratic": [0, 1]},
        {"steps": []},
        {"steps": [[0.1, 0.5]]},
        {"steps": [[0.0, 0.5], [0.5, 0.1], [0.5, 0.2]]},
        {"steps": [[0.0, 0.5], [1.0, 0.1]]},
        {"steps": [[0.0]]},
    ],
)
def test_impossible_alphas_are_refused(written):
    with pytest.raises(ConfigError, match="α"):
        Alpha.parse(written)


@pytest.mark.parametrize(("written", "expected"), [(0, False), (0.5, True), ({"linear": [0, 1]}, True)])
def test_alpha_knows_whether_images_are_ever_needed(written, expected):
    assert Alpha.parse(written).ever_positive is expected


def test_linear_learning_rate_is_bertadams():
    total, warmup = 40, 0.1
    for step in range(total):
        p = step / total
        expected = p / warmup if p < warmup else (p - 1) / (warmup - 1)
        assert lr_factor(step, total, warmup) == pytest.approx(expected)
    assert lr_factor(0, total) == 0.0
    assert lr_factor(4, total) == 1.0
    assert lr_factor(total, total) == 0.0


@pytest.mark.parametrize("decay", ["linear", "cosine", "constant"])
def test_learning_rate_rises_then_never_rises_again(decay):
    factors = [lr_factor(step, 200, 0.1, decay) for step in range(200)]
    assert factors[:20] == sorted(factors[:20])
    assert factors[20:] == sorted(factors[20:], reverse=True)
    assert max(factors) == factors[20] == 1.0
    assert min(factors[20:]) >= 0.0


def test_decay_forms_differ_where_they_should():
    assert lr_factor(55, 100, 0.1, "cosine") == pytest.approx(0.5)
    assert lr_factor(99, 100, 0.1, "constant") == 1.0
    assert lr_factor(0, 100, 0.0, "linear") == 1.0


def test_there_are_nine_variants_in_the_papers_order():
    assert [variant_title(name) for name in VARIANTS] == [
        "W2V2",
        "VGS",
        "VGS+",
        "(W2V2, VGS+)",
        "(VGS, VGS+)",
        "(W2V2, VGS)",
        "(VGS, W2V2)",
        "(VGS+, W2V2)",
        "(VGS+, VGS)",
    ]


@pytest.mark.parametrize("written", ["(W2V2, VGS+)", "w2v2,vgs+", " W2v2 , vgs+ ", "[w2v2, VGS+]"])
def test_variant_names_are_read_leniently(written):
    assert parse_variant(written) == "w2v2,vgs+"


def test_titles_are_read_back():
    assert [parse_variant(variant_title(name)) for name in VARIANTS] == list(VARIANTS)


def test_an_unknown_variant_is_answered_with_the_nine_and_the_nearest():
    with pytest.raises(ConfigError) as error:
        parse_variant("(W2V2, VGA+)")
    assert all(name in str(error.value) for name in VARIANTS)
    assert str(error.value).endswith("'w2v2,vgs+'")


@pytest.mark.parametrize(
    ("name", "alphas", "epochs"),
    [
        ("w2v2", [0.0], [70]),
        ("vgs", [1.0], [70]),
        ("vgs+", [0.5], [70]),
        ("w2v2,vgs+", [0.0, 0.5], [20, 50]),
        ("vgs+,vgs", [0.5, 1.0], [20, 50]),
    ],
)
def test_variants_have_the_papers_phases(name, alphas, epochs):
    schedule = Schedule.variant(name)
    assert [phase.alpha.at(0.5) for phase in schedule.phases] == alphas
    assert [phase.epochs for phase in schedule.phases] == epochs
    assert schedule.epochs == 70
    assert all(phase.optimizer == OptimizerSettings() for phase in schedule.phases)


def test_variants_take_lengths_alpha_and_optimizer():
    settings = OptimizerSettings(lr=3e-4)
    schedule = Schedule.variant(
        "vgs+,vgs", pretraining_epochs=0.5, epochs=2, optimizer=settings, plus_alpha=0.25
    )
    assert [phase.epochs for phase in schedule.phases] == [0.5, 1.5]
    assert schedule.phases[0].alpha.at(0) == 0.25
    assert schedule.phases[1].optimizer == settings


@pytest.mark.parametrize("pretraining", [0, 70, 80])
def test_pretraining_leaves_room_for_the_second_phase(pretraining):
    with pytest.raises(ConfigError, match="pretraining_epochs"):
        Schedule.variant("vgs,vgs+", pretraining_epochs=pretraining)


def test_the_variants_that_start_alike_have_the_same_first_phase():
    def first(name):
        return Schedule.variant(name).phases[0]

    assert first("w2v2,vgs") == first("w2v2,vgs+") == Schedule.variant("w2v2", epochs=20).phases[0]
    assert first("w2v2,vgs") != first("w2v2")
    assert first("w2v2,vgs") != first("vgs,w2v2")


def test_the_plan_is_gapless_and_counts_fractions_of_epochs():
    phases = [
        Phase(name="a", alpha=Alpha.parse(0.0), epochs=0.5),
        Phase(name="b", alpha=Alpha.parse({"linear": [0, 1]}), epochs=2),
        Phase(name="c", alpha=Alpha.parse(1.0), epochs=0.001),
    ]
    plan = Schedule(tuple(phases)).plan(lambda phase: 9 if phase.name != "c" else 2000)
    assert [phase.steps for phase in plan] == [4, 18, 2]
    assert [phase.first_step for phase in plan] == [0, 4, 22]
    assert plan[1].epoch(9) == 1.5
    assert plan[1].alpha(9) == 0.5
    assert plan[1].lr(0) == 0.0
    assert plan[1].lr(9) == pytest.approx(1e-4 * 0.5 / 0.9)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Phase(name="a/b", alpha=Alpha.parse(0), epochs=1), "name"),
        (lambda: Phase(name="a", alpha=Alpha.parse(0), epochs=0), "epochs"),
        (lambda: OptimizerSettings(lr=0), "lr"),
        (lambda: OptimizerSettings(warmup=1.0), "warmup"),
        (lambda: OptimizerSettings(betas=(0.9, 1.0)), "betas"),
        (lambda: Schedule(()), "at least one"),
        (lambda: Schedule((Phase(name="a", alpha=Alpha.parse(0), epochs=1),) * 2), "name of its own"),
    ],
)
def test_impossible_phases_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
