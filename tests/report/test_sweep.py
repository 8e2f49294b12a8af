import pytest

from vgsplus.report.sweep import Measure, compare, headline, table, write_sweep

A, B, C = ((("alpha", value), ("lr", "1e-3|2")) for value in ("0", "0.5", "1"))
RECALL = Measure(
    "recall on test", "%", True, {A: (10.0, 12.0, 14.0), B: (20.0, 23.0, 24.0), C: (20.5, 20.0, 25.0)}
)
LOSS = Measure("validation loss", "", False, {B: (1.0, 2.0, 4.0), C: (1.5, 2.6, 4.5)})


def test_points_are_compared_with_the_best_seed_by_seed():
    """Half the width of an interval over three seeds: 4.3027 standard deviations / √3."""
    best, level, worse = compare(RECALL)
    assert [row.point for row in (best, level, worse)] == [B, C, A]
    assert [row.verdict for row in (best, level, worse)] == ["best", "undecided", "worse"]
    assert best.interval == pytest.approx((67 / 3 - 5.1711, 67 / 3 + 5.1711), abs=1e-3)
    assert level.behind == pytest.approx(0.5)
    assert worse.behind == pytest.approx(31 / 3)
    assert worse.behind_interval == pytest.approx((31 / 3 - 1.4342, 31 / 3 + 1.4342), abs=1e-3)


def test_the_lowest_loss_is_the_best():
    """The points differ alike from seed to seed, though seeds differ more."""
    best, worse = compare(LOSS)
    assert (best.point, worse.point, worse.verdict) == (B, C, "worse")
    assert best.interval[1] > worse.mean


def test_the_headline_says_whether_the_lead_exceeds_the_spread_of_seeds():
    text = headline(RECALL)
    assert text.startswith("alpha = 0.5, lr = 1e-3|2 has the best recall on test: 22.33 % (17.16 to 27.50).")
    assert "behind by 0.50 points" in text
    assert "no more than the seeds explain. 1 of 2 others are level with it." in text
    assert headline(LOSS).endswith("more than the seeds explain.")
    assert "--seeds 3" in headline(Measure("recall", "%", True, {A: (1.0,), B: (2.0,)}))


def test_a_report_holds_the_numbers_as_page_table_and_text(tmp_path):
    page = write_sweep(tmp_path, "mine.yaml", "toy <1>", range(3), [RECALL, LOSS])
    html, text = page.read_text(), (tmp_path / "report" / "sweep.md").read_text()
    assert "toy &lt;1&gt;" in html
    assert "0, 1, 2" in html
    assert "| 0.5 | 1e-3\\|2 | 22.33 | 17.16 to 27.50 | – | – | best |" in text
    found = table([RECALL, LOSS])
    assert (tmp_path / "report" / "sweep.csv").read_text() == found.to_csv(index=False)
    assert list(found.columns[:6]) == ["measure", "unit", "alpha", "lr", "seeds", "mean"]
    assert len(found) == 5
