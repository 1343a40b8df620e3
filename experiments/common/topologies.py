"""Compiles programs for accelerators that this machine does not have, and reads the estimates of XLA's compiler.

The compilers come with the extras `tpu` and `compile-gpu`; neither needs a driver. Estimates rank programs for one
chip; they are no measurements.
"""

import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.topologies import get_topology_desc
from jax.sharding import AxisType, Mesh
from jax.stages import Compiled, Lowered

from experiments.common.results import Row
from lowcost import batching, extras

CLOCKS = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}
"""Cycles per second, from the published peak and the size of the matrix units."""


class Gpu(NamedTuple):
    """Published peaks of a GPU, per second."""

    bytes: float
    operations: float
    """Of float32 in full precision."""
    tensor_operations: float
    """Of float32 in the default precision, TF32; numbers of 16 bits allow twice as many."""


GPUS = {"h100": Gpu(3352.32e9, 66.9e12, 494.7e12)}
"""GPUs with a description beside this file."""

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8, "u64": 8, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"\b(pred|bf16|[sufc]\d+)\[([\d,]*)\]")
_SCRATCH = re.compile(r", [su]8\[\d+\]\S*(?=\)$)")
_COMPUTATION = re.compile(r"^%?([\w.\-]+) [^\n]*\{$(.*?)^\}", re.MULTILINE | re.DOTALL)
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$", re.MULTILINE)
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while"}


class _Instruction(NamedTuple):
    kind: str
    shapes: list[str]
    """Of its result and its operands."""
    text: str
    """Its operands and attributes."""


def mesh(topology: str, number: int | None = None) -> Mesh:
    """Returns the mesh of a topology's devices along the axis "data".

    Args:
        topology: "v5e:2x2", "v6e:2x2", "v5p:2x2x1", or for GPUs slices x hosts x GPUs, "h100:1x1x8".
        number: of devices to use; by default all.

    Raises:
        ValueError: unknown topology.
        ImportError: the compiler for it is not installed.
    """
    chip, _, shape = topology.partition(":")
    if chip not in (*CLOCKS, *GPUS) or not shape:
        known = ", ".join(f"{name}:2x2" for name in CLOCKS) + ", " + ", ".join(f"{name}:1x1x8" for name in GPUS)
        raise ValueError(f"topology must be a chip and a shape, e.g. {known}, got {topology!r}")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # otherwise libtpu asks a metadata server
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # there is no chip to compete for
    jax.config.update("jax_platforms", "cpu")  # otherwise the plugins look for devices
    try:
        with extras.needs_extra("compile-gpu" if chip in GPUS else "tpu"):
            if chip in GPUS:
                import jax_cuda12_plugin  # noqa: F401

                target = Path(__file__).with_name(f"{chip}.txtpb").read_text()
                devices = get_topology_desc("", "cuda", topology=shape, target_config=target).devices
            else:
                import libtpu  # noqa: F401

                devices = get_topology_desc(topology, "tpu").devices
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"topology must be one that the compiler knows, got {topology!r} ({error})") from None
    return Mesh(np.array(devices[:number]), (batching.BATCH_AXIS,), axis_types=(AxisType.Auto,))


def compiled(lowered: Lowered, chip: str) -> Compiled:
    """Returns the program compiled for a chip, with its estimates."""
    return lowered.compile(compiler_options={"xla_gpu_collect_cost_model_stats": True} if chip in GPUS else None)


def report(program: Compiled, chip: str) -> Row:
    """Returns what XLA says of a compiled program, per chip.

    Returns:
        milliseconds: estimated; loops count once. On GPUs, XLA has no estimate for calls of a library, and one that is
            too long for products of matrices, since it finds fast tiles only by timing them. Both take the time of
            their bytes or of their operations at the GPU's peaks, whichever is longer.
        bytes: read and written by its kernels, without the scratch memory of library calls; on TPUs XLA's own count.
        flops: XLA's count; None on GPUs, where XLA has none.
        temporary_bytes, code_bytes: of memory.
        collectives: number by kind; collective_bytes: of their results.
        copies, gathers, fft, loops, host_calls, float64: numbers of such instructions.
        gathered_max: numbers in the largest result of a gather or all-gather.
        donated: number of results that reuse the memory of an argument.
    """
    text = program.as_text() or ""
    computations = _computations(text)
    bodies = ("ENTRY", *dict.fromkeys(re.findall(r"body=%?([\w.\-]+)", text)))  # others are parts of one instruction
    run = [one for name in bodies for one in computations[name] if one.kind not in _FREE]
    run = [one for one in run if not one.kind.endswith(("-start", "-done"))]
    seconds = _gpu_seconds if chip in GPUS else _tpu_seconds
    costs: Any = program.cost_analysis() or {}
    memory: Any = program.memory_analysis()
    instructions = [one for computation in computations.values() for one in computation]
    everywhere = Counter(one.kind for one in instructions)
    exchanged = [one.shapes[0] for one in instructions if one.kind.removesuffix("-start") in COLLECTIVES]
    gathers = [one.shapes[0] for one in instructions if one.kind in ("gather", "all-gather")]
    return {
        "milliseconds": sum(1e3 * seconds(one, computations, chip) for one in run),
        "bytes": int(costs.get("bytes accessed", sum(map(_bytes, run)))),
        "flops": int(costs["flops"]) if "flops" in costs else None,
        "temporary_bytes": memory.temp_size_in_bytes,
        "code_bytes": memory.generated_code_size_in_bytes,
        "collectives": {kind: n for kind in COLLECTIVES if (n := everywhere[kind] + everywhere[f"{kind}-start"])},
        "collective_bytes": sum(map(_size, exchanged)),
        "copies": everywhere["copy"] + everywhere["copy-start"],
        "fft": everywhere["fft"],
        "loops": everywhere["while"],
        "host_calls": len(re.findall(r'custom_call_target="[^"]*(?:callback|[Hh]ost)', text)) + everywhere["outfeed"],
        "float64": len(re.findall(r"\b(?:f64|c128)\[", text)),
        "gathered_max": max((math.prod(_dimensions(x)) for g in gathers for _, x in _SHAPE.findall(g)), default=0),
        "donated": len(re.findall("may-alias|must-alias", text.partition("\n")[0])),
    }


def _computations(text: str) -> dict[str, list[_Instruction]]:
    """The instructions of each computation of a program; the first to run is "ENTRY"."""
    shapes: dict[str, str] = {}

    def instruction(name: str, result: str, kind: str, text: str) -> _Instruction:
        if kind == "custom-call":  # whose last result may be scratch memory, which need not be moved
            result = _SCRATCH.sub("", result)
        shapes[name] = result
        operands = re.findall(r"%([\w.\-]+)", text.partition("), ")[0])
        return _Instruction(kind, [result, *(shapes.get(operand, "") for operand in operands)], text)

    return {
        name: [instruction(*one) for one in _INSTRUCTION.findall(body)] for name, body in _COMPUTATION.findall(text)
    }


def _tpu_seconds(instruction: _Instruction, computations: dict[str, list[_Instruction]], chip: str) -> float:
    cycles = re.search(r'"estimated_cycles":"?(\d+)', instruction.text)
    return int(cycles[1]) / CLOCKS[chip] if cycles else 0.0


def _gpu_seconds(instruction: _Instruction, computations: dict[str, list[_Instruction]], chip: str) -> float:
    """XLA's estimate; of calls of a library and of products of matrices the time at the GPU's peaks."""
    called = re.search(r'calls=%?([\w.\-]+).*"kind":"__triton\w*gemm', instruction.text)
    models = re.findall(r'"exec_time_us":([\d.e+-]+),[^}]*?"name":"([^"]*)"', instruction.text)
    by_name = {name: float(microseconds) / 1e6 for microseconds, name in models}
    best = by_name.get("indexing-cost-model") or by_name.get("") or by_name.get("sol")
    if best and not called:
        return best
    parts = computations[called[1]] if called else [instruction]
    return max(_bytes(instruction) / GPUS[chip].bytes, *(_operation_seconds(one, GPUS[chip]) for one in parts))


def _operation_seconds(instruction: _Instruction, gpu: Gpu) -> float:
    """Seconds that the operations of a convolution or of a product of matrices take at the GPU's peak.

    A product c = a b takes 2 √(|a| |b| |c|) of them. A convolution takes 2 |θ| for each point of its grid, of the
    smaller one if the features before or after it are padded.
    """
    numbers = [sum(math.prod(_dimensions(sizes)) for _, sizes in _SHAPE.findall(shape)) for shape in instruction.shapes]
    if labels := re.search(r"dim_labels=(\w+?)_", instruction.text):
        stencil = 0 if "convBackwardFilter" in instruction.text else 2  # of the result and both operands
        grids = [_SHAPE.search(shape) for i, shape in enumerate(instruction.shapes[:3]) if i != stencil]
        sizes = [zip(_dimensions(grid[2]), labels[1], strict=True) for grid in grids if grid]
        operations = 2.0 * numbers[stencil] * min(math.prod(n for n, label in grid if label != "f") for grid in sizes)
    elif "contracting_dim" in instruction.text:
        operations = 2 * math.sqrt(math.prod(numbers[:3]))
    else:
        return 0.0
    if "highest" in instruction.text.lower():
        return operations / gpu.operations
    return operations / gpu.tensor_operations * _size(instruction.shapes[0]) / numbers[0] / 4


def _bytes(instruction: _Instruction) -> int:
    return sum(map(_size, instruction.shapes))


def _size(shape: str) -> int:
    return sum(_BYTES.get(dtype, 4) * math.prod(_dimensions(sizes)) for dtype, sizes in _SHAPE.findall(shape))


def _dimensions(sizes: str) -> list[int]:
    return [int(size) for size in sizes.split(",") if size]
