import dataclasses

from vgsplus.evaluation.retrieval import DirectionScores, Estimate, RetrievalScores
from vgsplus.report.claims import headline


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


LIKE_THE_PAPER = {"VGS": 0.28, "VGS+": 0.29, "(W2V2, VGS)": 0.4, "(W2V2, VGS+)": 0.4, "(VGS, W2V2)": 0.05,
                  "(VGS+, W2V2)": 0.15}  # fmt: skip


def test_the_headline_names_the_best_and_what_overlaps_it(results):
    sentences = headline(run(results, LIKE_THE_PAPER), "test")
    assert sentences[0].startswith("(W2V2, VGS+) has the highest mean R@1")
    assert "overlap those of (W2V2, VGS)," in sentences[1]
    clear = headline(run(results, {"VGS": 0.2, "VGS+": 0.5}), "test")
    assert clear[0].startswith("VGS+ has")
    assert "entirely above" in clear[1]
    assert "50.0" in clear[0]


def test_the_headline_claims_nothing_at_chance(results):
    sentences = headline(run(results, dict.fromkeys(LIKE_THE_PAPER, 0.05)), "test")
    assert sentences == ("No variant retrieves above chance on test.",)
    nothing = headline(dataclasses.replace(results, variants=()), "test")
    assert nothing == ("Nothing has been evaluated on test yet.",)
