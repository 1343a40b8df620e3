"""The core installation is enough for all but images in files and the digits; errors name the extra that is missing."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OPTIONAL = ["PIL", "sklearn", "matplotlib", "onnx", "onnxruntime", "flatbuffers", "tensorboardX", "torch", "tyro"]
UNUSED = ["tensorflow_datasets", "array_record", "pyarrow"]
OPERATORS = """
import lowcost
assert lowcost.depthwise(jnp.ones((3, 3, 2)), jnp.ones((4, 4, 2))).shape == (4, 4, 2)
assert lowcost.symbol(jnp.ones((3, 3, 1)), (4, 4))[0, 0, 0] == 9
assert callable(lowcost.analysis.spectral_radius)
"""
NETWORKS = """
import tempfile, lowcost.nn, lowcost.deploy, lowcost.data, lowcost.data.augment
import lowcost.train.checkpoint, lowcost.train.feed, lowcost.train.loop, lowcost.train.step
images = jnp.ones((1, 8, 8, 3))
net = lowcost.nn.network("implicit_rd", (4, 8), 2)
variables = net.init(jax.random.key(0), images, train=False)
with tempfile.TemporaryDirectory() as folder:
    lowcost.save(f"{folder}/net.safetensors", net, variables, classes=["a", "b"], image_shape=(8, 8, 3))
    assert lowcost.load(f"{folder}/net.safetensors").net == net
assert lowcost.data.random_flip(jax.random.key(0), images).shape == images.shape
"""
EXTRAS = """
import lowcost.data, lowcost.train.metrics_log
from lowcost.data.decoding import read_image
for name, action in [
    ("data", lambda: lowcost.data.load("digits")),
    ("data", lambda: read_image("image.png")),
    ("tensorboard", lambda: lowcost.train.metrics_log.MetricsLog([], None, ".")),
]:
    try:
        action()
    except ImportError as error:
        assert f"the extra '{name}' must be installed, got " in str(error)
        assert str(error).endswith(f"run pip install '.[{name}]'")
    else:
        raise AssertionError(name)
"""


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ([*OPTIONAL, *UNUSED, "flax", "optax", "orbax", "chex", "rich"], OPERATORS),
        ([*OPTIONAL, *UNUSED], NETWORKS),
        (OPTIONAL, EXTRAS),
    ],
    ids=["operators", "networks", "extras"],
)
def test_what_works_without_what(missing, code):
    block = f"import sys; sys.modules.update(dict.fromkeys({missing}))\n"  # None makes `import` fail
    run = subprocess.run([sys.executable, "-c", f"{block}import jax, jax.numpy as jnp\n{code}"], capture_output=True)
    assert run.returncode == 0, run.stderr.decode()


def test_core_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]}
    assert names == {
        *("jax", "flax", "optax", "chex", "orbax-checkpoint", "numpy", "rich", "safetensors"),
        *("tensorflow-datasets", "importlib_resources"),
    }


def test_texts_name_one_installation_command():
    """Texts name `pip install '.[extra]'`: no package index has this project, so "lowcost[extra]" would fail.

    `--no-deps stardist` installs the image of another package without what that package requires.
    """
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for path in (*ROOT.glob("lowcost/**/*.py"), *ROOT.glob("experiments/**/*.py")):
        text = path.read_text()
        for command in re.findall(r"pip install ([^`\"]*)", text):
            if re.match(r"--no-deps stardist\b", command):
                continue
            names = re.match(r"'\.\[([\w,-]+|\{name\})\]'", command)
            assert names, (path, command)
            assert names[1] == "{name}" or {*names[1].split(",")} <= {*extras}, (path, command)
