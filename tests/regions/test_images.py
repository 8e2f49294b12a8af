"""Pictures of every kind through the one function that opens them."""

import unicodedata

import numpy as np
import pytest
from PIL import Image

from vgsplus.errors import CorpusError
from vgsplus.regions.images import open_image
from vgsplus.regions.pixel_grid import over_white

RAMP = np.linspace(0, 1, 64).reshape(8, 8)


def seen(path):
    """What models see of a picture: (height, width) of grey values."""
    return np.asarray(over_white(open_image(path)).convert("L"), np.float64)


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        (RAMP.astype(np.float32), "tiff"),
        ((RAMP * 255).astype(np.float32), "tiff"),
        ((RAMP * 1e5 - 3e4).astype(np.float32), "tiff"),
        ((RAMP * 255).astype(np.int32), "tiff"),
        ((RAMP * 65535).astype(np.int32), "tiff"),
        ((RAMP * 2e9 - 1e9).astype(np.int32), "tiff"),
        ((RAMP * 65535).astype(np.uint16), "png"),
        ((RAMP * 65535).astype(np.uint16), "tiff"),
        ((RAMP * 255).astype(np.uint8), "png"),
    ],
)
def test_grey_of_any_number_type_shows_the_same_ramp(tmp_path, values, suffix):
    path = tmp_path / f"ramp.{suffix}"
    Image.fromarray(values).save(path)
    np.testing.assert_allclose(seen(path), RAMP * 255, atol=1.01)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_8_bits_shows_what_it_shows(tmp_path, mode):
    path = tmp_path / "a.tiff" if mode in ("CMYK", "YCbCr") else tmp_path / "a.png"
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 4, axis=1)).convert(mode).save(path)
    assert np.abs(seen(path) - [[0] * 4 + [255] * 4]).max() <= 6


def test_transparency_lies_over_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "a.png")
    assert seen(tmp_path / "a.png").min() == 255


def test_a_constant_picture_of_floats_is_one_colour(tmp_path):
    Image.fromarray(np.full((4, 4), 7.5, np.float32)).save(tmp_path / "a.tiff")
    assert len(set(seen(tmp_path / "a.tiff").flat)) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, value):
    values = RAMP.astype(np.float32)
    values[3, 3] = value
    Image.fromarray(values).save(tmp_path / "a.tiff")
    with pytest.raises(CorpusError, match=r"a\.tiff: cannot be read as a picture .*not finite"):
        open_image(tmp_path / "a.tiff")


@pytest.mark.filterwarnings("ignore")  # Pillow's, of tags that it passes over
@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "tiff", "bmp", "webp"])
def test_broken_pictures_are_refused_as_such(tmp_path, kind):
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{kind}"
    Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    whole = path.read_bytes()
    for _ in range(60):
        content = bytearray(whole[: rng.integers(4, len(whole) + 1)])
        for place in rng.integers(0, len(content), 3):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            over_white(open_image(path))
        except CorpusError as error:
            assert str(error).startswith(f"{path}: cannot be read as a picture")  # noqa: PT017 - some can be read


@pytest.mark.parametrize("name", ["none.png", "a" * 5000, "a\0b.png"])
def test_a_picture_that_is_not_there_is_refused(tmp_path, name):
    with pytest.raises(CorpusError, match="there is no such picture"):
        open_image(tmp_path / name)


@pytest.mark.parametrize(("stored", "asked"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_picture_is_found_under_either_unicode_form(tmp_path, stored, asked):
    Image.new("RGB", (4, 3)).save(tmp_path / unicodedata.normalize(stored, "größe.png"))
    assert open_image(tmp_path / unicodedata.normalize(asked, "größe.png")).size == (4, 3)
