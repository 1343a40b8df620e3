"""A saved network comes back bit for bit, and a damaged or forged file is refused in one line."""

import json
import pickle
import random
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax.traverse_util import flatten_dict

import lowcost
from lowcost.data.dataset import DTYPES
from lowcost.deploy import input_steps, loading, packaged
from lowcost.nn import ARCHITECTURES, ImplicitRDStep, Network, initializers, network
from lowcost.scaling import to_unit_range
from lowcost.train.state import count_weights

ROOT = Path(__file__).parents[2]
CLASSES = ("cat", "dog", "bird", "\udcff", "Käfer")
ABOUT: dict = {"classes": CLASSES, "image_shape": (8, 8, 3)}


def bits(variables):
    return {name: (x.shape, np.asarray(x).tobytes()) for name, x in flatten_dict(variables, sep=".").items()}


@pytest.fixture(scope="module")
def content(trained, tmp_path_factory):
    """Returns the content of a saved file."""
    file = tmp_path_factory.mktemp("saved") / "net.safetensors"
    lowcost.save(file, *trained("implicit_rd", (8, 8, 3)), **ABOUT, card={"seed": "3"})
    return file.read_bytes()


@pytest.fixture
def refuse(tmp_path):
    """Returns (content, message) → asserts that loading this content fails with one line that names the file."""

    def check(content, message="must be a .safetensors file of lowcost.save, got"):
        file = tmp_path / "refused.safetensors"
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            lowcost.load(file)
        assert str(error.value).startswith(f"{file} must ")
        assert str(error.value).isprintable()

    return check


def parts(content):
    length = int.from_bytes(content[:8], "little")
    return safetensors.numpy.load(content), json.loads(content[8 : 8 + length])["__metadata__"]


def forged(content, tensors=(), **metadata):
    """Returns the file with other tensors and metadata, None for none, and a matching sha256."""
    old, about = parts(content)
    about = {key: value for key, value in (about | metadata).items() if value is not None and key != "sha256"}
    tensors = {key: value for key, value in (old | dict(tensors)).items() if value is not None}
    return safetensors.numpy.save(tensors, about | {"sha256": packaged._sha256(tensors, about)})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_file_gives_back_what_was_saved(trained, architecture, tmp_path):
    """NaN, infinity and -0.0 are kept; equal networks give equal files, which other readers of the format accept."""
    net, variables = trained(architecture, (8, 8, 3), kernel_size=1, steps_per_block=2, dtype="bfloat16")
    stencil = variables["params"]["opening"]["stencil"]
    stencil[0, 0, 0, :4] = np.nan, np.inf, -0.0, 1e-45
    file = tmp_path / "net.safetensors"
    scale = ([1, 2, 3, 4, 0.1], np.full(5, 5, np.float32))
    about = {**ABOUT, "task": "values", "temperature": 0.1, "scale": scale, "card": {"a": "é"}}
    about["image_shape"] = np.array(about["image_shape"])
    lowcost.save(str(file), net, variables, **about)
    loaded = lowcost.load(str(file))
    assert loaded.net == net
    assert hash(loaded.net.step) == hash(net.step)
    assert bits(loaded.variables) == bits(variables)
    assert (loaded.classes, loaded.image_shape, loaded.task) == (CLASSES, (8, 8, 3), "values")
    assert (loaded.temperature, loaded.card) == (0.1, {"a": "é"})
    assert loaded.scale == ((1, 2, 3, 4, 0.1), (5, 5, 5, 5, 5))
    assert loaded.preprocessing == input_steps.preprocessing((8, 8, 3))
    assert packaged.encode(loaded) == file.read_bytes()
    tensors = safetensors.numpy.load_file(file)
    np.testing.assert_array_equal(tensors["params.opening.stencil"], stencil)
    assert {x.dtype for x in tensors.values()} == {np.dtype(np.float32)}


def test_what_a_network_computes_only_in_training_is_not_saved(trained, content, tmp_path):
    net, variables = trained("implicit_rd", (8, 8, 3))
    far = network("implicit_rd", (4, 8), 5, h=net.step.keywords["h"], reach=4.0)
    other = net.clone(step=far.step, remat=True, opening_init=initializers.depthwise_normal)
    lowcost.save(tmp_path / "net.safetensors", other, variables, **ABOUT, card={"seed": "3"})
    assert (tmp_path / "net.safetensors").read_bytes() == content


def test_logits_are_those_of_the_network(trained, content, tmp_path):
    net, variables = trained("implicit_rd", (8, 8, 3))
    (tmp_path / "net.safetensors").write_bytes(content)
    loaded = lowcost.load(tmp_path / "net.safetensors")
    images = np.random.default_rng(0).uniform(size=(3, 8, 8, 3)).astype(np.float32)
    logits = [jax.jit(partial(n.apply, v))(images) for n, v in ((net, variables), (loaded.net, loaded.variables))]
    np.testing.assert_array_equal(*logits)


def test_loading_does_not_run_the_network(content, monkeypatch):
    """Loading only traces the network, to get the shapes."""
    seen, call = [], Network.__call__

    def traced(self, images, **options):
        seen.append(isinstance(images, jax.core.Tracer))
        return call(self, images, **options)

    monkeypatch.setattr(Network, "__call__", traced)
    packaged.decode(content, "file")
    assert seen
    assert all(seen)


def test_a_network_of_100_000_weights_is_loaded_in_less_than_two_seconds(trained, tmp_path):
    """Measures processor time in a fresh process after the import, because other tests run at the same time."""
    net, variables = trained("implicit_rd", (32, 32, 3), width="A", steps_per_block=4)
    lowcost.save(tmp_path / "net.safetensors", net, variables, classes=CLASSES, image_shape=(32, 32, 3))
    code = "import sys, time; from lowcost import load; t = time.process_time(); load(sys.argv[1])\n"
    code += "print(time.process_time() - t)"
    command = [sys.executable, "-c", code, tmp_path / "net.safetensors"]
    assert float(subprocess.run(command, stdout=subprocess.PIPE, check=True, cwd=ROOT).stdout) < 2


def test_flipped_bits_are_noticed(content):
    """Flips single bits in the length of the header, in the header and in the values; each file is refused."""
    rng, header = random.Random(0), 8 + int.from_bytes(content[:8], "little")
    places = [*range(64), *rng.sample(range(8 * header), 1000), *rng.sample(range(8 * header, 8 * len(content)), 200)]
    for place in places:
        damaged = bytearray(content)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match="file must ") as error:
            packaged.decode(bytes(damaged), "file")
        assert str(error.value).isprintable()


def test_damaged_files_are_refused(content, refuse, tmp_path):
    header = 8 + int.from_bytes(content[:8], "little")
    for length in (0, 1, 7, 8, 9, header - 1, header, header + 1, len(content) - 1):
        refuse(content[:length])
    for size in (0, 100_000_001, 2**40, 2**63, 2**64 - 1):  # sizes of the header
        refuse(size.to_bytes(8, "little") + content[8:])
    for damaged in (
        content + b"x",
        content[:8] + b"[" * (header - 8) + content[header:],
        content[:8] + random.Random(0).randbytes(header - 8) + content[header:],
        safetensors.numpy.save({"params": np.zeros(3)}),  # a file of another program
        safetensors.numpy.save({}, {"format": "pt"}),
        b"\x08\x00\x00\x00\x00\x00\x00\x00[]      ",
    ):
        refuse(damaged)


def test_nothing_is_unpickled(refuse, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "run",)

    trap = pickle.dumps(Trap())
    pickle.loads(trap)
    (tmp_path / "run").unlink()
    refuse(trap)
    assert not (tmp_path / "run").exists()


def test_files_of_other_networks_are_refused(trained, content, refuse):
    """Refuses newer formats, wrong tensors, and descriptions of networks that do not fit."""
    refuse(forged(content, format="4"), "must be of format 3 or older, got 4; update lowcost")
    refuse(forged(content).replace(b'"cat', b'"hat'.ljust(4), 1), "must match its sha256, got a damaged file")
    name, values = "params.opening.stencil", np.ones((5, 5, 3, 4), np.float32)
    for change, got in ((None, "nothing"), (values[:3], r"float32\[3, 5, 3, 4\]"), (values.astype("f8"), "float64")):
        refuse(forged(content, {name: change}), rf"must hold {name} as float32\[5, 5, 3, 4\], got {got}")
    refuse(forged(content, {"params.more": values}), "must hold params.more as nothing, got float32")
    refuse(forged(content, {"params": values}), "must describe a network of lowcost.nn.network, got")
    options = json.loads(parts(content)[1]["network"])
    for change, message in (
        ({"architecture": "circulant_rd"}, "got nothing; these are the variables of another network"),
        ({"architecture": "other"}, "architecture must be one of"),
        ({"architecture": []}, "architecture must be one of"),
        ({"width": [4, 9]}, "width must double"),
        ({"width": 4}, "got TypeError"),
        ({"num_classes": 6}, "classes must be 6 names"),
        ({"h": "1"}, "got TypeError"),
        ({"dtype": "int32"}, "dtype must be real floating point"),
        ({"colour": 1}, "unexpected keyword argument"),
    ):
        refuse(forged(content, network=json.dumps(options | change)), message)
    refuse(forged(content, image_shape="[8, 3]"), "must hold params.* as float32.*; these are the variables of another")
    for change in (
        {"network": None},
        {"network": "[]"},
        {"classes": None},
        {"classes": "3"},
        {"classes": '["cat"]'},
        {"classes": "[1, 2, 3, 4, 5]"},
        {"classes": "[" * 10_000},
        {"image_shape": "[]"},
        {"image_shape": '["8", 8, 3]'},
        {"image_shape": "[4, 4, 3]"},
        {"task": "others"},
        {"task": None},
        {"temperature": "0"},
        {"temperature": "NaN"},
        {"temperature": '"1"'},
        {"scale": "[[1], [2]]"},
        {"scale": '[["a", "b", "c", "d", "e"], [1, 1, 1, 1, 1]]'},
        {"scale": "[[NaN, 0, 0, 0, 0], [1, 1, 1, 1, 1]]"},
        {"scale": "[[0, 0, 0, 0, 0], [0, 1, 1, 1, 1]]"},
        {"image_shape": f"[{10**20}, 8, 3]"},
        {"image_shape": f"[{2**40}, {2**40}, 3]"},
        *[{"network": json.dumps(options | change)} for change in ({"h": 10**400}, {"width": [10**30]})],
        {"network": json.dumps(options | {"steps_per_block": 10**6})},
        {"card": "[1]"},
        {"preprocessing": None},
    ):
        refuse(forged(content, **change), "must describe a network of lowcost.nn.network, got")


def test_what_cannot_be_saved_is_refused(trained, tmp_path):
    net, variables = trained("implicit_rd", (8, 8, 3))
    file = tmp_path / "net.safetensors"
    several, double = (jax.tree.map(change, variables) for change in (lambda x: np.stack([x] * 2), np.float64))
    own = type("Own", (ImplicitRDStep,), {})
    for arguments, options, message in (
        ((net.clone(step=own), variables), {}, "net must be made by lowcost.nn.network, got steps <class .*Own"),
        ((net.clone(step=partial(ImplicitRDStep, h=0.8)), variables), {}, "net must be made by lowcost.nn.network"),
        ((net, several), {}, r"variables must hold \S+ as float32\[3, 3, 4\], got float32\[2, 3, 3, 4\]"),
        ((net, double), {}, r"variables must hold \S+ as float32\[3, 3, 4\], got float64\[3, 3, 4\]"),
        ((net, {"params": variables["params"]}), {}, "variables must hold batch_stats.* got nothing"),
        ((net, variables), {"classes": CLASSES[1:]}, "classes must be 5 names, one per output"),
        ((net, variables), {"image_shape": (4, 8, 3)}, "images must be"),
        ((net, variables), {"task": "class"}, "task must be one of 'classes', 'tags', 'values'"),
        ((net, variables), {"temperature": 0}, r"temperature must be finite and above 0, got 0\.0"),
        ((net, variables), {"temperature": np.inf}, "temperature must be finite and above 0, got inf"),
        ((net, variables), {"scale": ([1.0], [2.0])}, "scale must be 5 finite means and deviations"),
        ((net, variables), {"length": 8}, r"length must be None, .*, got 8 for uint8 \[8, 8, 3\], task classes"),
    ):
        with pytest.raises(ValueError, match=message):
            lowcost.save(file, *arguments, **{**ABOUT, **options})
    with pytest.raises(OSError, match="No such file"):
        lowcost.save(tmp_path / "none" / "net.safetensors", net, variables, **ABOUT)
    assert not list(tmp_path.iterdir())


def test_released_networks_are_loaded_by_name(content, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "RELEASED", tmp_path)
    with pytest.raises(FileNotFoundError, match="got some; released are none"):
        lowcost.load("some")
    for name in ("tiny-A", "tiny-B"):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
    assert lowcost.load("tiny-B").classes == CLASSES
    with pytest.raises(FileNotFoundError, match=r"source must be .*, got tiny; released are tiny-A, tiny-B") as error:
        lowcost.load("tiny")
    assert "\n" not in str(error.value)


def test_released_networks_are_in_the_package():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["lowcost"]
    folder = loading.RELEASED.relative_to(Path(lowcost.__file__).parent)
    assert f"{folder.as_posix()}/*.safetensors" in data


def test_the_page_lists_the_released_networks():
    """The table has one row per network, with the values of its card, and no other rows."""
    rows = []
    for file in sorted(loading.RELEASED.glob("*")):
        loaded = lowcost.load(file.stem)
        card, accuracy = loaded.card, float(loaded.card["test_accuracy"])
        assert card["limits"]
        assert file.stem.split("-", 1)[1].replace("-", " ") == card["network"]
        assert loaded.image_shape == (32, 32, 3)
        assert count_weights(loaded.variables["params"]) == int(card["weights"])
        cells = [f"`{file.stem}`", *(card[name] for name in ("data", "recipe", "epochs", "seed"))]
        rows.append(f"| {' | '.join(cells)} | {int(card['weights']):,} | {accuracy:.2%} |".replace("%", " %"))
    page = (ROOT / "docs/deploy.md").read_text("utf-8")
    assert [line for line in page.splitlines() if re.match(r"\| `cifar", line)] == rows


def test_time_steps_that_are_arrays_are_saved_as_numbers(trained, tmp_path):
    _, variables = trained("implicit_rd", (8, 8, 3))
    net = network("implicit_rd", (4, 8), 5, h=np.float32(0.1), steps_per_block=1)
    lowcost.save(tmp_path / "net.safetensors", net, variables, **ABOUT)
    assert lowcost.load(tmp_path / "net.safetensors").net.step.keywords["h"] == np.float32(0.1)


def test_steps_of_preprocessing():
    """For grids and channels that image files do not have, only the range and the input are stated."""
    grey, colour = (json.loads(input_steps.preprocessing((8, 16, channels))) for channels in (1, 3))
    assert {key for key in colour if grey[key] != colour[key]} == {"channels"}
    assert (grey["size"], "32 x 32" in grey["jpeg"]) == ([8, 16], True)
    for shape in ((8, 8, 4), (8, 3), (8, 8, 8, 1)):
        assert set(json.loads(input_steps.preprocessing(shape))) == {"range", "input"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_range_in_words_is_that_of_training(dtype):
    """The sentence states the scaling of `to_unit_range`; floats stay unchanged."""
    words = json.loads(input_steps.preprocessing((8, 3), dtype))["range"]
    if dtype == "float32":
        assert words == "float32 as they are; the network itself normalises"
        about = json.loads(input_steps.preprocessing((8, 3), dtype, standardises=True, masked=True, length=8))
        assert about["range"] == "float32 as they are; the network itself standardises"
        assert list(about) == ["length", "resampling", "range", "mask", "input"]
        return
    info = np.iinfo(dtype)
    numbers = np.array([info.min, info.min + 1, info.min // 3, info.max // 7, info.max], dtype)
    assert "the network itself normalises" in words
    about = json.loads(input_steps.preprocessing((8, 3), dtype, standardises=True))
    assert about["range"] == words.replace("normalises", "standardises")
    added, divisor = re.fullmatch(r"(?:add (\d+) and )?divide by (\d+), to \[0, 1\]; .*", words).groups(default="0")
    np.testing.assert_allclose((numbers + float(added)) / float(divisor), to_unit_range(numbers), rtol=1e-6)
    if dtype != "uint8":  # no image file has such pixels
        assert set(json.loads(input_steps.preprocessing((8, 8, 3), dtype))) == {"range", "input"}


MOMENTS = ((0.5, -3.0, 1e-3), (2.0, 1e-6, 1e6))


@pytest.fixture
def standardised(trained):
    """Returns (image_shape, **options) → a network with moments, and variables."""

    def make(image_shape, moments=MOMENTS, **options):
        return trained("explicit_rd", image_shape, moments=moments, **options)

    return make


@pytest.mark.parametrize("grid", [(8,), (8, 9), (8, 7, 6)])
def test_moments_are_part_of_the_network(standardised, grid, tmp_path):
    """Files for signals, images and volumes keep the moments, and the metadata repeat them."""
    net, variables = standardised((*grid, 3))
    file = tmp_path / "net.safetensors"
    lowcost.save(file, net, variables, classes=CLASSES, image_shape=(*grid, 3))
    loaded = lowcost.load(file)
    assert (loaded.net, loaded.moments, loaded.masked, loaded.dtype) == (net, MOMENTS, False, "float32")
    about = loaded.metadata()
    assert (json.loads(about["moments"]), about["dtype"], "masked" in about) == (
        [*map(list, MOMENTS)],
        "float32",
        False,
    )
    assert packaged.encode(loaded) == file.read_bytes()
    lowcost.save(file, net, variables, classes=CLASSES, image_shape=(*grid, 3), dtype="int16")
    assert (lowcost.load(file).moments, lowcost.load(file).dtype) == (MOMENTS, "int16")


def test_a_mask_and_a_dtype_are_kept(standardised, trained, tmp_path):
    file = tmp_path / "net.safetensors"
    net, variables = standardised((16, 4), masked=True)
    lowcost.save(file, net, variables, classes=CLASSES, image_shape=(16, 4))
    loaded = lowcost.load(file)
    assert (loaded.net, loaded.masked, loaded.metadata()["masked"]) == (net, True, "true")
    assert json.loads(loaded.preprocessing)["mask"] == input_steps.MASK
    net, variables = trained("explicit_rd", (16, 2))
    lowcost.save(file, net, variables, classes=CLASSES, image_shape=(16, 2), dtype="int16")
    loaded = lowcost.load(file)
    assert (loaded.dtype, loaded.metadata()["dtype"], loaded.moments) == ("int16", "int16", None)
    assert packaged.encode(loaded) == file.read_bytes()
    lowcost.save(file, net, variables, classes=CLASSES, image_shape=(16, 2), dtype="uint8")
    assert not {"dtype", "moments", "masked"} & lowcost.load(file).metadata().keys()  # as in older files


def test_forged_inputs_are_refused(standardised, refuse, tmp_path):
    """Refuses moments of wrong shapes or values, masks on other grids, and unknown dtypes."""
    file, message = tmp_path / "net.safetensors", "must describe a network of lowcost.nn.network, got"
    net, variables = standardised((8, 8, 3))
    lowcost.save(file, net, variables, classes=CLASSES, image_shape=(8, 8, 3))
    content = file.read_bytes()
    for moments in (
        *("[[0], [1]]", "[[0, 0, 0, 0], [1, 1, 1, 1]]", "[[0, 0, 0]]", "[[0, 0, 0], [1, 1]]", "3", "[]", '"a"', "{}"),
        *("[[NaN, 0, 0], [1, 1, 1]]", "[[0, 0, 0], [1, 1, Infinity]]", "[[0, 0, 0], [1, 0, 1]]", '["abc", "def"]'),
        *("[[0, 0, 0], [1, -1, 1]]", '[["a", 0, 0], [1, 1, 1]]', "[[null, 0, 0], [1, 1, 1]]"),
    ):
        refuse(forged(content, moments=moments), message)
    for change in ({"dtype": "uint8"}, {"dtype": None}, {"dtype": "float64"}, {"dtype": "object"}, {"masked": "true"}):
        refuse(forged(content, **change), message)
    net, variables = standardised((16, 4), masked=True)
    lowcost.save(file, net, variables, classes=CLASSES, image_shape=(16, 4))
    for change in ({"masked": None}, {"masked": "1"}, {"image_shape": "[16, 3]"}, {"image_shape": "[16]"}):
        with pytest.raises(ValueError, match="must "):
            packaged.decode(forged(file.read_bytes(), **change), "file")


def test_the_dtype_of_signals_and_their_length_are_saved(trained, tmp_path):
    net, variables = trained("explicit_rd", (16, 2))
    save = partial(lowcost.save, tmp_path / "net", net, variables, classes=CLASSES, image_shape=(16, 2))
    with pytest.raises(ValueError, match=r"dtype must be stated for .*, got None for \[16, 2\]; e\.g\. "):
        save()
    for dtype, length, task in ("float32", 15, "classes"), ("int16", 16, "classes"), ("float32", 16, "pixels"):
        with pytest.raises(
            ValueError, match=rf"length must be None, .*, got {length} for {dtype} \[16, 2\], task {task}"
        ):
            save(dtype=dtype, length=length, task=task)
    save(dtype="float32", length=np.int64(16), card={"accuracy": np.float32(0.5)})  # numbers of NumPy
    loaded = lowcost.load(tmp_path / "net")
    assert loaded.card == {"accuracy": 0.5}
    assert loaded.dtype == "float32"
    assert json.loads(loaded.preprocessing)["length"] == 16
    with pytest.raises(TypeError, match=r"net must be a lowcost\.nn\.Network, got str"):
        lowcost.save(tmp_path / "other", "net", variables, classes=CLASSES, image_shape=(16, 2))


def test_inputs_that_do_not_fit_are_not_saved(standardised, tmp_path):
    net, variables = standardised((16, 4), masked=True)
    for shape, options, message in (
        (
            (16, 4),
            {"dtype": "int8"},
            "dtype must be float32 for a network with a mask, and not uint8 for one with moments, got int8; pass that",
        ),
        ((16, 4), {"dtype": "float64"}, "dtype must be one of 'uint8', 'int8', 'uint16', 'int16', 'float32'"),
        ((8, 8, 4), {}, r"image_shape must be \[points, channels \+ 1\] for a masked network, got \[8, 8, 4\]"),
        ((16, 3), {}, r"images must have 3 channels, not counting a mask, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            lowcost.save(tmp_path / "net", net, variables, classes=CLASSES, image_shape=shape, **options)
    assert not list(tmp_path.iterdir())


def test_loaded_values_are_arrays_on_a_device(content):
    loaded = packaged.decode(content, "file")
    assert all(isinstance(x, jax.Array) and x.dtype == jnp.float32 for x in jax.tree.leaves(loaded.variables))
    assert packaged.encode(replace(loaded, card={})) != content
