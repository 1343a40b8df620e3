"""Any PNG or JPEG becomes the RGB picture that a viewer shows."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from lowcost.data.pictures import read_picture, read_pictures

RAMP = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)


def jpeg(picture, **options):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def noise(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def png_header(width, height):
    """A PNG that claims to be huge: the classical decompression bomb."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(RAMP),
        Image.fromarray(RAMP).convert("P"),
        Image.fromarray(RAMP).convert("LA"),
        Image.fromarray(RAMP).convert("RGB"),
        Image.fromarray(RAMP).convert("RGBA"),
        Image.fromarray(RAMP.astype(np.uint16) * 257),
    ],
    ids=["L", "P", "LA", "RGB", "RGBA", "16 bits"],
)
def test_every_mode_of_a_grey_ramp_is_the_same_ramp(picture, tmp_path):
    picture.save(tmp_path / "ramp.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "ramp.png"), np.stack([RAMP] * 3, -1))


def test_cmyk_jpegs_are_converted(tmp_path):
    (tmp_path / "red.jpg").write_bytes(jpeg(Image.new("RGB", (8, 8), "red").convert("CMYK")))
    np.testing.assert_allclose(read_picture(tmp_path / "red.jpg"), np.full((8, 8, 3), [255, 0, 0]), atol=4)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_shows_white(mode, tmp_path):
    """Whatever colour lies unseen beneath it."""
    clear = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    clear.save(tmp_path / "clear.png", **({"transparency": bytes(256)} if mode == "P" else {}))
    assert (read_picture(tmp_path / "clear.png") == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(orientation, tmp_path):
    """Read as the EXIF orientation says, whole and cut to a square."""
    picture, exif = noise(8, 24).resize((96, 32)), Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.jpg").write_bytes(jpeg(picture, exif=exif))
    with Image.open(tmp_path / "a.jpg") as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored))
    assert upright.shape == ((32, 96, 3) if orientation < 5 else (96, 32, 3))
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jpg"), upright)
    square = upright[:, 32:64] if orientation < 5 else upright[32:64]
    np.testing.assert_array_equal(read_picture(tmp_path / "a.jpg", (32, 32)), square)


def test_the_content_tells_the_format(tmp_path):
    (tmp_path / "a.png").write_bytes(jpeg(noise(8, 8)))
    assert read_picture(tmp_path / "a.png").shape == (8, 8, 3)


@pytest.mark.parametrize("size", [(512, 384), (30, 40)])
def test_resizing_is_antialiased(size, tmp_path):
    """A constant stays constant; a fine checkerboard becomes its mean instead of an alias; also through draft mode."""
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "flat.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "flat.png", (16, 16)), np.full((16, 16, 3), [10, 20, 30]))
    board = Image.fromarray((np.indices(size[::-1]).sum(0) % 2 * 255).astype(np.uint8))
    (tmp_path / "board.jpg").write_bytes(jpeg(board))
    if min(size) > 64:
        assert abs(read_picture(tmp_path / "board.jpg", (16, 16)).astype(int) - 128).max() < 16


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(16, 16)] * 3, (16, 16)),
        ([(128, 96)] * 3, (128, 96)),
        ([(28, 28)] * 3, (32, 32)),  # not divisible by 8
        ([(136, 136)] * 3, (64, 64)),  # too large
        ([(16, 16), (16, 24), (16, 16)], (32, 32)),  # mixed
        ([(50, 300), (63, 500), (200, 200)], (32, 32)),  # the median shorter side is 63
        ([(50, 300), (64, 500), (200, 200)], (64, 64)),
    ],
)
def test_the_size_that_pictures_come_to(sizes, expected, tmp_path):
    paths = [str(tmp_path / f"{i}.jpg") for i in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        Image.new("RGB", size[::-1]).save(path)
    assert read_pictures(paths).shape == (3, *expected, 3)
    assert read_pictures(paths, 24).shape == (3, 24, 24, 3)


WHOLE = jpeg(noise(64, 64))


@pytest.mark.parametrize(
    "content",
    [
        WHOLE[: len(WHOLE) // 2],
        WHOLE[:30],
        b"",
        b"not a picture",
        png_header(8, 8),
        png_header(10**5, 10**5),
        b"GIF89a" + bytes(100),
    ],
    ids=["half", "header", "empty", "text", "no pixels", "bomb", "gif"],
)
@pytest.mark.parametrize("image_size", [None, 16])
def test_an_unreadable_file_is_named(content, image_size, tmp_path):
    """The first of them, in one line that says what to do."""
    paths = [str(tmp_path / f"{i}.png") for i in range(100)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    for bad in (40, 90):
        (tmp_path / f"{bad}.png").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"40\.png: expected a readable PNG or JPEG, .*; remove or replace it$"
    ) as error:
        read_pictures(paths, image_size)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_that_pillow_only_warns_of_is_refused(tmp_path):
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    with pytest.raises(ValueError, match="12000 x 12000 pixels, more than"):
        read_picture(tmp_path / "bomb.png")
