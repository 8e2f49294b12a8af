import numpy as np
import pytest
from PIL import Image

from vgsplus.regions.pixel_grid import GRID_REGIONS, grid_regions


def photo(seed=0, size=(150, 90)):
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", [(1, 1), (5, 300), (120, 120), (640, 427)])
def test_any_size_gives_the_same_shape_of_finite_features(size):
    features, boxes = grid_regions(photo(size=size))
    assert features.shape == (GRID_REGIONS, 224)
    assert features.dtype == boxes.dtype == np.float32
    assert np.isfinite(features).all()


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1", "I;16"])
def test_any_mode_is_accepted(mode):
    image = Image.new("I;16", (30, 30)) if mode == "I;16" else photo().convert(mode)
    assert grid_regions(image)[0].shape == (GRID_REGIONS, 224)


def test_16_bits_are_scaled_not_cut_off():
    grey = np.asarray(photo().convert("L"))
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    np.testing.assert_array_equal(grid_regions(deep)[0], grid_regions(Image.fromarray(grey))[0])


def test_boxes_tile_the_picture_by_rows():
    boxes = grid_regions(photo())[1]
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    np.testing.assert_allclose((widths * heights).sum(), 1, atol=1e-6)
    np.testing.assert_allclose(boxes[1, :2], [1 / 6, 0], atol=1e-6)
    np.testing.assert_allclose(boxes[-1], [5 / 6, 5 / 6, 1, 1], atol=1e-6)


def test_transparency_is_laid_over_white():
    clear = Image.new("RGBA", (60, 60), (255, 0, 0, 0))
    white = Image.new("RGB", (60, 60), "white")
    np.testing.assert_allclose(grid_regions(clear)[0], grid_regions(white)[0], atol=1e-6)


def test_a_change_affects_only_its_cell_and_the_neighbours_whose_window_contains_it():
    image = photo(size=(96, 96))
    changed = image.copy()
    changed.paste((255, 0, 0), (40, 40, 48, 48))  # inside cell (2, 2), away from its edges
    differs = (grid_regions(image)[0] != grid_regions(changed)[0]).any(axis=1).reshape(6, 6)
    assert differs[2, 2]
    differs[1:4, 1:4] = False
    assert not differs.any()


def test_features_depend_on_colours_and_orientations():
    def stripes(*, upright, colour=(0, 0, 0)):
        image = np.full((96, 96, 3), 255, np.uint8)
        (image[:, ::4] if upright else image[::4])[:] = colour
        return grid_regions(Image.fromarray(image))[0]

    def distance(one, other):
        return np.abs(one - other).mean()

    upright, flat = stripes(upright=True), stripes(upright=False)
    assert distance(upright, stripes(upright=True)) == 0
    assert distance(upright[:, 192:], flat[:, 192:]) > 0.3
    assert distance(upright[:, :192], stripes(upright=True, colour=(255, 0, 0))[:, :192]) > 0.1


def test_features_are_of_about_unit_scale():
    features = np.stack([grid_regions(photo(seed))[0] for seed in range(20)])
    for part in (features[..., :192], features[..., 192:]):
        assert abs(part.mean()) < 1.5
        assert 0.2 < part.std() < 2
