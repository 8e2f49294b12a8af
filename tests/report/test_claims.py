import dataclasses
import math

import pytest
from scipy import stats

from vgsplus.evaluation.retrieval import DirectionScores, Estimate, RetrievalScores
from vgsplus.report.claims import claim_table, claims
from vgsplus.report.results import AbxPoint, Repeat

RECALL = {"W2V2": 0.05, "VGS": 0.28, "VGS+": 0.29, "(W2V2, VGS+)": 0.42, "(VGS, VGS+)": 0.28,
          "(W2V2, VGS)": 0.4, "(VGS, W2V2)": 0.05, "(VGS+, W2V2)": 0.19, "(VGS+, VGS)": 0.29}  # fmt: skip
ABX = {"W2V2": 0.09, "VGS": 0.06, "VGS+": 0.065, "(W2V2, VGS+)": 0.08, "(VGS, VGS+)": 0.07,
       "(W2V2, VGS)": 0.08, "(VGS, W2V2)": 0.1, "(VGS+, W2V2)": 0.075, "(VGS+, VGS)": 0.05}  # fmt: skip
NOISE = (0.0, 0.004, -0.004)


def scores(value, width):
    estimate = Estimate(value=value, low=value - width, high=value + width)
    side = DirectionScores(recall={1: estimate, 10: estimate}, median_rank=3, chance={1: 0.05, 10: 0.05})
    return RetrievalScores(images=20, captions=20, speech_to_image=side, image_to_speech=side)


def trained(results, recall, abx, width, noise=0.0):
    """The variants with these recalls and errors; noise moves the first four up, the others down."""
    for index, variant in enumerate(results.variants):
        if variant.name in recall:
            moved = noise if index < 4 else -noise
            error = abx[variant.name] + moved / 4
            errors = {"within": {1: error + 0.02, 2: error}, "across": {1: error, 2: error + 0.01}}
            yield dataclasses.replace(
                variant,
                retrieval={"test": scores(recall[variant.name] + moved, width)},
                abx=(AbxPoint(epoch=1.0, errors=errors, published=errors),),
            )


def run(results, recall=RECALL, abx=ABX, *, seeds=3, width=0.02):
    first, *others = (tuple(trained(results, recall, abx, width, noise)) for noise in NOISE[:seeds])
    repeats = tuple(Repeat(seed=seed, variants=found) for seed, found in enumerate(others, start=1))
    return dataclasses.replace(results, variants=first, repeats=repeats)


def verdicts(results):
    return [claim.verdict for claim in claims(results, "test")]


def test_three_seeds_like_the_paper_support_all_claims(results):
    assert verdicts(run(results)) == ["supported"] * 6


def test_three_seeds_of_the_reverse_support_none(results):
    recall = RECALL | {"VGS": 0.6, "VGS+": 0.45, "(VGS, W2V2)": 0.3, "(VGS+, W2V2)": 0.06}
    abx = ABX | {"W2V2": 0.05, "(VGS+, VGS)": 0.2, "(VGS, W2V2)": 0.03, "(VGS+, W2V2)": 0.04}
    assert verdicts(run(results, recall, abx)) == ["not supported"] * 6


def test_one_seed_says_nothing_of_abx_and_of_retrieval_what_its_pictures_allow(results):
    assert verdicts(run(results, seeds=1)) == ["supported"] * 4 + ["undecided"] * 2
    assert verdicts(run(results, seeds=1, width=0.2))[0] == "undecided"
    assert claims(run(results, seeds=1), "test")[4].evidence[0].interval is None


def test_one_part_that_fails_fails_the_claim(results):
    assert verdicts(run(results, RECALL | {"(W2V2, VGS)": 0.1}))[0] == "not supported"
    assert verdicts(run(results, abx=ABX | {"(VGS+, VGS)": 0.0601}))[4] != "supported"


def test_the_interval_is_students_over_the_seeds(results):
    part = claims(run(results), "test")[0].evidence[0]
    assert part.what == "(W2V2, VGS) − VGS"
    assert part.by_seed == pytest.approx([100 * (0.12 + sign * 0.008) for sign in (0, -1, 1)])
    expected = stats.t.interval(0.95, 2, loc=part.mean, scale=stats.sem(part.by_seed))
    assert part.interval == pytest.approx(expected)


def test_what_is_kept_counts_from_chance(results):
    part = claims(run(results, seeds=1), "test")[3].evidence[0]
    assert part.mean == pytest.approx(100 * (0.19 - 0.05) / (0.29 - 0.05))


def test_abx_takes_the_best_layer_of_each_condition(results):
    part = claims(run(results), "test")[4].evidence[0]
    assert part.what == "W2V2 − VGS"
    assert part.mean == pytest.approx(3.0)


def test_nothing_learned_is_nothing_to_compare_forget_or_keep(results):
    found = claims(run(results, dict.fromkeys(RECALL, 0.05)), "test")
    assert [claim.verdict for claim in found[1:4]] == ["not run"] * 3
    assert found[1].note.startswith("Neither VGS nor VGS+ rose above chance")
    assert "did not rise above chance" in found[2].note


def test_one_of_two_at_chance_is_not_alike(results):
    assert verdicts(run(results, RECALL | {"VGS+": 0.05}))[1] == "not supported"


def test_what_was_not_run_is_named(results):
    found = claims(run(results, {"VGS+": 0.3, "(W2V2, VGS+)": 0.5}), "test")
    assert [claim.verdict for claim in found] == ["undecided", *["not run"] * 5]
    assert "VGS" in found[0].note
    assert found[3].note == "Needs (VGS+, W2V2)."
    assert found[5].note.startswith("Needs the ABX of ")


def test_a_variant_missing_from_one_seed_is_missing(results):
    whole = run(results)
    short = dataclasses.replace(whole.repeats[0], variants=whole.repeats[0].variants[1:])
    found = claims(dataclasses.replace(whole, repeats=(short,)), "test")
    assert found[4].note == "Needs the ABX of W2V2."


def test_the_table_has_a_row_for_every_number(results):
    table = claim_table(run(results))
    assert len(table) == 2 + 1 + 1 + 1 + 2 + 2
    assert table["by seed"].str.split().str.len().eq(3).all()
    assert (table["low"] < table["mean"]).all()
    assert math.isnan(claim_table(run(results, seeds=1))["low"].iloc[-1])
