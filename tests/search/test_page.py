"""The page, by requests and, where Chromium and playwright are installed, in a browser."""

import contextlib
import io
import json
import shutil
import socket
import threading
import time

import pytest
from helpers import browser
from PIL import Image

from vgsplus.cli import main
from vgsplus.corpora import Corpus
from vgsplus.errors import VgsplusError
from vgsplus.interop.pretrained import load
from vgsplus.search.index import open_index
from vgsplus.search.server import bind, make_app, require_gradio

pytest.importorskip("gradio")
testclient = pytest.importorskip("starlette.testclient")
uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture
def app(index, tmp_path):
    (tmp_path / "uploads").mkdir()
    return make_app(index, tmp_path / "uploads")


@pytest.fixture
def client(app):
    with testclient.TestClient(app, base_url="http://localhost") as client:
        yield client


# ---- what is served ---------------------------------------------------------------------------------------


def test_pictures_and_sounds_are_served_by_row(client, index):
    picture = client.get("/picture/2")
    assert picture.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(picture.content)).size == (24, 24)
    sound = client.get("/sound/3")
    assert sound.headers["content-type"] == "audio/wav"
    assert sound.content == index.corpus.audio_path(index.captions[3]).read_bytes()


@pytest.mark.parametrize("row", ["4", "-1", "x", "0/../../corpus.json", "%2e%2e%2fcorpus.json"])
@pytest.mark.parametrize("kind", ["picture", "sound"])
def test_there_is_nothing_else_to_request(client, kind, row):
    row = "8" if (kind, row) == ("sound", "4") else row
    assert client.get(f"/{kind}/{row}").status_code in (404, 422)


def test_links_out_of_the_corpus_are_not_followed(client, corpus, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    shutil.copy(corpus / "audio" / "test-000-0.wav", tmp_path / "secret.wav")
    for name, secret in (("images/test/000.png", "secret.png"), ("audio/test-000-0.wav", "secret.wav")):
        (corpus / name).unlink()
        (corpus / name).symlink_to(tmp_path / secret)
    assert client.get("/picture/0").status_code == 404
    assert client.get("/sound/0").status_code == 404
    (corpus / "images/test/000.png").unlink()
    (corpus / "images/test/000.png").symlink_to(corpus / "images/test/001.png")
    assert client.get("/picture/0").status_code == 200


def test_a_corpus_may_be_a_link_itself(corpus, client):
    moved = corpus.rename(corpus.with_name("moved"))
    corpus.symlink_to(moved)
    assert client.get("/picture/0").status_code == 200
    assert client.get("/sound/0").status_code == 200


@pytest.mark.parametrize("prefix", ["file=", "file/", "proxy=file://", "stream/x/y/"])
def test_gradio_serves_no_file(client, corpus, prefix):
    for path in (
        *("/etc/passwd", corpus / "corpus.json", corpus / "images/test/000.png"),
        *(f"{corpus}/images/../../corpus/corpus.json", "pyproject.toml", "../../../../etc/passwd"),
        *("%2Fetc%2Fpasswd", "..%2f..%2f..%2f..%2fetc%2fpasswd"),
    ):
        response = client.get(f"/gradio_api/{prefix}{path}")
        assert response.status_code >= 400, path
        assert b"root:" not in response.content


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("words", [False, True])
@pytest.mark.parametrize("path", ["{}/audio/test-000-0.wav", "/etc/passwd", "http://127.0.0.1:9/x.wav"])
def test_gradio_takes_no_path_and_no_url_for_an_upload(client, corpus, tmp_path, path, words, is_stream):
    config = client.get("/config").json()
    functions = [d["id"] for d in config["dependencies"] if len(d["inputs"]) == 3]
    assert functions
    path = path.format(corpus)
    for function in functions:
        file = {"path": path, "is_stream": is_stream, "meta": {"_type": "gradio.FileData"}}
        data = [None, file if words else "", None if words else file]
        body = {"data": data, "fn_index": function, "session_hash": "s", "event_data": None}
        assert client.post("/gradio_api/queue/join", json=body).status_code == 200
        events = client.get("/gradio_api/queue/data?session_hash=s").text
        assert "process_completed" in events
        assert '"success":false' in events or (words and is_stream)  # words are searched for as text
        assert "ranked" not in events
        assert list((tmp_path / "uploads").rglob("*.*")) == []


def test_a_page_of_another_site_is_not_answered(client):
    assert client.get("/picture/0", headers={"Host": "example.org"}).status_code == 400
    for own in ("127.0.0.1:7860", "localhost:7860", "[::1]:7860"):
        assert client.get("/picture/0", headers={"Host": own}).status_code == 200


def test_uploads_are_in_their_folder(client, tmp_path):
    sent = client.post("/gradio_api/upload", files={"files": ("../../x.wav", b"RIFF")})
    assert sent.status_code == 200
    assert [path.name for path in tmp_path.rglob("x.wav")] == ["x.wav"]
    assert next((tmp_path / "uploads").rglob("x.wav"))
    assert client.get("/gradio_api/info").json()["named_endpoints"] == {}


# ---- before long work -------------------------------------------------------------------------------------


def test_a_port_in_use_is_an_error_before_the_model_is_read():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(VgsplusError, match=f"--port {port}: Address already in use. Name another"):
            bind("127.0.0.1", port)


def test_a_missing_gradio_names_the_extra(monkeypatch, capsys, corpus):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(VgsplusError, match="extra 'demo'"):
        require_gradio()
    with pytest.raises(SystemExit):
        main(["search", str(corpus), "--model", "missing"])
    assert "extra 'demo'" in capsys.readouterr().err


# ---- in a browser -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _serving(app):
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def address(app):
    with _serving(app) as address:
        yield address


def _ranked(page):
    """Titles of the pictures, and their scores."""
    titles = page.locator(".pictures li button").evaluate_all("all => all.map(b => b.title)")
    return titles, page.locator(".pictures .score").all_inner_texts()


def test_speech_ranks_pictures_and_a_picture_captions(address, index):
    sound = index.corpus.audio_path(index.captions[5])
    with browser(sound=sound) as page:
        requested = []
        page.on("request", lambda request: requested.append(request.url))
        page.goto(address)
        page.locator(".captions .pick").nth(5).click()
        page.locator(".pictures .score").first.wait_for()
        scores = index.images @ index.speech[5]
        order = scores.argsort(descending=True).tolist()
        shown = [index.image_ids[row] for row in order], [f"{s:.2f}".replace("-", "−") for s in scores[order]]
        assert _ranked(page) == shown

        page.locator(".pictures li button").nth(1).click()
        page.locator(".pair").wait_for()
        assert "2 of 4" in page.locator(".pair").inner_text()
        page.locator(".pair .shade").wait_for()
        assert 10 <= page.locator(".pair .times span").count() <= 30
        page.locator(".pair [data-play]").click()
        page.locator(".pair .times .now").wait_for()
        assert int(page.locator(".pair").evaluate("pair => pair.style.getPropertyValue('--moment')")) > 0
        page.locator(".pair .times .now").wait_for(state="detached")
        page.locator(".captions .score").first.wait_for()
        best = (index.speech @ index.images[order[1]]).argmax()
        assert page.locator(".captions .pick").first.get_attribute("data-pick") == str(int(best))

        page.locator("#recording [aria-label='Upload file']").click()
        page.locator("#recording input[type=file]").set_input_files(sound)
        page.locator(".pictures h2", has_text="ranked for the recording").wait_for()
        assert _ranked(page) == shown

        page.locator(".pair .close").click()
        page.locator(".pair").wait_for(state="detached")
        page.locator("#words textarea, #words input").fill("number 13")
        page.get_by_text("2 of 2 captions with these words").wait_for()
        assert [url for url in requested if not url.startswith((address, "blob:", "data:"))] == []


def test_an_answer_out_of_sight_is_scrolled_to_and_announced(address):
    with browser(viewport={"width": 390, "height": 300}) as page:
        top = "document.querySelector('.pair, .pictures').getBoundingClientRect().top"
        page.goto(address)
        page.locator(".captions .pick").first.click()
        page.locator("#status", has_text="Pictures, ranked for").wait_for()
        page.wait_for_function(f"{top} < 20")
        page.evaluate("scrollTo({ top: document.body.scrollHeight, behavior: 'instant' })")
        assert page.evaluate(top) < 0
        page.locator(".pictures li button").last.click()
        page.locator(".pair .shade").wait_for()
        page.wait_for_function(f"Math.abs({top}) < 20")
        assert "of 4" in page.locator("#status").inner_text()


def test_a_recording_from_the_microphone_is_embedded(address, index):
    with browser(sound=index.corpus.audio_path(index.captions[0])) as page:
        page.add_init_script("""
            const ask = MediaDevices.prototype.getUserMedia;
            MediaDevices.prototype.getUserMedia = function (wanted) {
              window.asked = wanted.audio;
              return ask.call(this, wanted);
            };
        """)
        page.goto(address)
        page.locator("#recording .record-button").click()
        time.sleep(1)
        page.locator("#recording .stop-button").click()
        page.locator(".pictures h2", has_text="ranked for the recording").wait_for()
        assert len(_ranked(page)[1]) == 4
        processing = "autoGainControl", "echoCancellation", "noiseSuppression"
        assert [page.evaluate("name => asked[name]", name) for name in processing] == [False] * 3


def test_text_of_a_caption_is_text(make_run, corpus, tmp_path):
    text = "<img src=x onerror='document.title = 1'> ${1+1} {{value}} @children"
    path = corpus / "captions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line | {"text": text}) + "\n" for line in lines))
    index = open_index(load(make_run()), Corpus.open(corpus), "test")
    with _serving(make_app(index, tmp_path)) as address, browser() as page:
        page.goto(address)
        page.locator(".captions .pick").first.click()
        page.locator(".pictures .score").first.wait_for()
        assert page.locator(".captions .text").first.inner_text() == text
        assert page.locator(".pictures h2").inner_text() == f"Pictures, ranked for “{text}”"
        assert page.title() == "Search in tiny"
