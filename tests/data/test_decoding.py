"""Any image file becomes the RGB image that a viewer shows."""

import io
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from lowcost.data.decoding import read_image, read_images

RAMP = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)


def jpeg(picture, **options):
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def noise(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width, height, bits=8, colour=2):
    """Returns the header of a PNG file; alone and with a huge size, it is the classical decompression bomb."""
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))


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
    np.testing.assert_array_equal(read_image(tmp_path / "ramp.png"), np.stack([RAMP] * 3, -1))


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)], ids=["L", "RGB", "LA", "RGBA"])
def test_pngs_of_16_bits_per_channel_hold_the_same_ramp(colour, channels, tmp_path):
    """Writes the files by hand, because Pillow writes 16 bits per channel only in grey."""
    levels = np.stack([RAMP.astype(">u2") * 257] * channels, -1)
    if colour >= 4:
        levels[..., -1] = 65535
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    content = png_header(8, 8, 16, colour) + png_chunk(b"IDAT", zlib.compress(rows)) + png_chunk(b"IEND", b"")
    (tmp_path / "ramp.png").write_bytes(content)
    np.testing.assert_array_equal(read_image(tmp_path / "ramp.png"), np.stack([RAMP] * 3, -1))


@pytest.mark.parametrize("form", ["PNG", "BMP", "GIF", "TIFF"])
def test_images_of_one_bit_are_black_and_white(form, tmp_path):
    white = np.arange(64).reshape(8, 8) % 3 == 0
    Image.fromarray(white).save(tmp_path / "bits", form)
    np.testing.assert_array_equal(read_image(tmp_path / "bits"), np.stack([white * np.uint8(255)] * 3, -1))


@pytest.mark.parametrize("mode", ["L", "RGB", "YCbCr", "CMYK"])
def test_jpegs_of_every_mode_hold_about_the_same_ramp(mode, tmp_path):
    (tmp_path / "ramp.jpg").write_bytes(jpeg(Image.fromarray(RAMP).convert("RGB").convert(mode)))
    assert abs(read_image(tmp_path / "ramp.jpg").astype(int) - RAMP[..., None]).max() < 8


def test_cmyk_jpegs_are_converted(tmp_path):
    (tmp_path / "red.jpg").write_bytes(jpeg(Image.new("RGB", (8, 8), "red").convert("CMYK")))
    np.testing.assert_allclose(read_image(tmp_path / "red.jpg"), np.full((8, 8, 3), [255, 0, 0]), atol=4)


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        *(("TIFF", mode) for mode in ("L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B")),
        *(("BMP", mode) for mode in ("L", "P", "RGB", "RGBA")),
        *(("GIF", mode) for mode in ("L", "P", "RGB")),
        *(("WEBP", mode) for mode in ("L", "P", "LA", "RGB", "RGBA")),
    ],
)
def test_other_formats_hold_the_same_ramp(form, mode, tmp_path):
    if mode.startswith("I;16"):
        deep = (RAMP.astype(np.uint16) * 257).astype("<u2" if mode == "I;16" else ">u2")
        picture = Image.frombytes(mode, (8, 8), deep.tobytes())
    else:
        picture = Image.fromarray(RAMP).convert(mode)
    picture.save(tmp_path / "ramp", form, **({"lossless": True} if form == "WEBP" else {}))
    with Image.open(tmp_path / "ramp") as saved:
        assert saved.format == form
    np.testing.assert_array_equal(read_image(tmp_path / "ramp"), np.stack([RAMP] * 3, -1))


@pytest.mark.parametrize("form", ["GIF", "TIFF", "WEBP", "PNG"])
def test_the_first_of_several_frames_is_read(form, tmp_path):
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")
    first.save(tmp_path / "frames", form, save_all=True, append_images=[second])
    assert (read_image(tmp_path / "frames") == 255).all()


@pytest.mark.parametrize(
    ("bits", "kind", "white"),
    [(16, 1, 0), (12, 1, 1), (16, 2, 1), (32, 1, 1), (32, 3, 1)],
    ids=["zero is white", "12 bits", "signed", "32 bits", "float"],
)
def test_grey_levels_of_unknown_range_are_refused(bits, kind, white, tmp_path):
    """Pillow reads these TIFFs too, but too dark, clipped or inverted."""
    size, strip = 8 * 8 * bits // 8, 8 + 2 + 9 * 12 + 4
    tags = {256: 8, 257: 8, 258: bits, 259: 1, 262: white, 273: strip, 277: 1, 279: size, 339: kind}
    entries = b"".join(
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags.items()
    )
    content = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + bytes(size)
    (tmp_path / "grey.tif").write_bytes(content)
    with Image.open(tmp_path / "grey.tif") as opened:
        opened.load()
    with pytest.raises(ValueError, match=r"grey\.tif must be .*grey levels must have 8 or 16 bits"):
        read_image(tmp_path / "grey.tif")


@pytest.mark.parametrize(
    ("form", "mode", "options"),
    [
        *((form, mode, {}) for form in ("PNG", "WEBP", "TIFF") for mode in ("RGBA", "LA")),
        ("PNG", "P", {"transparency": bytes(256)}),
        ("GIF", "P", {"transparency": 0}),
    ],
)
def test_transparency_shows_white(form, mode, options, tmp_path):
    """Transparent pixels become white whatever colour they hide."""
    clear = Image.new("P", (8, 8), 0) if mode == "P" else Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    clear.save(tmp_path / "clear", form, **options)
    assert (read_image(tmp_path / "clear") == 255).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(orientation, tmp_path):
    """Images are turned as their EXIF orientation states, whole or cropped to a square."""
    picture, exif = noise(8, 24).resize((96, 32)), Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "a.jpg").write_bytes(jpeg(picture, exif=exif))
    with Image.open(tmp_path / "a.jpg") as stored:
        upright = np.asarray(ImageOps.exif_transpose(stored))
    assert upright.shape == ((32, 96, 3) if orientation < 5 else (96, 32, 3))
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), upright)
    square = upright[:, 32:64] if orientation < 5 else upright[32:64]
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg", (32, 32)), square)


def test_the_content_tells_the_format(tmp_path):
    (tmp_path / "a.png").write_bytes(jpeg(noise(8, 8)))
    assert read_image(tmp_path / "a.png").shape == (8, 8, 3)


@pytest.mark.parametrize("size", [(512, 384), (30, 40)])
def test_resizing_is_antialiased(size, tmp_path):
    """A constant stays constant; a fine checkerboard becomes its mean instead of an alias, also in draft mode."""
    Image.new("RGB", size, (10, 20, 30)).save(tmp_path / "flat.png")
    np.testing.assert_array_equal(read_image(tmp_path / "flat.png", (16, 16)), np.full((16, 16, 3), [10, 20, 30]))
    board = Image.fromarray((np.indices(size[::-1]).sum(0) % 2 * 255).astype(np.uint8))
    (tmp_path / "board.jpg").write_bytes(jpeg(board))
    if min(size) > 64:
        assert abs(read_image(tmp_path / "board.jpg", (16, 16)).astype(int) - 128).max() < 16


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
def test_the_size_that_images_come_to(sizes, expected, tmp_path):
    paths = [str(tmp_path / f"{i}.jpg") for i in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        Image.new("RGB", size[::-1]).save(path)
    assert read_images(paths).shape == (3, *expected, 3)
    assert read_images(paths, 24).shape == (3, 24, 24, 3)


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
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    ],
    ids=["half", "header", "empty", "text", "no pixels", "bomb", "gif", "postscript"],
)
@pytest.mark.parametrize("image_size", [None, 16])
def test_an_unreadable_file_is_named(content, image_size, tmp_path):
    """The error names the first unreadable file in one line and states the remedy."""
    paths = [str(tmp_path / f"{i}.png") for i in range(100)]
    for path in paths:
        Image.new("RGB", (8, 8)).save(path)
    for bad in (40, 90):
        (tmp_path / f"{bad}.png").write_bytes(content)
    with pytest.raises(ValueError, match=r"40\.png must be a readable image .*; remove or replace it$") as error:
        read_images(paths, image_size)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("image_size", [None, 16])
def test_more_pixels_than_allowed_are_refused_undecoded(image_size, tmp_path):
    """The default refuses a file of 57 bytes that would become 269 MB; max_pixels sets another, inclusive limit."""
    empty = bytes(4) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "bomb.png").write_bytes(png_header(8_000, 8_400) + empty)
    with pytest.raises(ValueError, match="8000 x 8400 pixels, more than max_pixels 50,000,000"):
        read_images([str(tmp_path / "bomb.png")], image_size)
    Image.new("1", (40, 20)).save(tmp_path / "small.png")
    assert len(read_images([str(tmp_path / "small.png")], image_size, max_pixels=800)) == 1
    with pytest.raises(ValueError, match="40 x 20 pixels, more than max_pixels 799"):
        read_images([str(tmp_path / "small.png")], image_size, max_pixels=799)


def test_the_limit_is_on_the_pixels_that_are_decoded(tmp_path):
    """A large JPEG is decoded at an eighth of its size if that is enough; the default size is found by its header."""
    Image.new("RGB", (1600, 1600)).save(tmp_path / "large.jpg")
    assert read_images([str(tmp_path / "large.jpg")], None, max_pixels=200**2).shape == (1, 64, 64, 3)
    with pytest.raises(ValueError, match="200 x 200 pixels"):
        read_image(tmp_path / "large.jpg", (64, 64), max_pixels=200**2 - 1)
    with pytest.raises(ValueError, match="1600 x 1600 pixels"):
        read_image(tmp_path / "large.jpg", max_pixels=1600**2 - 1)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_no_regular_file_is_refused_unopened(tmp_path):
    """Opening a pipe without a writer would block forever, also through a link."""
    os.mkfifo(pipe := tmp_path / "pipe.png")
    release = threading.Timer(5, lambda: os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)))  # frees a reader
    release.start()
    (tmp_path / "link.png").symlink_to("pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "link.png", "zero.png"):
        with pytest.raises(ValueError, match=rf"{name} must be .*not a regular file"):
            read_image(tmp_path / name)
    release.cancel()


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # it warns of damaged blocks
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_exif_block_costs_at_most_the_orientation(form, tmp_path):
    """Damages one to five bytes, 300 times: the image is read as stored, rotated or mirrored."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "maker", 72.0
    exif.get_ifd(0x8769)[0x9003] = "2026:01:01 00:00:00"
    exif.get_ifd(0x8825)[1] = "N"
    block, file = exif.tobytes().removeprefix(b"Exif\0\0"), io.BytesIO()
    noise(8, 16).save(file, form, exif=exif, **({"lossless": True} if form == "WEBP" else {}))
    whole, path, shapes = file.getvalue(), tmp_path / "image", set()
    begin = whole.index(block)
    end = begin + len(block)
    path.write_bytes(whole)
    upright = read_image(path)
    stored = np.rot90(upright)
    assert stored.shape == (8, 16, 3)
    for _ in range(300):
        bad = np.frombuffer(whole, np.uint8).copy()
        bad[rng.integers(begin, end, rng.integers(1, 6))] = rng.integers(256)
        if form == "PNG":
            bad[end : end + 4] = tuple(struct.pack(">I", zlib.crc32(b"eXIf" + bad[begin:end].tobytes())))
        path.write_bytes(bad)
        got = read_image(path)
        turned = [np.rot90(page, k) for page in (stored, stored[:, ::-1]) for k in range(4)]
        assert any(np.array_equal(got, page) for page in turned)
        shapes.add(got.shape)
    assert shapes == {(8, 16, 3), (16, 8, 3)}
