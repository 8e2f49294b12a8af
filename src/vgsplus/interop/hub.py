"""Models on the Hugging Face hub: fetch and upload them, and write their model cards.

Files and methods follow the mixins of huggingface_hub, which is installed by the extra "hub". The mixins
themselves would read pickles where there are no safetensors, and accept missing tensors.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from vgsplus.errors import CheckpointError, DownloadError, VgsplusError
from vgsplus.interop.huggingface import CONFIG, INDEX, PREPROCESSOR, SAFETENSORS
from vgsplus.models.vgsplus import VGSPlus
from vgsplus.regions.restore import describe

if TYPE_CHECKING:
    from types import ModuleType

PREFIX = "hf:"
CARD = "README.md"
FETCHED = (CONFIG, PREPROCESSOR, SAFETENSORS, f"{SAFETENSORS}{INDEX}", "model-*.safetensors", CARD)
"""Files that are fetched: neither code nor pickles."""
TAGS = ["audio", "speech", "self-supervised-learning", "visually-grounded-speech", "wav2vec2"]


def fetch(repo_id: str, **options: Any) -> Path:  # noqa: ANN401 - as huggingface_hub takes them
    """Return the folder of a repository in the cache, after fetching what the cache lacks.

    Options are those of `huggingface_hub.snapshot_download`.

    Raises:
        VgsplusError: huggingface_hub is not installed.
        DownloadError: the repository, or its revision, is neither in the cache nor can be fetched.
        CheckpointError: it holds no safetensors.
    """
    hub = _library()
    with _errors(f"{PREFIX}{repo_id}", "cannot be fetched"):
        folder = Path(hub.snapshot_download(repo_id, allow_patterns=list(FETCHED), **options))
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(
            f"{PREFIX}{repo_id}: holds no {SAFETENSORS}, and pickles are not fetched from the hub. If it has "
            "one, download it and name its file."
        )
    return folder


def upload(
    folder: Path, repo_id: str, *, private: bool | None, token: str | None, commit_message: str
) -> str:
    """Upload a folder to a repository, which is created if necessary, and return the URL of the commit.

    Raises:
        VgsplusError: huggingface_hub is not installed, or the hub refuses.
    """
    hub = _library()
    with _errors(f"{PREFIX}{repo_id}", "cannot be uploaded"):
        api = hub.HfApi(token=token)
        name = api.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message=commit_message))


def _library() -> "ModuleType":
    try:
        import huggingface_hub  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise VgsplusError(
            "the package huggingface_hub is not installed. Install vgsplus with its extra 'hub': "
            "uv pip install -e '.[hub]' in the checkout"
        ) from None
    return huggingface_hub


@contextmanager
def _errors(name: str, what: str) -> Iterator[None]:
    try:
        yield
    # Its network clients have exceptions of their own.
    except Exception as error:  # noqa: BLE001
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DownloadError(
            f"{name}: {what} ({why}). Check the name, the network and the token; a folder is named without "
            f"{PREFIX}."
        ) from None


# ---- model card -------------------------------------------------------------------------------------------


def public_record(about: Mapping[str, Any]) -> dict[str, Any]:
    """Return what others may know of the training (see `PretrainedModel.about`).

    The last scores and validation losses are added from the log of the run, if there is one. Names of files
    lose their folders, which are those of this machine.
    """
    from vgsplus.training.log import losses_in, read_log  # noqa: PLC0415 - TensorBoard takes half a second

    recorded = {key: about[key] for key in ("regions", "training") if key in about}
    if not (training := recorded.get("training")):
        return recorded
    training = dict(training)
    training["schedule"] = [_without_folders(phase) for phase in training.get("schedule", [])]
    if checkpoint := about.get("checkpoint"):
        for kind in ("evaluation", "validation"):
            for record in read_log(Path(checkpoint).parent.parent, kind):
                if record["step"] <= training["updates"]:
                    found = record["scores"] if kind == "evaluation" else losses_in(record)
                    training[kind] = {"updates": record["step"], **found}
    return {**recorded, "training": training}


def _without_folders(phase: Mapping[str, Any]) -> dict[str, Any]:
    shown = dict(phase)
    if shown.get("init"):
        shown["init"] = Path(str(shown["init"])).name
    if speech := shown.get("additional_speech"):
        shown["additional_speech"] = {**speech, "corpus": Path(str(speech["corpus"])).name}
    return shown


def model_card(
    model: VGSPlus, about: Mapping[str, Any], *, licence: str | None = None, repo_id: str | None = None
) -> str:
    """Return the model card: metadata of the hub, use, sizes, schedule, data, measures and licence."""
    metadata = {"library_name": "vgsplus", "pipeline_tag": "feature-extraction", "tags": TAGS}
    if licence:
        metadata["license"] = licence
    c, training = model.config, about.get("training") or {}
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    layers = c.shared_layers + c.ssl_layers
    kind = "grounded in pictures" if c.grounded else "without grounding in pictures"
    lines = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False).strip()}\n---",
        f"# {(repo_id or 'A model of vgsplus').rpartition('/')[2]}",
        f"A speech encoder {kind}: {millions:.1f} M parameters, {layers} layers of {c.dim} dimensions.",
        f"```python\nimport vgsplus\n\nmodel = vgsplus.load({PREFIX + (repo_id or 'ORGANISATION/NAME')!r})",
    ]
    if c.grounded:
        lines[-1] += '\nspeech, pictures = model.encode_speech(["a.wav"]), model.encode_image(["a.png"])'
        lines[-1] += "\nscores = model.similarity(speech, pictures)"
    lines[-1] += '\nhidden_states = model.layers("a.wav")\n```'
    lines += ["## Training", *_training(training)]
    lines += ["## Data", *_data(training, about, model)]
    lines += ["## Measures", *_measures(training)]
    stated = f"The weights: {licence}." if licence else "The licence of the weights is not stated."
    lines += ["## Licence", stated]
    return "\n\n".join(lines) + "\n"


def _training(training: Mapping[str, Any]) -> Iterator[str]:
    if not training:
        yield "Not recorded."
        return
    rows = ["| phase | epochs | α | learning rate | further |", "| --- | --- | --- | --- | --- |"]
    for phase in training["schedule"]:
        further = [f"starts from {phase['init']}"] if phase.get("init") else []
        if speech := phase.get("additional_speech"):
            further.append(f"additional speech of {speech['corpus']}, weight {speech['weight']}")
        rate = phase.get("optimizer", {}).get("lr")
        cells = (phase["name"], f"{phase['epochs']:.4g}", phase["alpha"], rate, "; ".join(further))
        rows.append(f"| {' | '.join(map(str, cells))} |")
    if training["schedule"]:
        yield "The schedule; α weights grounding in pictures, 1 − α self-supervision:"
        yield "\n".join(rows)
    yield (
        f"This model: {training['updates']:,} updates ({training['epochs']:.4g} epochs), in phase "
        f"{training['phase']}, seed {training['seed']}."
    )


def _data(training: Mapping[str, Any], about: Mapping[str, Any], model: VGSPlus) -> Iterator[str]:
    corpus = training.get("corpus") or {}
    if not corpus.get("name"):
        yield "The corpus is not recorded."
    else:
        licence = corpus.get("licence")
        yield f"The corpus {corpus['name']}, version {corpus['version']}" + (
            f", under this licence: {licence}." if licence else "."
        )
    if image := model.config.image:
        layer = f", layer {image.layer}" if image.layer else ""
        yield f"Pictures are read by {image.backbone}{layer}, which is part of the model."
    elif model.config.grounded:
        yield f"Description of pictures: {describe(about.get('regions'))}."


def _measures(training: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("evaluation", "validation"):
        if found := training.get(kind):
            rows = [f"| {kind} after {found['updates']:,} updates | |", "| --- | --- |"]
            rows += [f"| {name} | {_measure(value)} |" for name, value in found.items() if name != "updates"]
            yield "\n".join(rows)
    if not training.get("evaluation") and not training.get("validation"):
        yield "None are recorded."


def _measure(value: float | Sequence[float]) -> str:
    """Format a number, or a number and the ends of its 95 % interval."""
    if isinstance(value, Sequence):
        number, low, high = value
        return f"{number:.3g} ({low:.3g} to {high:.3g})"
    return f"{value:.4g}"
