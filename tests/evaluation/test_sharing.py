"""Processes that share an evaluation find what one finds. Threads take their place here."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from vgsplus.corpora import Corpus
from vgsplus.corpora.sources.toy.corpus import prepare_toy
from vgsplus.evaluation import abx_layers, embeddings, lexical
from vgsplus.evaluation.abx_items import read_items
from vgsplus.evaluation.abx_layers import AbxTask, score_layers
from vgsplus.evaluation.embeddings import embed_split
from vgsplus.evaluation.lexical import embed_words
from vgsplus.evaluation.segmentation import evaluate as segmentation
from vgsplus.functional import check_stop, gather_objects, stopping_together
from vgsplus.progress import Progress

PROCESSES = 3


@pytest.fixture
def together(monkeypatch):
    """Call a function in `PROCESSES` threads that share, and return its values."""
    barrier, this, objects = threading.Barrier(PROCESSES), threading.local(), [None] * PROCESSES

    def gather(own):
        objects[this.rank] = copy.deepcopy(own)
        barrier.wait(60)
        found = list(objects)
        barrier.wait(60)
        return found

    def call(function):
        def run(rank):
            this.rank = rank
            return function()

        for module in (abx_layers, embeddings, lexical, segmentation):
            monkeypatch.setattr(module, "own_share", lambda items: items[this.rank :: PROCESSES])
            monkeypatch.setattr(module, "gather_objects", gather)
        with ThreadPoolExecutor(PROCESSES) as pool:
            return list(pool.map(run, range(PROCESSES)))

    return call


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora") / "toy"
    prepare_toy(root, train_images=1, validation_images=1, test_images=4)
    return root


def test_retrieval(together, toy, make_model):
    corpus = Corpus.open(toy)
    model = make_model(feature_dim=corpus.feature_dim).eval()
    alone = embed_split(model, corpus, "test", batch_size=3)
    for shared in together(lambda: embed_split(copy.deepcopy(model), corpus, "test", batch_size=3)):
        assert (shared.image_ids, shared.captions) == (alone.image_ids, alone.captions)
        torch.testing.assert_close(shared.images, alone.images)
        torch.testing.assert_close(shared.speech, alone.speech)


@pytest.mark.parametrize("layers", [None, [2]], ids=["a layer each", "one layer"])
def test_abx(together, toy, make_model, layers):
    task = AbxTask(items=read_items(toy / "test.item", audio_root=toy / "audio"))
    model = make_model().eval()
    alone = score_layers(model, task, layers=layers)
    assert together(lambda: score_layers(copy.deepcopy(model), task, layers=layers)) == [alone] * PROCESSES


@pytest.mark.parametrize("mode", ["utterance", "frame"])
def test_words(together, toy, make_model, mode):
    words = {path.stem: path for path in sorted((toy / "audio" / "test").rglob("*.*"))[:7]}
    model = make_model().eval()
    alone = embed_words(model, words, mode)
    for shared in together(lambda: embed_words(copy.deepcopy(model), words, mode)):
        torch.testing.assert_close(list(shared), list(alone))


def test_segmentation(together, toy, make_model, tmp_path):
    words = segmentation.read_words(toy / "test.ctm")
    model = make_model().eval()
    alone = segmentation.evaluate(model, words)
    assert sum(len(sound.segments) for sound in words) == alone[0].counts.words.reference
    grids = tmp_path / "grids"
    assert (
        together(lambda: segmentation.evaluate(copy.deepcopy(model), words, textgrids=grids))
        == [alone] * PROCESSES
    )
    assert len(list(grids.rglob("*.TextGrid"))) == len(words)


def test_abx_stops_between_pairs(toy, make_model):
    task, begun = AbxTask(items=read_items(toy / "test.item", audio_root=toy / "audio")), []
    shown = Progress()
    shown.update = lambda stage, *_: begun.append(stage)
    with stopping_together(lambda: "model: pairs of tokens" in begun):
        score_layers(make_model().eval(), task, progress=shown)
        pytest.fail("goes on")
    assert begun.count("model: pairs of tokens") == 1


def share_until_a_stop(rank, folder, asked_at):
    """Share two stages of ten parts each; process 1 is asked to stop after `asked_at` parts."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=PROCESSES)
    done, stages = [], []
    with stopping_together(lambda: rank == 1 and len(done) >= asked_at):
        for stage in range(2):
            for part in range(10):
                check_stop()
                done.append(part)
            stages += gather_objects([stage])
    (folder / str(rank)).write_text(f"{len(done)} {len(stages) // PROCESSES}")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize(("asked_at", "finished"), [(0, 0), (5, 0), (10, 1), (13, 1), (99, 2)])
def test_processes_leave_together(tmp_path, asked_at, finished):
    start_processes(share_until_a_stop, (tmp_path, asked_at), nprocs=PROCESSES, start_method="fork")
    ended = [(tmp_path / str(rank)).read_text().split() for rank in range(PROCESSES)]
    assert [int(stages) for _, stages in ended] == [finished] * PROCESSES
    assert int(ended[1][0]) == min(asked_at, 20)
