"""A packed corpus at a URL is the corpus in the folder."""

import gc
import shutil

import fsspec
import pytest
import torch

from vgsplus.corpora import Corpus, validate
from vgsplus.corpora.packing import pack
from vgsplus.corpora.reader import open_regions
from vgsplus.errors import AudioError, CorpusError, DownloadError, VgsplusError
from vgsplus.remote import RemotePath, locate, path
from vgsplus.training.data import SpeechImageDataset, load_batches
from vgsplus.training.run_folder import fingerprint
from vgsplus.training.sampler import BatchIndices

REQUESTS = [BatchIndices(rows, with_images=True) for rows in ((3, 14, 1, 5), (9, 2, 6, 15), (0, 0, 1, 7))]


def dataset(root, split="train"):
    corpus = Corpus.open(root)
    return SpeechImageDataset(corpus=corpus, captions=corpus.captions(split), max_samples=9000)


def assert_same(batches, others):
    for one, other in zip(batches, others, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("workers", [0, 2])
def test_its_batches_are_those_of_the_folder_also_in_workers(packed, server, workers):
    expected = [dataset(packed)[request] for request in REQUESTS]
    found = [batch for (batch,) in load_batches((dataset(server.url), REQUESTS), workers=workers)]
    assert_same(found, expected)


def test_it_has_the_captions_and_fingerprint_of_the_folder_and_no_faults(packed, server):
    local, remote = Corpus.open(packed), Corpus.open(server.url)
    assert fingerprint(remote) == fingerprint(local)
    assert all(list(remote.captions(split)) == list(local.captions(split)) for split in local.splits)
    assert remote.image_path(remote.image_ids[0]) == local.image_path(local.image_ids[0])
    assert validate(server.url) == []


def test_only_what_is_needed_is_read_and_only_once(packed, server):
    corpus = Corpus.open(server.url)
    assert not any(name.endswith(".tar") for name in server.requests)
    caption = corpus.captions("train")[3]
    shard, start, size = caption.audio.split(":")
    before = server.requests.total()
    assert corpus.audio_path(caption) == locate(f"{server.url}/shards/{caption.audio}")
    for _ in range(2):
        dataset(server.url)[BatchIndices((3, 3))]
    assert server.requests[shard] == server.requests.total() - before == 1
    content = (packed / "shards" / shard).read_bytes()[int(start) : int(start) + int(size)]
    assert RemotePath(f"{server.url}/shards/{shard}").read_range(int(start), int(size)) == content


def test_nothing_is_collected_while_h5py_waits_for_the_network(server, monkeypatch):
    collecting = []
    request = path._request
    monkeypatch.setattr(path, "_request", lambda *a: collecting.append(gc.isenabled()) or request(*a))
    with open_regions(locate(server.url)) as store:
        assert len(store.image_ids) == 16
    assert collecting
    assert not any(collecting)
    assert gc.isenabled()


def test_an_object_store_is_read_through_its_driver(packed):
    store = fsspec.filesystem("memory")
    store.put(str(packed), "/bucket/c", recursive=True)
    assert_same(
        [dataset("memory://bucket/c")[one] for one in REQUESTS], map(dataset(packed).__getitem__, REQUESTS)
    )


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/corpus", r"^s3://bucket/corpus/corpus.json: the driver for s3:// .*s3fs"),
        ("gs://bucket/corpus", r"^gs://bucket/corpus/corpus.json: the driver for gs:// .*gcsfs"),
        ("corpora://bucket", r"^corpora://bucket/corpus.json: .*corpora"),
    ],
)
def test_a_missing_driver_is_named(url, message):
    with pytest.raises(DownloadError, match=message):
        Corpus.open(url)


def test_a_corpus_that_is_not_packed_is_refused(tiny_corpus, serve):
    with pytest.raises(CorpusError, match="is not packed"):
        Corpus.open(serve(tiny_corpus).url)


def test_a_corpus_at_a_url_is_not_packed_again(server, tmp_path):
    with pytest.raises(CorpusError, match=f"^{server.url}: the corpus is packed already"):
        pack(server.url, tmp_path / "out")


# ---- faults -----------------------------------------------------------------------------------------------

FILES = ("corpus.json", "captions.jsonl", "regions.h5", "train-000000.tar")


@pytest.mark.parametrize("fault", ["breaks_off", "ends_early", "hangs", 404, 403, 500, 503])
def test_what_fails_once_is_requested_again(packed, server, fault):
    for name in FILES:
        server.faults[name].append(fault if isinstance(fault, int) else getattr(server, fault))
    assert_same([dataset(server.url)[REQUESTS[0]]], [dataset(packed)[REQUESTS[0]]])
    assert not any(server.faults.values())


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        *((name, fault) for name in FILES for fault in ("breaks_off", 404, 403, 500)),
        *((FILES[-1], fault) for fault in ("ends_early", "hangs")),
    ],
)
def test_what_fails_every_time_is_named_by_its_url(server, fault, name):
    folder = f"{server.url}/shards" if name.endswith(".tar") else server.url
    server.faults[name] = 50 * [fault if isinstance(fault, int) else getattr(server, fault)]
    named = server.url if name == "corpus.json" else f"{folder}/{name}"
    with pytest.raises(VgsplusError, match=named) as error:
        for _ in load_batches((dataset(server.url), REQUESTS), workers=1):
            pass
    if isinstance(fault, int) and fault != 404:
        assert f"responded {fault}" in str(error.value)


def test_a_server_that_is_gone_is_named(server):
    corpus = dataset(server.url)
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match=server.url):
        corpus[REQUESTS[0]]


@pytest.mark.parametrize("tags", [True, False])
def test_a_server_without_ranges_is_refused_before_it_sends_the_file(packed, serve, tags, monkeypatch):
    server = serve(packed)
    server.ranges, server.tags = False, tags
    monkeypatch.setattr("vgsplus.remote.path.BLOCK", 1 << 10)
    monkeypatch.setattr("vgsplus.remote.path.SMALL", 1 << 10)
    with pytest.raises(DownloadError, match="does not support ranges"):
        dataset(server.url)[REQUESTS[0]]


@pytest.mark.parametrize("name", ["captions.jsonl", "regions.h5", "train-*.tar"])
def test_a_file_that_changes_while_in_use_is_an_error_and_is_read_when_opened_again(
    packed, serve, tmp_path, name, own_cache
):
    root = shutil.copytree(packed, tmp_path / "served")
    server = serve(root)
    data = dataset(server.url)
    data[REQUESTS[0]]
    for file in root.rglob(name):
        file.write_bytes(file.read_bytes())
    shutil.rmtree(own_cache)
    with pytest.raises(CorpusError, match=r"has changed since it was opened"):
        data[REQUESTS[0]]
    assert_same([dataset(server.url)[REQUESTS[0]]], [dataset(packed)[REQUESTS[0]]])


def test_a_changed_corpus_is_not_read_from_the_cache(packed, serve, tmp_path):
    root = shutil.copytree(packed, tmp_path / "served")
    server = serve(root)
    dataset(server.url)[REQUESTS[0]]
    for shard in (root / "shards").iterdir():
        shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(AudioError, match=f"{server.url}/shards/.*cannot be read as sound"):
        dataset(server.url)[REQUESTS[0]]
