"""An HTTP server on this machine that can be told to misbehave, and small archives for it to serve."""

import io
import re
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vgsplus.fetching import download


@dataclass
class Served:
    """A file under an address, and what goes wrong with its first requests, one fault a request."""

    body: bytes
    etag: str | None = '"v1"'
    ranges: bool = True
    faults: list[Callable] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, Served] = {}

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def serve(self, path: str, body: bytes, *faults, **properties) -> Served:
        self.files[path] = Served(body, faults=list(faults), **properties)
        return self.files[path]

    def handle_error(self, request, client_address):
        """Say nothing: connections are broken on purpose."""

    # What can go wrong with one request:

    @staticmethod
    def breaks_off(after):
        """Close the connection when `after` bytes of this answer are sent."""
        return lambda handler, served: handler.give(served, stop=after)

    @staticmethod
    def claims(length):
        """Send all of the file under a Content-Length that is not its own."""
        return lambda handler, served: handler.give(served, claim=length)

    @staticmethod
    def answers(status):
        return lambda handler, _served: handler.send_error(status)

    @staticmethod
    def hangs(seconds):
        return lambda _handler, _served: time.sleep(seconds)

    @staticmethod
    def streams(handler, served):
        """Send the file without any length; the end of the connection is its end."""
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(served.body)

    @staticmethod
    def redirects(url):
        def redirect(handler, _served):
            handler.send_response(302)
            handler.send_header("Location", url)
            handler.end_headers()

        return redirect


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        served = self.server.files.get(self.path[1:])
        if served is None:
            self.send_error(404)
            return
        served.requests.append(dict(self.headers))
        if served.faults:
            served.faults.pop(0)(self, served)
        else:
            self.give(served)

    def give(self, served, *, stop=None, claim=None):
        """Answer as RFC 9110 asks; `stop` sends that many bytes only, `claim` is a length that is not so."""
        first = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and served.ranges and self.headers.get("If-Range") in (None, served.etag):
            first = int(asked[1])
            if first >= len(served.body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(served.body)}")
                self.end_headers()
                return
            self.send_response(206)
            total = len(served.body)
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        else:
            self.send_response(200)
        rest = served.body[first:]
        self.send_header("Content-Length", str(len(rest) if claim is None else claim))
        if served.etag:
            self.send_header("ETag", served.etag)
        self.end_headers()
        self.wfile.write(rest[:stop])

    def log_message(self, *_):
        """Say nothing."""


ATTEMPTS = 3


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Retry a few times, without pauses."""
    for name, value in {"TIMEOUT": 5, "ATTEMPTS": ATTEMPTS, "PAUSE": 0}.items():
        monkeypatch.setattr(download, name, value)


@pytest.fixture
def server(monkeypatch):
    """A server on this machine, and nothing between it and the client."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def tar_of():
    """A .tar.gz of {name: bytes} and of further TarInfo members."""

    def make(files, *specials):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as tar:
            for name, content in files.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            for member in specials:
                tar.addfile(member)
        return out.getvalue()

    return make


@pytest.fixture(scope="session")
def zip_of():
    """A .zip of {name or ZipInfo: bytes}."""

    def make(files):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return out.getvalue()

    return make
