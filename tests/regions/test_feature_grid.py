import pytest
import torch
from PIL import Image

from vgsplus.regions.feature_grid import GridDescriber, pool


def tiny(seed=0):
    torch.manual_seed(seed)
    network = torch.nn.Conv2d(3, 5, 8, stride=8)
    return GridDescriber(
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


def test_a_cell_sees_its_own_part_of_the_picture():
    describer = tiny()
    grey = Image.new("RGB", (300, 120), "grey")
    marked = grey.copy()
    marked.paste("red", (0, 0, 50, 20))  # the first of 6 x 6 cells
    features, boxes = describer.describe([describer.prepare(grey), describer.prepare(marked)])
    changed = (features[0] - features[1]).abs().amax(-1) > 1e-3
    assert changed[0]
    assert not changed[12:].any()
    assert boxes[1, 0].tolist() == pytest.approx([0, 0, 1 / 6, 1 / 6])


def test_a_picture_is_described_alike_alone_and_beside_others():
    describer = tiny()
    pictures = [describer.prepare(Image.effect_noise((50, 40), spread)) for spread in (20, 90)]
    features, _ = describer.describe(pictures)
    torch.testing.assert_close(features[1:], describer.describe(pictures[1:])[0])


def test_what_is_transparent_is_white():
    describer = tiny()
    clear = describer.prepare(Image.new("RGBA", (9, 9), (0, 0, 0, 0)))
    assert torch.equal(clear, describer.prepare(Image.new("RGB", (9, 9), "white")))
