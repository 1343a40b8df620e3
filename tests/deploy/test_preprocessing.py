"""The lines of docs/deploy.md that read an image give what training and `predict` read, bit for bit."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.common.inputs import Inputs
from experiments.common.inputs import read as read_image
from lowcost.deploy.input_steps import preprocessing

PAGE = (Path(__file__).parents[2] / "docs/deploy.md").read_text()
(BLOCK,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "ImageOps.fit" in block)
FORMS = {
    "PNG": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"),
    "JPEG": ("L", "RGB", "CMYK"),
    "TIFF": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"),
    "WEBP": ("L", "RGB", "RGBA"),
    "GIF": ("L", "P"),
    "BMP": ("1", "L", "P", "RGB"),
}


@pytest.fixture(scope="module")
def read():
    """Returns the function that the page defines."""
    names: dict = {}
    exec(BLOCK, names)
    return names["read"]


def picture(mode, size):
    """Returns an image of waves and noise with all levels of alpha."""
    rng = np.random.default_rng(0)
    waves = np.add.outer(np.arange(size[1]) ** 2, np.arange(size[0]))[..., None] % (251, 199, 97, 256)
    pixels = (waves + rng.integers(0, 32, waves.shape)).clip(0, 255).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 256 + pixels[..., 1])
    return Image.fromarray(pixels, "RGBA").convert(mode)


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in FORMS.items() for mode in modes])
def test_images_are_read_as_by_predict(read, form, mode, tmp_path):
    """Tests odd sizes, all EXIF orientations and JPEGs decoded at reduced size, for RGB and grey networks."""
    file = tmp_path / f"image.{form.lower()}"
    for orientation, size in enumerate(
        ((41, 23), (16, 16), (67, 300), (5, 9), (640, 401), (16, 24), (24, 16), (33, 1))
    ):
        exif = Image.Exif()
        exif[0x0112] = 1 + orientation
        picture(mode, size).save(file, form, **({} if form in ("GIF", "BMP") else {"exif": exif}))
        for shape in ((16, 16, 3), (24, 16, 3), (16, 16, 1)):
            want = read_image(file, Inputs(shape))
            got = read(file, *shape)
            assert (got.shape, got.dtype) == (shape, np.float32)
            assert got.tobytes() == want.tobytes(), (orientation, size, shape)


def test_transparent_colours_are_white(read, tmp_path):
    """The page treats transparent colours of palettes and of RGB without alpha as `predict` does."""
    colours = picture("RGB", (40, 30))
    colours.save(tmp_path / "rgb.png", transparency=colours.getpixel((3, 3)))
    colours.convert("P").save(tmp_path / "palette.png", transparency=0)
    colours.convert("P").save(tmp_path / "palette.gif", transparency=5)
    for name in ("rgb.png", "palette.png", "palette.gif"):
        np.testing.assert_array_equal(
            read(tmp_path / name, 16, 16, 3), read_image(tmp_path / name, Inputs((16, 16, 3)))
        )


CHANGES = {
    "jpeg": ("(side, side)", "image.size"),
    "orientation": ("ImageOps.exif_transpose(image)", "image.copy()"),
    "depth": ("1 / 256", "1 / 255"),
    "transparency": ('"white"', '"black"'),
    "colour": ('image.convert("RGBA")', 'image.convert("L").convert("RGBA")'),
    "crop": ("ImageOps.fit(page, (width, height), ", "page.resize((width, height), "),
    "size": ("(width, height), Image", "(height, width), Image"),
    "filter": ("LANCZOS", "BILINEAR"),
    "channels": ('image.convert("L") if channels', 'image.getchannel("G") if channels'),
    "range": ("/ 255", "/ 256"),
}


@pytest.mark.parametrize("step", CHANGES)
def test_every_step_changes_some_image(step, tmp_path):
    """Without any step some image differs, so the comparison above can fail; the metadata name exactly these steps."""
    source = BLOCK.replace(*CHANGES[step])
    assert source != BLOCK
    names: dict = {}
    exec(source, names)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture("RGB", (640, 401)).save(tmp_path / "image.jpg", exif=exif)
    picture("RGBA", (40, 23)).save(tmp_path / "image.png")
    picture("I;16", (40, 23)).save(tmp_path / "deep.png")
    pairs = [
        (names["read"](file, *shape), read_image(file, Inputs(shape)))
        for file in tmp_path.iterdir()
        for shape in ((24, 16, 3), (24, 16, 1))
    ]
    assert any((got != want).any() for got, want in pairs)
    assert CHANGES.keys() | {"input"} == json.loads(preprocessing((24, 16, 3))).keys()
