import dataclasses

import pytest

from vgsplus.evaluation.resampling import Estimate
from vgsplus.evaluation.retrieval import DirectionScores, RetrievalScores
from vgsplus.report.findings import findings, headline


def side(value, width):
    estimate = Estimate(value=value, low=max(0.0, value - width), high=min(1.0, value + width))
    return DirectionScores(recall={1: estimate, 10: estimate}, median_rank=3, chance={1: 0.05, 10: 0.05})


def run(results, values, width=0.02):
    """The results with these recalls, the same at every k and in both directions."""
    variants = tuple(
        dataclasses.replace(
            variant,
            retrieval={
                "test": RetrievalScores(
                    images=20,
                    captions=20,
                    speech_to_image=side(values[variant.name], width),
                    image_to_speech=side(values[variant.name], width),
                )
            },
        )
        for variant in results.variants
        if variant.name in values
    )
    return dataclasses.replace(results, variants=variants)


def verdicts(results):
    return [finding.verdict for finding in findings(results, "test")]


LIKE_THE_PAPER = {"VGS": 0.28, "VGS+": 0.29, "(W2V2, VGS)": 0.4, "(W2V2, VGS+)": 0.4, "(VGS, W2V2)": 0.05,
                  "(VGS+, W2V2)": 0.15}  # fmt: skip


def test_a_run_like_the_papers_is_in_line_with_it(results):
    assert verdicts(run(results, LIKE_THE_PAPER)) == ["agrees"] * 4


def test_the_reverse_is_not_in_line(results):
    reverse = LIKE_THE_PAPER | {"VGS": 0.6, "VGS+": 0.5, "(VGS, W2V2)": 0.3, "(VGS+, W2V2)": 0.05}
    assert verdicts(run(results, reverse)) == ["disagrees"] * 4


def test_wide_intervals_settle_no_difference(results):
    first, alike, forgets, _ = findings(run(results, LIKE_THE_PAPER, width=0.2), "test")
    assert first.verdict == "open"
    assert "8 with intervals that overlap" in first.detail
    assert alike.verdict == "agrees"
    assert forgets.verdict == "agrees"


@pytest.mark.parametrize("place", [2, 3])
def test_nothing_learned_is_nothing_to_forget_or_keep(results, place):
    low = dict.fromkeys(LIKE_THE_PAPER, 0.05)
    finding = findings(run(results, low), "test")[place]
    assert finding.verdict == "open"
    assert "itself did not rise above chance" in finding.detail


def test_what_was_not_run_is_named(results):
    found = findings(run(results, {"VGS+": 0.3, "(W2V2, VGS+)": 0.5}), "test")
    assert [finding.verdict for finding in found] == ["agrees", "not run", "not run", "not run"]
    assert found[0].detail.endswith("Needs VGS and (W2V2, VGS).")
    assert found[3].detail == "Needs (VGS+, W2V2)."


def test_the_headline_names_the_best_and_what_overlaps_it(results):
    head = headline(run(results, LIKE_THE_PAPER), "test")
    assert head.best == "(W2V2, VGS+)"
    assert "overlap those of (W2V2, VGS)," in head.sentences[1]
    clear = headline(run(results, {"VGS": 0.2, "VGS+": 0.5}), "test")
    assert clear.best == "VGS+"
    assert "clear above" in clear.sentences[1]
    assert "50.0" in clear.sentences[0]


def test_the_headline_claims_nothing_at_chance(results):
    head = headline(run(results, dict.fromkeys(LIKE_THE_PAPER, 0.05)), "test")
    assert head.best is None
    assert head.sentences == ("No variant retrieves above chance on test.",)
    assert headline(dataclasses.replace(results, variants=()), "test").best is None
