import base64
import dataclasses
import html.parser
import io
import re
import shutil

import numpy as np
import pytest
import torch
from helpers import browser
from PIL import Image

from vgsplus.corpora import Corpus
from vgsplus.errors import CheckpointError, VgsplusError
from vgsplus.evaluation.retrieval import RetrievalResult
from vgsplus.regions.pixel_grid import grid_boxes
from vgsplus.report import gallery as gallery_module
from vgsplus.report.gallery import gallery_items
from vgsplus.report.page import render, write_report
from vgsplus.report.results import Results

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Checker(html.parser.HTMLParser):
    """Follows the nesting and gathers ids, links, sources and texts."""

    def __init__(self, page):
        super().__init__()
        self.open, self.ids, self.attributes, self.texts = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.attributes.append((tag, found))
        if "id" in found:
            self.ids.append(found["id"])

    def handle_startendtag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if "id" in dict(attrs):
            self.ids.append(dict(attrs)["id"])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_a_report_has_all_its_files_and_can_be_drawn_again(results, corpus, tmp_path):
    page = write_report(results, tmp_path / "out", corpus=corpus)
    folder = tmp_path / "out" / "report"
    assert page == folder / "index.html"
    assert {entry.name for entry in folder.iterdir()} == {
        "index.html", "results.json", "table1.csv", "table2.csv", "abx.csv", "claims.csv", "curves.csv",
        "fig2_abx_by_layer.png", "fig2_abx_by_epoch.png", "fig3_losses.png", "recall_by_epoch.png",
    }  # fmt: skip
    with Image.open(folder / "fig3_losses.png") as picture:
        assert picture.width > 1.5 * picture.height
    assert page.stat().st_size < 8_000_000
    before = page.read_bytes()
    write_report(Results.load(folder / "results.json"), tmp_path / "out", corpus=corpus)
    assert page.read_bytes() == before
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["report"]


def test_the_page_is_valid_and_self_contained(results, corpus):
    checker = Checker(render(results, corpus))
    assert len(set(checker.ids)) == len(checker.ids)
    for tag, found in checker.attributes:
        for name in ("src", "href", "xlink:href"):
            assert found.get(name, "#").startswith(("#", "data:")), (tag, found)
        if found.get("href", "").startswith("#"):
            assert found["href"][1:] in checker.ids
        if tag == "img":
            assert found["alt"]
        if tag == "audio":
            assert found["src"].startswith("data:audio/")
            assert found["aria-label"]
    assert not {"script", "link", "iframe"} & {tag for tag, _ in checker.attributes}
    assert "@import" not in "".join(checker.texts)


def test_the_page_shows_the_rows_figures_and_gallery(results, corpus):
    page = render(results, corpus)
    assert page.count('<th scope="row">') == 10 + 9 + 11 + 12 + 1
    assert page.count("<audio") == 6
    assert page.count("✓ correct picture") == 4
    assert page.count("Correct picture, not among the first 5") == 2
    assert page.count("<figure>") == 5
    assert "prefers-color-scheme: dark" in page
    assert "speech_layers" in page
    assert "(10, 5), (3, 2)" in page


def test_a_run_without_abx_has_neither_its_table_nor_its_figures(results, tmp_path):
    deaf = dataclasses.replace(
        results, abx=None, variants=tuple(dataclasses.replace(v, abx=()) for v in results.variants)
    )
    page = write_report(deaf, tmp_path).read_text()
    assert 'id="abx"' not in page
    assert 'href="#abx"' not in page
    assert not {"table2.csv", "abx.csv"} & {entry.name for entry in (tmp_path / "report").iterdir()}
    Checker(page)


def test_a_partial_run_is_shown_with_dashes(partial, corpus):
    page = render(partial, corpus)
    assert "3 of the nine" in page
    assert len(re.findall('<tr class="absent">', page)) == 6
    Checker(page)


def test_a_run_stopped_before_anything_was_evaluated_has_a_page(results, tmp_path):
    started = dataclasses.replace(results, variants=(), gallery=())
    page = write_report(started, tmp_path).read_text()
    assert "Nothing has been evaluated on test yet" in page
    Checker(page)


def test_two_test_sets_have_a_table_each(two_test_sets):
    page = render(two_test_sets)
    assert "Test recordings: 120 pictures" in page
    assert "Test images: 120 pictures" in page
    Checker(page)


def test_what_people_wrote_is_escaped(partial, corpus):
    item = dataclasses.replace(partial.gallery[0], text="<script>alert(1)</script>", speaker='"><b>')
    page = render(dataclasses.replace(partial, gallery=(item,), preset="<i>"), corpus)
    assert "<script>" not in page
    assert "<b>" not in page
    assert "<i>" not in page


def test_without_a_corpus_the_gallery_names_its_pictures(partial):
    page = render(partial)
    assert "<audio" not in page
    assert "<span>p0.png</span>" in page


def test_a_gallery_file_that_is_gone_or_broken_does_not_stop_the_report(partial, corpus):
    (corpus.root / "p0.png").write_bytes(b"no picture")
    (corpus.root / "c0.wav").unlink()
    page = render(partial, corpus)
    assert "<span>p0.png</span>" in page
    assert page.count("<audio") == 1


def test_the_media_of_a_page_are_bounded(partial, corpus, monkeypatch):
    monkeypatch.setattr(gallery_module, "BUDGET", 40_000)
    media = re.findall(r'src="(data:[^"]+)"', render(partial, corpus))
    assert media
    assert sum(map(len, media)) <= 40_000


def test_cards_take_turns_among_the_test_sets(partial):
    many = tuple(
        dataclasses.replace(partial.gallery[0], test_set=name, caption=f"c{n}")
        for name in "ab"
        for n in range(40)
    )
    cards = gallery_module.cards(dataclasses.replace(partial, gallery=many), None)
    assert [card.item.test_set for card in cards] == ["a"] * 6 + ["b"] * 6


@pytest.fixture
def spoken(partial, tiny_corpus):
    """Results whose gallery is of the tiny corpus, and that corpus."""
    corpus = Corpus.open(tiny_corpus)
    images = tuple(f"test/{number:03d}.png" for number in range(4))
    item = dataclasses.replace(
        partial.gallery[0], caption="test-001-0", image=images[1], retrieved=(images[3], images[0])
    )
    return dataclasses.replace(partial, variants=(), gallery=(item,)), corpus


def test_shades_show_where_a_model_finds_a_caption_and_its_moments(spoken, make_model, recorded_progress):
    results, corpus = spoken
    loaded = []

    def load(key):
        loaded.append(key)
        return make_model(feature_dim=12)

    page = render(results, corpus, load, recorded_progress)
    assert loaded == ["w2v2,vgs"]
    assert recorded_progress.calls == [("heat maps", 1, 1)]
    checker = Checker(page)
    assert [found for tag, found in checker.attributes if tag == "script"] == [{}]
    shades = [found["style"] for _, found in checker.attributes if found.get("class") == "shade"]
    (card,) = [found for _, found in checker.attributes if "data-step" in found]
    moments = int(card["style"].removeprefix("--moments: "))
    seconds = corpus.captions("test")[2].num_samples / 16_000
    assert moments * float(card["data-step"]) == pytest.approx(seconds, abs=0.02)
    assert len(shades) == 3
    for shade in shades:
        content = base64.b64decode(re.search(r"url\(data:image/png;base64,(.*)\)", shade)[1])
        alpha = np.asarray(Image.open(io.BytesIO(content)))[..., 1]
        side = alpha.shape[1]
        assert alpha.shape[0] == side * (1 + moments)
        assert alpha[:side].min() == alpha[side:].min() == 0


def test_a_shade_hides_all_but_the_regions_with_the_highest_scores():
    scores = torch.full((3, 16), -1.0)
    scores[0, 5], scores[1, 5], scores[2, 15] = 9.0, 3.0, 1.5
    png = gallery_module.shades(torch.from_numpy(grid_boxes(4)), scores[0], scores[1:])
    alpha = np.asarray(Image.open(io.BytesIO(png)))[..., 1].reshape(3, 32, 32)
    assert alpha[0, 12, 12] == alpha[1, 12, 12] == 0
    assert 90 < alpha[2, 29, 29] < 140
    assert (alpha[:, :4] > 250).all()


@pytest.mark.parametrize("changes", [{"grounded": False}, {"feature_dim": 7}, None])
def test_a_model_that_finds_nothing_or_is_gone_leaves_the_gallery_as_it_is(spoken, make_model, changes):
    results, corpus = spoken

    def load(key):
        if changes is None:
            raise CheckpointError(f"{key}: is gone.")
        return make_model(**{"feature_dim": 12} | changes)

    assert gallery_module.cards(results, corpus, load) == gallery_module.cards(results, corpus)


def test_the_shades_follow_a_caption_that_plays(spoken, make_model, tmp_path):
    results, corpus = spoken
    page = write_report(results, tmp_path, corpus=corpus, load=lambda _: make_model(feature_dim=12))
    with browser() as tab:
        tab.goto(page.as_uri())
        moment = "document.querySelector('.card').style.getPropertyValue('--moment')"
        sound = "document.querySelector('.card audio')"
        tab.evaluate(f"{sound}.currentTime = {sound}.duration / 2")
        tab.wait_for_function(f"{moment} > 5 && {moment} < 12")
        assert tab.locator(".shade").first.is_visible()
        tab.evaluate(f"{sound}.play()")
        tab.wait_for_function(f"{moment} > 12")
        tab.wait_for_function(f"{moment} == 0")
        tab.get_by_label("Show where").uncheck()
        assert not tab.locator(".shade").first.is_visible()


def test_gallery_items_are_one_a_picture_of_those_drawn(corpus):
    scores = None
    retrieved = {f"c{n}": ("p1.png", "p2.png") for n in (1, 4, 6)}
    twin = dataclasses.replace(corpus._captions[4], id="twin")
    corpus._captions.append(twin)
    result = RetrievalResult(split="test", scores=scores, retrieved=retrieved | {"twin": ("p4.png",)})
    items = gallery_items(result, corpus, "vgs")
    assert sorted(item.image for item in items) == ["p1.png", "p4.png", "p6.png"]
    assert items[0].text == "There is a green kite."
    assert len(gallery_items(result, corpus, "vgs", count=2)) == 2


def test_a_folder_that_is_no_report_is_left_alone(partial, tmp_path):
    (tmp_path / "report").mkdir()
    mine = tmp_path / "report" / "thesis.txt"
    mine.write_text("years of work")
    with pytest.raises(VgsplusError, match="not a report"):
        write_report(partial, tmp_path)
    assert mine.read_text() == "years of work"


def test_a_report_that_fails_leaves_the_earlier_one(partial, tmp_path, monkeypatch):
    page = write_report(partial, tmp_path)
    before = page.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("vgsplus.report.figures.png", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(dataclasses.replace(partial, preset="later"), tmp_path)
    assert page.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report"]


def test_a_swap_that_fails_half_way_puts_the_earlier_report_back(partial, tmp_path, monkeypatch):
    page = write_report(partial, tmp_path)
    rename = type(page).rename

    def fail(path, target):
        if path.name == ".report.writing":
            raise OSError("busy")
        return rename(path, target)

    monkeypatch.setattr(type(page), "rename", fail)
    with pytest.raises(OSError, match="busy"):
        write_report(partial, tmp_path)
    assert page.exists()


def contrast(first, second):
    def luminance(colour):
        channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_colour_contrasts_with_its_background(partial, scheme):
    page = render(partial)
    light, dark = re.findall(r":root \{(.*?)\}", page, flags=re.DOTALL)[:2]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    if scheme == "dark":
        colours |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", dark))
    for text in (
        "ink",
        "soft",
        "muted",
        "accent",
        "good",
        "fig-w2v2",
        "fig-vgs",
        "fig-vgs-plus",
        "fig-other",
    ):
        for background in ("background", "raised"):
            assert contrast(colours[text], colours[background]) >= 4.5, (text, background)
    assert contrast(colours["good"], colours["good-background"]) >= 4.5
    assert contrast(colours["bad"], colours["bad-background"]) >= 4.5


def test_the_temporary_folder_of_a_killed_report_is_no_obstacle(partial, tmp_path):
    (tmp_path / ".report-abc" / "new").mkdir(parents=True)
    assert write_report(partial, tmp_path).exists()
    shutil.rmtree(tmp_path / ".report-abc")
