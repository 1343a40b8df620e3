"""Tests experiments.compile_for, which compiles for absent accelerators; skips if their compilers are missing."""

import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments import autotune, compile_for
from experiments.common import topologies
from lowcost import methods
from lowcost.nn import ARCHITECTURES, network

COMPILERS = {"v5e:16x16": "libtpu", "h100:1x1x8": "jax_cuda12_plugin"}
COMMITTED = Path(__file__).with_name("compiled_bytes.json")
SHAPE = (16, 16, 3)


@pytest.fixture
def no_mesh():
    """Replaces the fixture of this folder, because lowering sets the mesh of the absent devices."""


def compiled(architecture, topology):
    """Returns a small network and the report of two of its training steps in one program."""
    if importlib.util.find_spec(COMPILERS[topology]) is None:
        pytest.skip(f"{COMPILERS[topology]} is not installed")
    net = network(architecture, (8, 16), 10, steps_per_block=1)
    mesh = topologies.mesh(topology)
    return net, compile_for.measure(net, mesh, topology, "train", 8, SHAPE, steps=2)


@pytest.mark.parametrize("topology", COMPILERS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_training_program(architecture, topology):
    """A step moves no features between chips, reuses the memory of its state, and moves the committed bytes."""
    net, row = compiled(architecture, topology)
    params = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros((1, *SHAPE))))["params"]
    weights = jax.tree.leaves(params)
    assert row["gathered_max"] <= 3 * 3 * 16 * 16  # the stencil that makes K_circ fully coupled
    assert row["float64"] == row["host_calls"] == 0
    assert set(row["collectives"]) == {"all-reduce"}
    assert row["donated"] >= 3 * len(weights)  # the weights and Adam's two moments
    assert row["bytes"] == pytest.approx(json.loads(COMMITTED.read_text())[topology][architecture], rel=0.1)


@pytest.mark.parametrize("topology", COMPILERS)
def test_the_table_of_an_absent_chip(topology):
    """Every method of an operator has an estimate, except the FFT on a TPU, whose compiler is slow."""
    if importlib.util.find_spec(COMPILERS[topology]) is None:
        pytest.skip(f"{COMPILERS[topology]} is not installed")
    point = {"operator": "depthwise", "dims": 2, "n": 8, "m": 3, "channels": 32}
    row = autotune.estimate(point, methods.METHODS_OF["depthwise"], 2**14, topology)
    assert set(row["seconds"]) == (
        {"matmul", "direct"} if topology.startswith("v5e") else {*methods.METHODS_OF["depthwise"]}
    )
    assert all(seconds > 0 for seconds in row["seconds"].values())
    assert row["origin"] == f"estimated by XLA for {topology.partition(':')[0]}"


HLO = """HloModule step, input_output_alias={ {0}: (0, {}, may-alias), {1}: (1, {}, may-alias) }

%f (a: f32[8,8], b: f32[8,8]) -> f32[8,8] {
  ROOT %sum.1 = f32[8,8]{1,0} add(%a, %b)
}

%body.2 (p: f32[8,8]) -> f32[16,8] {
  %p = f32[8,8]{1,0} parameter(0)
  ROOT %gathered = f32[16,8]{1,0} all-gather(f32[8,8]{1,0} %p), dimensions={0}
}

ENTRY %main (x: f32[8,8], w: f32[8,8]) -> f32[8,8] {
  %x = f32[8,8]{1,0} parameter(0)
  %w = f32[8,8]{1,0} parameter(1)
  %fusion = f32[8,8]{1,0:T(8,128)} fusion(%x, %w), kind=kOutput, calls=%f, backend_config={"estimated_cycles":"3000"}
  %sum = (f32[8,8]{1,0}, bf16[4]{0}) all-reduce(%fusion, %w), to_apply=%add
  %loop = f32[16,8]{1,0} while(%x), condition=%less, body=%body.2
  %call = (f32[8,8]{1,0}, s8[4194304]{0}) custom-call(%x, %w), custom_call_target="__cublas$gemm"
  ROOT %copy = f32[8,8]{0,1} copy(%fusion), backend_config={"estimated_cycles":"1500"}
}
"""


class Compiled:
    """Stands for a compiled program."""

    temp_size_in_bytes, generated_code_size_in_bytes = 5, 6

    def as_text(self):
        return HLO

    def cost_analysis(self):
        return None

    def memory_analysis(self):
        return self


def test_what_is_read_from_a_program():
    """Reads cycles, bytes of operands and results, collectives, gathers inside loops, and donated arguments.

    Scratch memory of libraries does not count.
    """
    row = topologies.report(Compiled(), "v5e")
    assert row["milliseconds"] == pytest.approx(4500 / 1.5e9 * 1e3)
    assert row["bytes"] == 256 * 3 + (256 + 8 + 256 * 2) + 256 * 3 + 256 * 2 + (512 + 256)
    assert (row["collectives"], row["collective_bytes"]) == ({"all-gather": 1, "all-reduce": 1}, 512 + 256 + 8)
    assert (row["gathered_max"], row["copies"], row["donated"], row["float64"]) == (128, 1, 2, 0)
    assert (row["temporary_bytes"], row["code_bytes"], row["flops"]) == (5, 6, None)


def test_calls_of_a_library_take_the_time_of_their_bytes():
    """XLA has no estimate for them."""
    milliseconds = topologies.report(Compiled(), "h100")["milliseconds"]
    assert milliseconds == pytest.approx(1e3 * topologies.report(Compiled(), "h100")["bytes"] / 3352.32e9)


GPU = """HloModule step

%product (a: f32[64,1024], b: f32[1024,32]) -> f32[64,32] {
  %a = f32[64,1024]{1,0} parameter(0)
  %b = f32[1024,32]{1,0} parameter(1)
  ROOT %dot = f32[64,32]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}PRECISION
}

ENTRY %main (x: f32[64,1024], w: f32[1024,32], y: DTYPE[8,8,8,64], g: DTYPE[8,6,6,64]) -> f32[64,32] {
  %x = f32[64,1024]{1,0} parameter(0)
  %w = f32[1024,32]{1,0} parameter(1)
  %y = DTYPE[8,8,8,64]{3,2,1,0} parameter(2)
  %g = DTYPE[8,6,6,64]{3,2,1,0} parameter(3)
  %k = (DTYPE[64,3,3,16]{3,2,1,0}, u8[99]{0}) custom-call(%y, %g), LABELS, custom_call_target="convBackwardFilter"
  %conv = (DTYPE[8,6,6,64]{3,2,1,0}, u8[99]{0}) custom-call(%y, %k), LABELS, custom_call_target="convForward"
  %fast = f32[8]{0} fusion(%y), kind=kLoop, calls=%sum, backend_config={"exec_time_us":2,"x":0,"name":"sol"}
  ROOT %dots = f32[64,32]{1,0} fusion(%x, %w), calls=%product, backend_config={"kind":"__triton_gemm","exec_time_us":9}
}
"""


@pytest.mark.parametrize(("dtype", "width"), [("f32", 4), ("bf16", 2)])
@pytest.mark.parametrize(("precision", "rate"), [("", 40.0), (", operand_precision={highest,highest}", 10.0)])
def test_operations_of_products_and_convolutions_count(monkeypatch, dtype, width, precision, rate):
    """The time is that of the operations where it is longer than that of the bytes; other estimates are XLA's."""
    labels = "window={size=3x3}, dim_labels=b01f_o01i->b01f, feature_group_count=4"
    text = GPU.replace("DTYPE", dtype).replace("PRECISION", precision).replace("LABELS", labels)
    monkeypatch.setattr(Compiled, "as_text", lambda self: text)
    monkeypatch.setitem(topologies.GPUS, "h100", topologies.Gpu(1e9, 10.0, 40.0))
    product, convolution = 2 * 64 * 1024 * 32 / rate, 2 * 8 * 6 * 6 * 9 * 64 * 64 / 4 / 40.0 * width / 4
    milliseconds = topologies.report(Compiled(), "h100")["milliseconds"]
    assert milliseconds == pytest.approx(1e3 * (product + 2 * convolution + 2e-6))
    monkeypatch.setitem(topologies.GPUS, "h100", topologies.Gpu(1.0, 1e30, 1e30))
    row = topologies.report(Compiled(), "h100")
    assert row["milliseconds"] == pytest.approx(1e3 * (row["bytes"] - width * 8 * 64 * 64 - 32 + 2e-6))


@pytest.mark.parametrize("topology", ["v5e", "b200:1x1x8", ":2x2"])
def test_an_unknown_topology_is_an_error(topology):
    with pytest.raises(ValueError, match=f"topology must be a chip and a shape, e.g. v4:2x2.*got '{topology}'"):
        topologies.mesh(topology)


def test_a_missing_compiler_is_an_error():
    if importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is installed")
    with pytest.raises(ImportError, match="the extra 'tpu' must be installed"):
        topologies.mesh("v5e:2x2")


def test_the_page_compares_with_our_resnet():
    """The page has one table per topology and mode, with ratios to our ResNet."""
    common = {"topology": "v5e:2x2", "width": "A", "per_chip": 128, "size": 32, "dtype": "float32", "jax_version": "0"}
    report = topologies.report(Compiled(), "v5e") | {"compile_seconds": 1.0}
    rows = [
        {**common, **report, "network": name, "mode": mode, "milliseconds": ms}
        for mode in ("train", "inference")
        for name, ms in (("resnet", 2.0), ("implicit_rd", 1.0))
    ]
    page = compile_for.markdown(rows)
    assert page.count("## v5e:2x2") == 2
    assert "| implicit_rd | 1.00 | 0.50 |" in page
    assert "1 all-gather, 1 all-reduce: 1 kB" in page


@pytest.mark.parametrize("name", compile_for.FLAX)
def test_the_flax_networks_have_the_shapes_of_ours(name):
    net = compile_for.network(name, (4, 8), "float32")
    images = jnp.zeros((2, 8, 8, 3))
    logits, updates = net.apply(net.init(jax.random.key(0), images), images, train=True, mutable=["batch_stats"])
    assert logits.shape == (2, 10)
    assert updates["batch_stats"]
