"""A packed corpus on an HTTP server of this machine, which answers ranges and can be told to misbehave."""

import re
import threading
import time
from collections import Counter, defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vgsplus.corpora.packing import pack
from vgsplus.remote import path

ATTEMPTS = 4


class Server(ThreadingHTTPServer):
    """Serves the files of a folder.

    Attributes:
        faults: for a file name, what goes wrong with its next requests for ranges, one fault a request.
        ranges: whether ranges are answered as such.
        tags: whether answers have an ETag.
        requests: number of requests of each file name for a range.
    """

    daemon_threads = True

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.faults: dict[str, list] = defaultdict(list)
        self.ranges, self.tags = True, True
        self.requests: Counter[str] = Counter()
        self.url = f"http://127.0.0.1:{self.server_port}/c"

    def handle_error(self, request, client_address):
        """Say nothing: connections are broken on purpose."""

    # What can go wrong with one request:

    @staticmethod
    def breaks_off(handler, content):
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])
        handler.close_connection = True

    @staticmethod
    def ends_early(handler, content):
        """Send half of the content as if it were all."""
        handler.send_header("Content-Length", str(len(content) // 2))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])

    @staticmethod
    def hangs(handler, content):
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        time.sleep(1)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        file = self.server.folder / self.path.removeprefix("/c/")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        faults = self.server.faults[file.name]
        fault = faults.pop(0) if faults and (asked or isinstance(faults[0], int)) else None
        if isinstance(fault, int) or not file.is_file():
            self.send_error(fault or 404)
            return
        content = file.read_bytes()
        tag = f'"{file.stat().st_mtime_ns:x}"'
        if asked and self.server.ranges and self.headers.get("If-Range", tag) == tag:
            self.server.requests[file.name] += 1
            total, content = len(content), content[int(asked[1]) : int(asked[2]) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {asked[1]}-{asked[2]}/{total}")
        else:
            self.send_response(200)
        if self.server.tags:
            self.send_header("ETag", tag)
        if fault is not None:
            fault(self, content)
            return
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture(scope="session")
def packed(tmp_path_factory, tiny_corpus):
    root = tmp_path_factory.mktemp("packed") / "c"
    pack(tiny_corpus, root, shard_bytes=60_000)
    return root


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    """An empty cache, and few attempts without pauses."""
    monkeypatch.setenv("VGSPLUS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name, value in {"TIMEOUT": 0.3, "ATTEMPTS": ATTEMPTS, "ATTEMPTS_REFUSED": 2, "PAUSE": 0}.items():
        monkeypatch.setattr(path, name, value)
    return tmp_path / "cache"


@pytest.fixture
def serve():
    """A function that serves a folder."""
    servers = []

    def serve(folder):
        servers.append(server := Server(folder))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return server

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def server(packed, serve):
    return serve(packed)
