import base64
import io
import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from vgsplus.audio import SAMPLE_RATE
from vgsplus.cli import main
from vgsplus.corpora import Corpus
from vgsplus.fetching import archives, fetch
from vgsplus.regions.published import COLUMNS

SOUND = 0.3 * np.sin(np.arange(SAMPLE_RATE // 2) / 10)
IMAGE = "COCO_train2014_000000000009"


def run(capsys, *arguments):
    code = 0
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def sound(kind):
    out = io.BytesIO()
    soundfile.write(out, SOUND, SAMPLE_RATE, format=kind)
    return out.getvalue()


def subset(name, speaker):
    chapter = f"LibriSpeech/{name}/{speaker}/7"
    return {
        f"{chapter}/{speaker}-7-0000.flac": sound("FLAC"),
        f"{chapter}/{speaker}-7.trans.txt": f"{speaker}-7-0000 A WORD\n".encode(),
    }


def detections():
    """A row of LXMERT's TSV: two regions of one picture."""
    record = dict.fromkeys(COLUMNS, np.zeros(2, np.int64)) | {
        "img_id": IMAGE,
        "img_h": 100,
        "img_w": 200,
        "objects_conf": np.float32([0.2, 0.9]),
        "attrs_conf": np.float32([0.5, 0.5]),
        "num_boxes": 2,
        "boxes": np.float32([[0, 0, 10, 10], [5, 5, 50, 50]]),
        "features": np.ones((2, 4), np.float32),
    }
    cells = [record[name] for name in COLUMNS]
    texts = [base64.b64encode(c).decode() if isinstance(c, np.ndarray) else str(c) for c in cells]
    return ("\t".join(texts) + "\n").encode()


def ids(corpus):
    found = Corpus.open(corpus)
    return {split: [caption.id for caption in found.captions(split)] for split in found.splits}


@pytest.fixture
def table(server, monkeypatch):
    """Serve a small file under an archive's own name, and expect no more of it than that."""

    def put(name, body):
        archive = archives.find_archive(name)
        small = archives.Archive(
            name=name, url=server.url(archive.file), unpacks_to=archive.unpacks_to, licence=archive.licence
        )
        others = tuple(other for other in archives.ARCHIVES if other.name != name)
        monkeypatch.setattr(archives, "ARCHIVES", (*others, small))
        return server.serve(archive.file, body)

    return put


def test_without_a_name_the_archives_are_listed(capsys):
    code, out, _ = run(capsys, "data", "fetch")
    assert code == 0
    assert all(archive.name in out for archive in archives.ARCHIVES)


def test_fetch_says_what_it_fetches_and_what_nobody_vouches_for(table, tar_of, tmp_path, capsys):
    served = table("librilight-abx", tar_of({"ABX_data/dev-clean.item": b"#file"}))
    code, out, _ = run(capsys, "data", "fetch", "librilight-abx", tmp_path)
    assert code == 0
    assert "no published checksum" in out
    assert f"{tmp_path / 'ABX_data'}: ready" in out
    code, out, _ = run(capsys, "data", "fetch", "librilight-abx", tmp_path)
    assert code == 0
    assert out.strip() == f"{tmp_path / 'ABX_data'}: ready"
    assert len(served.requests) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["librilight-abc", "x"], 1, "the nearest is 'librilight-abx'"),
        (["librilight-abx"], 2, "DIR"),
    ],
)
def test_fetch_says_what_is_wrong(arguments, code, said, capsys):
    stopped, _, err = run(capsys, "data", "fetch", *arguments)
    assert stopped == code
    assert said in err


def test_mirrors_are_tried_first(table, server, tar_of, tmp_path, capsys):
    served = table("librilight-abx", tar_of({"ABX_data/dev-clean.item": b"#file"}))
    mirror = server.serve("mirror/ABX_data.tgz", served.body)
    arguments = ["--mirror", server.url("absent"), "--mirror", server.url("mirror")]
    code, _, _ = run(capsys, "data", "fetch", "librilight-abx", tmp_path, *arguments)
    assert code == 0
    assert len(mirror.requests) == 1
    assert not served.requests


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupt(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch, "fetch", interrupt)
    code, _, err = run(capsys, "data", "fetch", "librilight-abx", tmp_path)
    assert code == 130
    assert f"The received bytes of ABX_data.tgz are kept in {tmp_path}; run the same command to resume" in err


def test_librispeech_fetches_what_is_missing(table, tar_of, tmp_path, capsys):
    training = table("librispeech-train-clean-100", tar_of(subset("train-clean-100", 103)))
    table("librispeech-dev-clean", tar_of(subset("dev-clean", 84)))
    root, corpus = tmp_path / "downloads", tmp_path / "corpus"
    arguments = ["data", "librispeech", corpus, "--root", root, "--download"]
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "--download needs --train" in err
    assert not root.exists()
    code, _, err = run(capsys, *arguments, "--train", "train-clean-100")
    assert (code, "Traceback" in err) == (0, False)
    assert ids(corpus) == {"train": ["103-7-0000"], "validation": ["84-7-0000"]}
    code, _, _ = run(capsys, *arguments[:3], "--overwrite", "--download", "--root", root / "LibriSpeech")
    assert code == 0
    assert len(training.requests) == 1


def test_spokencoco_fetches_sounds_lists_and_regions(table, tar_of, zip_of, tmp_path, capsys):
    caption = {"text": "A DOG", "speaker": "m1", "uttid": "m1_9", "wav": "wavs/m1_9.wav"}
    listed = {"data": [{"image": f"train2014/{IMAGE}.jpg", "captions": [caption]}]}
    files = {"SpokenCOCO_train.json": json.dumps(listed).encode(), "wavs/m1_9.wav": sound("WAV")}
    served = table("spokencoco", tar_of({f"SpokenCOCO/{name}": body for name, body in files.items()}))
    regions = table("obj36-train2014", zip_of({"train2014_obj36.tsv": detections()}))
    table("obj36-val2014", zip_of({"mscoco_imgfeat/val2014_obj36.tsv": detections().replace(b"009", b"010")}))
    root, corpus = tmp_path / "downloads", tmp_path / "corpus"
    arguments = ["data", "spokencoco", corpus, "--download", "--overwrite"]
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert "--download needs --root" in err
    pictures = tmp_path / "pictures"
    (pictures / "train2014").mkdir(parents=True)
    Image.new("RGB", (60, 60), "red").save(pictures / "train2014" / f"{IMAGE}.jpg")
    code, _, err = run(capsys, *arguments, "--root", root, "--images", pictures)
    assert (code, regions.requests) == (0, []), err
    for place in (root, root / "SpokenCOCO"):
        code, _, err = run(capsys, *arguments, "--root", place)
        assert (code, "Traceback" in err) == (0, False), err
        assert ids(corpus) == {"train": ["m1_9"]}
    assert len(served.requests) == 1
