"""The command that opens a page to search a corpus (`search`)."""

from typing import Annotated

import typer

from vgsplus.cli.options import PreparedCorpus
from vgsplus.progress import console_progress


def search(
    corpus: PreparedCorpus,
    *,
    model: Annotated[
        str, typer.Option(help="A run folder, hf:organisation/name, or any model that `vgsplus.load` reads.")
    ],
    split: Annotated[str, typer.Option(help='The split to search, or "all".')] = "test",
    host: Annotated[
        str,
        typer.Option(help="Address to listen on. 0.0.0.0: everyone on the network can search, and listen."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
) -> None:
    """Open a page to search pictures by speech, and captions by pictures. Needs the extra demo.

    The pictures and captions are embedded once and kept in the cache. Ctrl-C stops.
    """
    from vgsplus.corpora import Corpus
    from vgsplus.interop.pretrained import load
    from vgsplus.search.index import open_index
    from vgsplus.search.server import bind, require_gradio, serve
    from vgsplus.training.runtime import device_name

    require_gradio()
    listening = bind(host, port)
    opened = Corpus.open(corpus)
    loaded = load(model, device=device_name("auto"))
    with console_progress() as progress:
        index = open_index(loaded, opened, split, progress=progress)
    address = f"[{host}]" if ":" in host else host
    typer.echo(f"http://{address}:{port}  {len(index.image_ids)} pictures, {len(index.captions)} captions")
    serve(index, listening)
