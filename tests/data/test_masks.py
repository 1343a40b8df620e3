"""Labels of every point, in arrays and folders of masks, are found, checked, resized and moved with their images."""

import struct
import zlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.common.recipes import Recipe
from lowcost.data import Dataset, Split, folder, read_arrays
from lowcost.data.decoding import read_mask, read_masks
from lowcost.train.step import Draw

RNG = np.random.default_rng(0)


def arrays(grid, **changes):
    """Returns arrays of images and of labels with three classes and points without a label."""
    rng = np.random.default_rng(len(grid))
    content = {f"{part}_images": rng.normal(size=(6, *grid, 2)).astype(np.float32) for part in ("train", "test")}
    content |= {f"{part}_labels": rng.choice([0, 1, 2, 255], (6, *grid)) for part in ("train", "test")}
    return content | changes


def read(tmp_path, content, **options):
    np.savez(tmp_path / "data.npz", **content)
    return read_arrays(tmp_path / "data.npz", **options)


@pytest.mark.parametrize("grid", [(12,), (6, 8), (5, 6, 5)])
def test_labels_of_the_shape_of_the_grid_are_found(tmp_path, grid):
    """They give the number of grid axes, the classes and, except for signals, the task; 255 stays in the labels."""
    content, task = arrays(grid), "pixels" if len(grid) == 1 else "classes"
    data = read(tmp_path, content, task=task)
    assert (data.task, data.classes, data.image_shape) == ("pixels", ("0", "1", "2"), (*grid, 2))
    assert data.train.labels.dtype == np.uint8
    np.testing.assert_array_equal(data.train.labels, content["train_labels"])
    assert read(tmp_path, content, task="pixels", grid_axes=len(grid)).digest == data.digest
    flat = {name: x[..., 0] if "images" in name else x for name, x in content.items()}
    assert read(tmp_path, flat | {"classes": np.array(["a", "b", "c"])}, task=task).classes == ("a", "b", "c")
    held = data.hold_out(0.5)
    assert held.train.labels.shape[1:] == held.validation.labels.shape[1:] == grid


@pytest.mark.parametrize("channels", [(), (1,), (2,), (3,)])
@pytest.mark.parametrize("grid", [(6, 8), (8, 8), (5, 6, 5)])
def test_a_last_axis_of_one_label_is_dropped(tmp_path, grid, channels):
    """Labels in the layout of Keras give the same grid and channels as labels [N, *grid]."""
    content = {name: x if "labels" in name else np.resize(x, (6, *grid, *channels)) for name, x in arrays(grid).items()}
    kept = {name: x[..., None] if "labels" in name else x for name, x in content.items()}
    for task in ("classes", "pixels"):
        data = read(tmp_path, kept, task=task)
        assert (data.task, data.image_shape) == ("pixels", (*grid, *(channels or (1,))))
        np.testing.assert_array_equal(data.test.labels, content["test_labels"])


def test_one_hot_labels_are_no_labels_of_points(tmp_path):
    """One-hot labels of classes may have the shape of signals, and those of points the shape of images."""
    hint = "take the argmax of one-hot labels, or choose the task pixels if they are classes of points"
    signals = {"train_images": RNG.normal(size=(20, 8, 3)), "train_labels": np.eye(8, dtype=int)[np.arange(20) % 8]}
    with pytest.raises(ValueError, match=hint):
        read(tmp_path, signals, grid_axes=1)
    classes = RNG.integers(0, 3, (20, 8, 8))
    images = {"train_images": RNG.normal(size=(20, 8, 8, 3)), "train_labels": np.eye(3, dtype=int)[classes]}
    with pytest.raises(ValueError, match=hint):
        read(tmp_path, images)
    with pytest.raises(ValueError, match=r"must be integers \[20, 8, 8\], .* \[20, 8, 8, 3\]; take the argmax"):
        read(tmp_path, images, task="pixels")
    assert read(tmp_path, images | {"train_labels": classes}).image_shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": RNG.uniform(size=(6, 6, 8))}, r"train labels must be integers \[6, 6, 8\], .* got float64"),
        (
            {"test_labels": np.zeros((6, 6, 7), int)},
            r"test labels must be integers \[6, 6, 8\], .* int64 \[6, 6, 7\]",
        ),
        (
            dict.fromkeys(("train_labels", "test_labels"), np.zeros((6, 6, 8), int)),
            r"must be of at least two classes, got \('0',\); replace 255",
        ),
        (
            {"classes": np.array(["a", "b", "c"]), "test_labels": np.full((6, 6, 8), 3)},
            r"test labels must be from 0 to 2, or 255 .* got 0..3; .* or list all classes in the array classes",
        ),
        (
            {"test_labels": np.full((6, 6, 8), 8)},
            r"must be most of the numbers up to the largest, 8, got 4 of them; renumber",
        ),
        (
            {"train_labels": np.full((6, 6, 8), -1)},
            r"train labels must be from 0 to 254, or 255 .* got -1..0",
        ),
        ({"train_labels": np.full((6, 6, 8), 256)}, r"train labels must be from 0 to 254, or 255 .* got 0..256"),
        ({"classes": np.array(["a"])}, r"the array classes must name at least two classes, got 'a'; list what"),
        ({"classes": np.array(["a", "b"])}, r"train labels must be from 0 to 1, or 255 .* got 0..2"),
    ],
)
def test_wrong_labels_of_points_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, arrays((6, 8)) | changes, task="pixels")


def test_classes_of_all_parts_count(tmp_path, capsys):
    """A class whose points are all in the test part counts as a class, and one line warns of it."""
    data = read(tmp_path, arrays((6, 8)) | {"test_labels": np.full((6, 6, 8), 3)})
    assert data.classes == ("0", "1", "2", "3")
    assert "no train images of 3" in capsys.readouterr().err


def test_signals_of_several_lengths_have_no_labels_of_points(tmp_path):
    content = arrays((12,)) | {f"{part}_lengths": np.full(6, 9) for part in ("train", "test")}
    with pytest.raises(ValueError, match="task must not be pixels for signals with lengths or length"):
        read(tmp_path, content, task="pixels")


@pytest.mark.parametrize("labels", [np.zeros((3, 8, 5)), np.full((3, 8, 6), 2)])
def test_a_malformed_data_set_is_refused(labels):
    def make():
        split = Split(np.zeros((3, 8, 6, 1), np.uint8), labels.astype(np.uint8))
        return Dataset("toy", split, split, ("a", "b"), (), task="pixels")

    with pytest.raises(ValueError, match="labels must be"):
        make()


@pytest.fixture
def masked_folder(tmp_path):
    """Writes images of 16 x 8 pixels whose red value is 100 times the class, with grey or palette masks."""
    root = tmp_path / "root"
    for part, count in (("train", 3), ("test", 2)):
        for i in range(count):
            mask = np.repeat(np.repeat(RNG.integers(0, 3, (4, 8), np.uint8), 2, 0), 2, 1)
            mask[0, :2] = 255
            image = np.zeros((8, 16, 3), np.uint8)
            image[..., 0] = np.where(mask == 255, 200, 100 * mask)
            for name, pixels in (("images", image), ("masks", mask)):
                (root / part / name).mkdir(parents=True, exist_ok=True)
                picture = Image.fromarray(pixels)
                if i == 0 and name == "masks":
                    picture.putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())
                picture.save(root / part / name / f"{i}.png")
    return root


def levels(split):
    """Returns the classes by the red values, 255 for values between two classes, and the labels."""
    red = split.images[..., 0]
    return np.where(red % 100 == 0, red // 100, 255), split.labels


def test_a_folder_of_masks_is_found(masked_folder, tmp_path, capsys):
    """Labels fit every pixel, cached or not; a file names the classes, and masks without an image are counted."""
    (masked_folder / "train" / "classes.txt").write_text("sea\nland\nsky\n")
    (masked_folder / "train" / "masks" / "other.png").write_bytes(b"")
    data = folder(masked_folder)
    assert (data.task, data.classes, data.image_shape) == ("pixels", ("sea", "land", "sky"), (8, 16, 3))
    assert "ignored 1 entries: 1 masks without an image" in capsys.readouterr().err
    for split in data.splits.values():
        reds, labels = levels(split)
        np.testing.assert_array_equal(np.where(labels == 255, 2, labels), reds)
        assert (labels[:, 0, :2] == 255).all()
    for _ in range(2):
        assert folder(masked_folder, cache_dir=tmp_path / "cache").digest == data.digest
    assert sorted(path.name.partition("-")[0] for path in (tmp_path / "cache").iterdir()) == ["folder", "masks"]


@pytest.mark.parametrize("edge", [5, 8, 10])
def test_masks_are_cut_and_resized_as_their_images(tmp_path, edge):
    """Masks are cropped to the central square and resized without interpolation; edges stay those of the image."""
    mask = np.repeat(np.arange(16)[None] >= edge, 8, 0).astype(np.uint8)
    for name, pixels in (("images", np.repeat(200 * mask[..., None], 3, -1)), ("masks", mask)):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(pixels + (0 if name == "masks" else i)).save(tmp_path / name / f"{i}.png")
    for size in (4, 8, 20):
        train = folder(tmp_path, image_size=size, test_share=0.5).train
        assert train.labels.shape[1:] == (size, size)
        between = np.abs(train.images[..., 0] - 101.0) < 30  # pixels that mix both colours about equally
        assert np.all((train.labels == (train.images[..., 0] > 101)) | between)
        assert between.mean() < 0.3


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_masks_have_the_size_of_the_upright_image(suffix, orientation, tmp_path):
    """The header of a TIFF file states the upright size, and those of other formats the stored one."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, mask, grid = tmp_path / f"a.{suffix}", tmp_path / "a.png.mask.png", (8, 6) if orientation < 5 else (6, 8)
    Image.new("RGB", (6, 8)).save(image, exif=exif)
    Image.new("L", grid[::-1]).save(mask)
    assert read_masks([str(mask)], [str(image)], grid, np.empty).shape == (1, *grid)


def write_grey(path, pixels, bits):
    """Writes a PNG file of grey levels with 1, 2, 4 or 8 bits per pixel, which Pillow does not write."""
    digits = (pixels[..., None] >> np.arange(bits)[::-1]) & 1
    rows = np.packbits(digits.reshape(len(pixels), -1), axis=1)
    lines = np.pad(rows, ((0, 0), (1, 0))).tobytes()  # each begins with the number of its filter
    header = struct.pack(">IIBBBBB", *pixels.shape[::-1], bits, 0, 0, 0, 0)
    chunks = (b"IHDR" + header, b"IDAT" + zlib.compress(lines), b"IEND")
    sizes = [(struct.pack(">I", len(x) - 4), struct.pack(">I", zlib.crc32(x))) for x in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(a + x + b for (a, b), x in zip(sizes, chunks, strict=True)))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks_of_few_bits_hold_their_numbers(tmp_path, bits):
    """Grey levels and palette indices of 1, 2, 4 and 8 bits are the classes as they are in the file."""
    pixels = (np.arange(5 * 16).reshape(5, 16) % 2**bits).astype(np.uint8)
    write_grey(tmp_path / "grey.png", pixels, bits)
    palette = Image.fromarray(pixels)
    palette.putpalette(RNG.integers(0, 256, 768, np.uint8).tobytes())
    palette.save(tmp_path / "palette.png", bits=bits)
    Image.fromarray(pixels).save(tmp_path / "grey.tif")
    for file in ("grey.png", "palette.png", "grey.tif"):
        np.testing.assert_array_equal(read_mask(tmp_path / file, (5, 16), (5, 16)), pixels)
    assert (tmp_path / "grey.png").read_bytes()[24] == (tmp_path / "palette.png").read_bytes()[24] == bits


def test_wrong_masks_are_refused(masked_folder):
    """Each error names the file and states what was expected and the remedy."""
    masks = masked_folder / "train" / "masks"
    original = (masks / "1.png").read_bytes()
    for pixels, message in (
        (np.zeros((8, 16, 3), np.uint8), "one grey level or palette index .*, got mode RGB; convert it to mode L or P"),
        (np.zeros((8, 16), np.float32), "one grey level .*, got mode F; convert"),
        (np.full((8, 16), 256, np.uint16), "one grey level .*, got mode I;16; convert"),
        (np.zeros((16, 8), np.uint8), "16 x 8 pixels, got 8 x 16; resize it to its image's size"),
    ):
        Image.fromarray(pixels).save(masks / "1.png", "TIFF")
        with pytest.raises(ValueError, match=rf"1.png must be a mask of {message}"):
            folder(masked_folder)
    (masks / "1.png").write_bytes(original)
    (masks / "2.png").rename(masked_folder / "2.png")
    with pytest.raises(FileNotFoundError, match=r"masks must hold a mask for each image, .* got none for 2.png"):
        folder(masked_folder)
    names = masked_folder / "train" / "classes.txt"
    names.write_bytes("a\nb\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"classes.txt must be UTF-8 text, got 'utf-8' codec .*; save it as such"):
        folder(masked_folder)
    names.write_text("a\na\n")
    with pytest.raises(ValueError, match=r"classes.txt must hold a different name in each line, got \('a', 'a'\)"):
        folder(masked_folder)
    with pytest.raises(FileNotFoundError, match="must hold the folders images and masks, got no images"):
        folder(masked_folder / "train" / "masks", task="pixels")


def test_masks_of_formats_whose_writers_change_numbers_are_refused(masked_folder):
    """Pillow writes a GIF of classes 0 and 2 with the palette indices 0 and 1; a suffix does not help."""
    mask = masked_folder / "train" / "masks" / "1.png"
    for form in ("GIF", "JPEG", "WEBP"):
        Image.fromarray(np.full((8, 16), 2, np.uint8)).save(mask, form)
        with pytest.raises(ValueError, match=r"1.png must be a readable image \(PNG, BMP, TIFF\), got .*; remove"):
            folder(masked_folder)
    mask.rename(mask.with_suffix(".gif"))
    with pytest.raises(FileNotFoundError, match=r"as STEM.png, STEM.bmp, STEM.tif, STEM.tiff, got none for 1.png"):
        folder(masked_folder)


@pytest.mark.parametrize("name", ["images", "masks"])
def test_two_files_of_one_stem_are_refused(masked_folder, name, capsys):
    """The error names both files; folders inside are only counted."""
    inner = masked_folder / "train" / name
    (inner / "more").mkdir()
    folder(masked_folder)
    assert f"1 folders inside {name}" in capsys.readouterr().err
    (inner / "1.bmp").write_bytes(b"")
    with pytest.raises(ValueError, match=rf"{name} must hold one file per stem, got 1.bmp and 1.png; rename or remove"):
        folder(masked_folder)


@pytest.mark.parametrize(("shift", "grid"), [("translate", (12,)), ("resized_crop", (8, 10))])
def test_labels_move_with_their_images(shift, grid):
    """Images that encode their labels still do after flips and shifts; points from outside or unlabelled are 255."""
    recipe = Recipe(shift=shift, scaling=0.0)
    labels = RNG.choice(np.array([0, 1, 255], np.uint8), (16, *grid))
    known = labels != 255
    images = jnp.stack([jnp.where(known, labels, 0), known], axis=-1).astype(jnp.float32)
    draw = Draw(jax.random.key(1), jax.random.key(2), jnp.arange(16), jnp.int32(0))
    keeps = ("flip", "shift", "scale", "noise")
    moved = np.asarray(recipe.augmentation(("flip", "shift"))(images, draw))
    result = np.asarray(recipe.label_augmentation(keeps, 2)(labels, draw))
    assert result.dtype == np.uint8
    ones, weights = moved[..., 0], moved[..., 1]
    clear = (np.abs(weights - 0.5) > 1e-3) & ((weights < 0.5) | (np.abs(2 * ones - weights) > 1e-3))
    expected = np.where(weights > 0.5, 2 * ones > weights, 255)
    np.testing.assert_array_equal(result[clear], expected[clear])
    assert clear.mean() > 0.9
    assert (result != labels).any()
    assert sorted(np.unique(result)) == [0, 1, 255]
    unmoved = recipe.label_augmentation(("hide", "scale", "noise"), 2)(labels, draw)
    np.testing.assert_array_equal(unmoved, labels)


def test_a_hidden_square_leaves_the_labels():
    """Squares that late epochs hide in images do not affect the labels, which only shift."""
    labels = np.arange(128, dtype=np.uint8).reshape(2, 8, 8)
    draw = Draw(jax.random.key(1), jax.random.key(2), jnp.arange(2), jnp.int32(9))
    move = partial(Recipe(shift="translate", hidden=0.5, late=1).label_augmentation, classes=128)
    np.testing.assert_array_equal(move(("shift", "hide"))(labels, draw), move(("shift",))(labels, draw))
