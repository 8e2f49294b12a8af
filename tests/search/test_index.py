import json

import numpy as np
import pytest
import torch

from vgsplus.corpora import Corpus
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.embeddings import embed_split
from vgsplus.files import lock_file
from vgsplus.interop.pretrained import load
from vgsplus.search.index import nearest, open_index


def test_the_nearest_are_those_of_all_products_sorted():
    generator = torch.Generator().manual_seed(0)
    embeddings, query = (torch.randn(shape, generator=generator) for shape in ((50, 6), (6,)))
    scores, rows = nearest(query, embeddings, 7)
    products = (embeddings.double() @ query.double()).numpy()
    assert rows.tolist() == np.argsort(-products)[:7].tolist()
    np.testing.assert_allclose(scores, np.sort(products)[::-1][:7], atol=1e-5)
    assert len(nearest(query, embeddings[:3], 7)[1]) == 3


def test_embeddings_are_those_of_the_evaluation(index, make_run):
    embedded = embed_split(load(make_run()), index.corpus, "test")
    torch.testing.assert_close(index.images, embedded.images)
    torch.testing.assert_close(index.speech, embedded.speech)
    assert index.image_ids == embedded.image_ids
    assert [index.image_ids[row] for row in index.image_of_caption] == [c.image for c in index.captions]


def test_all_splits_are_searched_together(corpus, make_run, recorded_progress):
    index = open_index(load(make_run()), Corpus.open(corpus), "all", progress=recorded_progress)
    assert (len(index.image_ids), len(index.captions)) == (16, 32)
    assert recorded_progress.of("pictures")[0] == (8, 8)
    assert recorded_progress.of("captions")[-1] == (8, 8)
    alone = open_index(load(make_run()), Corpus.open(corpus), "test")
    rows = [index.image_ids.index(image) for image in alone.image_ids]
    torch.testing.assert_close(index.images[rows], alone.images)


def test_embeddings_are_computed_once(index, corpus, make_run, recorded_progress):
    again = open_index(load(make_run()), Corpus.open(corpus), "test", progress=recorded_progress)
    assert recorded_progress.calls == []
    assert again.images.equal(index.images)
    assert again.speech.equal(index.speech)


def _rewrite_captions(corpus):
    path = corpus / "captions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"num_samples": 8_000}) + "\n" for line in lines))


@pytest.mark.parametrize(
    "change",
    [
        lambda corpus: (corpus / "audio" / "test-001-0.wav").touch(),
        lambda corpus: (corpus / "regions.h5").touch(),
        _rewrite_captions,
    ],
    ids=["sound", "regions", "captions"],
)
def test_a_changed_corpus_is_embedded_again(change, index, corpus, recorded_progress):
    change(corpus)
    open_index(index.model, Corpus.open(corpus), "test", progress=recorded_progress)
    assert recorded_progress.of("captions")[-1] == (8, 8)


def test_other_weights_embed_again(index, corpus, make_run, recorded_progress):
    model = load(make_run(seed=1))
    assert not open_index(model, Corpus.open(corpus), "test", progress=recorded_progress).images.equal(
        index.images
    )
    assert recorded_progress.of("captions")[-1] == (8, 8)


def test_a_broken_file_is_replaced(index, corpus, cache_folder, recorded_progress):
    (path,) = cache_folder.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    again = open_index(index.model, Corpus.open(corpus), "test", progress=recorded_progress)
    assert recorded_progress.of("captions")
    assert again.images.equal(index.images)
    assert list(cache_folder.rglob("*.safetensors")) == [path]


def test_two_processes_do_not_compute_the_same(index, corpus, cache_folder):
    (path,) = cache_folder.rglob("*.safetensors")
    path.unlink()
    with (
        lock_file(path.parent.with_suffix(".lock")),
        pytest.raises(VgsplusError, match=r"process \d+ on .* computes the same embeddings"),
    ):
        open_index(index.model, Corpus.open(corpus), "test")


def _set(corpus, **changes):
    path = corpus / "corpus.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _remove(corpus, name):
    (corpus / name).unlink()


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"grounded": False}, lambda _: None, "no grounding modules"),
        ({"feature_dim": 7}, lambda _: None, "regions have 12 features, but the model takes 7"),
        ({}, lambda corpus: _set(corpus, image_root=None), "without its pictures"),
        ({}, lambda corpus: _remove(corpus, "images/test/000.png"), "000.png: does not exist"),
        ({}, lambda corpus: _remove(corpus, "audio/test-000-0.wav"), "test-000-0.wav: does not exist"),
        ({}, lambda corpus: _remove(corpus, "audio/test-001-0.wav"), "test-001-0.wav: No such file"),
    ],
)
def test_what_cannot_be_searched_is_an_error_before_embedding(
    settings, change, message, corpus, make_run, recorded_progress
):
    change(corpus)
    with pytest.raises(VgsplusError, match=message):
        open_index(load(make_run(**settings)), Corpus.open(corpus), "test", progress=recorded_progress)
    assert recorded_progress.calls == []


@pytest.mark.parametrize(
    ("trained", "message"),
    [
        ({"model": "resnet50"}, "training, by resnet50"),
        ({"model": "dinov2-small", "layer": 4, "regions": "6x6 grid"}, "by dinov2-small, layer 4, 6x6 grid"),
    ],
)
def test_regions_of_another_kind_are_an_error(corpus, make_run, trained, message):
    _set(corpus, provenance={"regions": {"model": "dinov2-small", "layer": 8}})
    model = load(make_run())
    model.about = {"regions": trained}
    with pytest.raises(VgsplusError, match=f"described by dinov2-small, layer 8; those of .*{message}"):
        open_index(model, Corpus.open(corpus), "test")


def test_speech_alone_is_an_error(corpus, make_run):
    lines = [json.loads(line) for line in (corpus / "captions.jsonl").read_text().splitlines()]
    text = "".join(json.dumps(line | {"image": None}) + "\n" for line in lines)
    (corpus / "captions.jsonl").write_text(text)
    with pytest.raises(VgsplusError, match="'test' has captions without pictures"):
        open_index(load(make_run()), Corpus.open(corpus), "test")
    _set(corpus, regions=None)
    with pytest.raises(VgsplusError, match="a corpus of speech alone"):
        open_index(load(make_run()), Corpus.open(corpus), "test")
