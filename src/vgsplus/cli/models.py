"""Commands that take any model: convert it, write what its layers hear."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from vgsplus.cli.progress import bar


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A run or checkpoint of ours, a published bundle (.pth), a fairseq wav2vec 2.0 checkpoint, "
            "or a Hugging Face wav2vec 2.0 folder."
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(help="The folder to make; or a file ending in .pth, for a published bundle."),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
) -> None:
    """Write a model in our format, or back as a published bundle with its args.pkl.

    Prints which blocks were taken, which were not used, and which stay at their initial values. Nothing in
    the source is executed.
    """
    from vgsplus.interop.convert import convert as run

    report = run(source, target, overwrite=overwrite)
    Console().print(f"{report}\n{target}", markup=False, highlight=False, soft_wrap=True)


def embed(
    model: Annotated[Path, typer.Argument(help="A run, or any model that convert takes.")],
    sounds: Annotated[
        Path,
        typer.Argument(
            help="A folder of .wav, .flac or .ogg files at any depth, or one file; for zerospeech, the "
            "folder of the challenge's dataset."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to write to; for hdf5, the file to make.")],
    *,
    layers: Annotated[str, typer.Option(help='"all", or numbers from 1, as "1,2,8".')] = "all",
    form: Annotated[
        Literal["npy", "pt", "hdf5", "zerospeech"],
        typer.Option(
            "--format",
            help="A NumPy or PyTorch file a sound, one HDF5 file, or the phonetic part of a submission to "
            "ZeroSpeech 2021, which takes one layer.",
        ),
    ] = "npy",
) -> None:
    """Write the frames of transformer layers of every sound: (T, D) of one layer, (L, T, D) of several.

    Stopped and started again, it goes on with the sounds that are missing (but for hdf5).
    """
    from vgsplus.evaluation.export import export, open_store, origin_of, select
    from vgsplus.evaluation.layers import choose_layers
    from vgsplus.evaluation.sounds import find_sounds
    from vgsplus.evaluation.zerospeech import FILL_IN, META, Submission, find_phonetic
    from vgsplus.interop.loading import load
    from vgsplus.training.machine import device_name

    found, absent = find_phonetic(sounds) if form == "zerospeech" else (find_sounds(sounds), ())
    device = device_name("auto")
    loaded = load(model).to(device)
    chosen = choose_layers(layers, len(loaded.speech.layers))
    origin = origin_of(loaded, model, chosen)
    store = Submission(out, origin, loaded) if form == "zerospeech" else open_store(form, out, origin)
    with bar("checking") as checked:
        missing = select(store, found, loaded, chosen, checked)
    with bar("embedding") as embedded:
        export(store, missing, loaded, chosen, device=device, progress=embedded)
    said = [f"{len(missing)} sounds embedded, {len(found) - len(missing)} were there; {out}"]
    if absent:
        said.append(f"Absent from {sounds}, and so from {out}: {', '.join(absent)}")
    if form == "zerospeech":
        said.append(f'{out / META}: replace what says "{FILL_IN}"')
    Console().print("\n".join(said), markup=False, highlight=False, soft_wrap=True)
