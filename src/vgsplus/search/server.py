"""The web server of the search, bound to this machine unless asked otherwise.

A picture or sound is requested by its row in the index, never by a path, and a file that a link leads to out
of the corpus' folders is not served. The page needs no network: no fonts, scripts or telemetry of others.
"""

import contextlib
import io
import os
import secrets
import socket
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vgsplus import audio
from vgsplus.audio_files import parse_path
from vgsplus.errors import VgsplusError
from vgsplus.files import as_on_disk
from vgsplus.regions.images import open_image
from vgsplus.regions.pixel_grid import over_white
from vgsplus.remote import RemotePath
from vgsplus.search.index import Index
from vgsplus.search.page import Page

if TYPE_CHECKING:
    from fastapi import FastAPI

LARGEST_UPLOAD = "100mb"
PICTURE_SIDE = 640
"""Pixels of the longer side of a picture as it is sent."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")
FONTS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]


def require_gradio() -> None:
    """Raise VgsplusError if Gradio is not installed."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio  # noqa: F401, PLC0415 - an extra
    except ModuleNotFoundError:
        raise VgsplusError(
            "the package gradio is not installed. Install vgsplus with its extra 'demo': "
            "uv pip install -e '.[demo]' in the checkout"
        ) from None


def bind(host: str, port: int) -> socket.socket:
    """Return a socket that listens later, so that a port in use is an error before long work.

    Raises:
        VgsplusError: the port is in use, or the address is not one of this machine.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VgsplusError(
            f"--host {host} --port {port}: {reason}. Name another by --host or --port."
        ) from None
    return listening


def serve(index: Index, listening: socket.socket) -> None:
    """Serve the page on a bound socket until Ctrl-C."""
    import uvicorn  # noqa: PLC0415 - of the extra

    host = listening.getsockname()[0]
    with tempfile.TemporaryDirectory() as uploads:
        app = make_app(index, Path(uploads), local=host in LOOPBACK)
        # An open page keeps a connection, for which a server would wait.
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])


def make_app(index: Index, uploads: Path, *, local: bool = True) -> "FastAPI":
    """Return the web application.

    Args:
        index: what is searched.
        uploads: folder for the sounds of visitors.
        local: answer only requests to this machine by its own names, which a page of another site that has
            its name point here does not use.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    import gradio as gr  # noqa: PLC0415 - an extra
    from fastapi import FastAPI  # noqa: PLC0415
    from starlette.middleware.trustedhost import TrustedHostMiddleware  # noqa: PLC0415

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    if local:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])
    _add_files(app, index)
    theme = gr.themes.Base(font=FONTS, font_mono=["ui-monospace", "monospace"]).set(**_colours())
    blocks = Page(index, secrets.token_hex(4)).blocks()
    _refuse_paths(blocks)
    gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=theme,
        css_paths=[Path(__file__).parent / "page.css"],
    )
    return app


def _refuse_paths(blocks: Any) -> None:  # noqa: ANN401 - a gradio.Blocks
    """Let events name no files but uploads: neither those of this machine nor those of other servers."""
    blocks.has_launched = True  # Gradio compares paths with its folder of uploads only then, not if mounted

    async def refuse_url(move: Callable[[str | None], Awaitable[str | None]], path: str | None) -> str | None:
        if path is not None and "://" in str(path):
            raise VgsplusError("A URL is not fetched: upload the file.")
        return await move(path)

    for block in blocks.blocks.values():
        block.async_move_resource_to_block_cache = partial(
            refuse_url, block.async_move_resource_to_block_cache
        )


def _colours() -> dict[str, str]:
    """Return the variables of Gradio's theme that are those of page.css, in light and dark."""
    named = {
        "body_background_fill": "background",
        "body_text_color": "ink",
        "body_text_color_subdued": "muted",
        "background_fill_primary": "raised",
        "background_fill_secondary": "background",
        "block_background_fill": "raised",
        "block_border_color": "rule",
        "border_color_primary": "rule",
        "border_color_accent": "accent",
        "color_accent": "accent",
        "color_accent_soft": "soft-accent",
        "block_label_background_fill": "raised",
        "block_label_text_color": "muted",
        "block_title_text_color": "muted",
        "input_background_fill": "raised",
        "input_border_color": "rule",
        "input_border_color_focus": "accent",
        "input_placeholder_color": "muted",
        "button_secondary_background_fill": "raised",
        "button_secondary_background_fill_hover": "soft-accent",
        "button_secondary_text_color": "ink",
        "button_secondary_border_color": "rule",
    }
    light = {name: f"var(--{colour})" for name, colour in named.items()}
    return light | {f"{name}_dark": value for name, value in light.items() if name != "color_accent"}


def _add_files(app: "FastAPI", index: Index) -> None:
    from starlette.responses import Response  # noqa: PLC0415

    def respond(rows: int, read: Callable[[int], tuple[str, bytes]], row: int) -> Response:
        try:
            kind, content = read(row) if 0 <= row < rows else ("", b"")
        except (OSError, VgsplusError):
            content = b""
        if not content:
            return Response(status_code=404)
        headers = {"Cache-Control": "private, max-age=86400", "X-Content-Type-Options": "nosniff"}
        return Response(content, media_type=kind, headers=headers)

    def picture(row: int) -> Response:
        return respond(len(index.image_ids), partial(_picture, index), row)

    def sound(row: int) -> Response:
        return respond(len(index.captions), partial(_sound, index), row)

    app.add_api_route("/picture/{row}", picture, response_class=Response)
    app.add_api_route("/sound/{row}", sound, response_class=Response)


def _picture(index: Index, row: int) -> tuple[str, bytes]:
    corpus = index.corpus
    path = corpus.image_path(index.image_ids[row])
    _require_inside(path, corpus.root / str(corpus.info["image_root"]))
    picture = over_white(open_image(path))
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=92)
    return "image/jpeg", buffer.getvalue()


def _sound(index: Index, row: int) -> tuple[str, bytes]:
    caption = index.captions[row]
    path = index.corpus.audio_path(caption)
    file = as_on_disk(parse_path(os.fspath(path))[0])
    _require_inside(file, file.parent if Path(caption.audio).is_absolute() else index.corpus.audio_root)
    suffix, content = audio.contents(path)
    return {".flac": "audio/flac", ".ogg": "audio/ogg"}.get(suffix, "audio/wav"), content


def _require_inside(path: Path, folder: Path) -> None:
    """Raise VgsplusError if a path leads out of a folder, by ".." or links."""
    if not isinstance(path, RemotePath) and not path.resolve().is_relative_to(folder.resolve()):
        raise VgsplusError(f"{path}: is not in {folder}.")
