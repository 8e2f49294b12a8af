"""Commands that use a model: `convert` its checkpoint, `embed` sounds, `explain` a similarity."""

import itertools
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from vgsplus.cli.options import Layers, Model, Overwrite
from vgsplus.errors import VgsplusError
from vgsplus.parallel import process_count, process_rank
from vgsplus.progress import SILENT, console_progress


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            help="A run or checkpoint of vgsplus, a FaST-VGS bundle (.pth), a fairseq wav2vec 2.0 "
            "checkpoint, or a Hugging Face wav2vec 2.0 folder."
        ),
    ],
    target: Annotated[
        Path, typer.Argument(help="Folder to create; or a file ending in .pth, for a FaST-VGS bundle.")
    ],
    overwrite: Overwrite = False,
) -> None:
    """Convert a checkpoint to the format of vgsplus, or to a FaST-VGS bundle with its args.pkl.

    Lists the modules that were converted, unused tensors of the source, and modules that keep their initial
    values. No code in the source is executed.
    """
    from vgsplus.interop.convert import convert as run

    typer.echo(f"{run(source, target, overwrite=overwrite)}\n{target}")


def embed(
    model: Model,
    sounds: Annotated[
        Path,
        typer.Argument(
            help="A folder of sounds (WAV, FLAC, MP3, …) at any depth, or one file. zerospeech: the folder "
            "of the data set of the challenge."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write to. hdf5: the file to create.")],
    *,
    layers: Layers = "all",
    form: Annotated[
        Literal["npy", "pt", "hdf5", "zerospeech"],
        typer.Option(
            "--format",
            help="One NumPy or PyTorch file per sound, one HDF5 file, or the phonetic part of a submission "
            "to ZeroSpeech 2021, which contains one layer.",
        ),
    ] = "npy",
) -> None:
    """Extract the hidden states of transformer layers: (T, D) of one layer, (L, T, D) of several.

    Run the same command again to resume with the missing sounds (not for hdf5). Processes of torchrun
    (torchrun --nproc-per-node 4 -m vgsplus embed …) share the sounds, with npy and pt.
    """
    from vgsplus.evaluation.export import export, find_sounds, metadata_of, open_store, pending
    from vgsplus.evaluation.hidden_states import parse_layers
    from vgsplus.evaluation.zerospeech import FILL_IN, META, Submission, find_phonetic
    from vgsplus.interop.pretrained import load
    from vgsplus.training.runtime import device_name

    found, absent = find_phonetic(sounds) if form == "zerospeech" else (find_sounds(sounds), ())
    device = device_name("auto")
    if (count := process_count()) > 1:
        if form not in ("npy", "pt"):
            raise VgsplusError(f"--format {form}: several processes cannot write it; use one, or npy or pt.")
        found = dict(itertools.islice(found.items(), process_rank(), None, count))
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    loaded = load(model).to(device)
    chosen = parse_layers(layers, len(loaded.speech.layers))
    metadata = metadata_of(loaded, model, chosen)
    store = Submission(out, metadata, loaded) if form == "zerospeech" else open_store(form, out, metadata)
    with console_progress() if process_rank() == 0 else SILENT as progress:
        missing = pending(store, found, loaded, chosen, progress)
        export(store, missing, loaded, chosen, device=device, progress=progress)
    typer.echo(f"{len(missing)} sounds embedded, {len(found) - len(missing)} existed; {out}")
    if absent:
        typer.echo(f"Missing in {sounds}, and so in {out}: {', '.join(absent)}")
    if form == "zerospeech":
        typer.echo(f'Fill in the values "{FILL_IN}" of {out / META}.')


def explain(
    run: Model,
    sound: Annotated[Path, typer.Argument(help="A sound file of any rate.")],
    picture: Annotated[Path, typer.Argument(help="A picture.")],
    *,
    out: Annotated[Path, typer.Option(help="Figure to write: .png, .pdf or .svg.")],
) -> None:
    """Draw where in a picture and when in a sound a model finds what they share.

    The picture shows its colours where the regions are that the sound names, and is pale elsewhere: for the
    complete sound, and at a few moments. Below is the score of each moment: the similarity that is lost if
    the sound is silent there.
    """
    from vgsplus.audio import load_any
    from vgsplus.interop.pretrained import load
    from vgsplus.regions.images import open_image
    from vgsplus.report.pointing import check_figure, write_figure
    from vgsplus.training.runtime import device_name

    check_figure(out)
    signal, image = load_any(sound), open_image(picture)
    found = load(run, device=device_name("auto")).localise(signal, image)
    title = f"{sound.name} and {picture.name}: similarity {found.similarity:.3g}"
    write_figure(out, signal, image, found, title)
    typer.echo(out)
