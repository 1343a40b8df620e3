"""Compiles programs for accelerators that this machine does not have, and reads the estimates of XLA's compiler.

The compilers come with the extras `tpu` and `compile-gpu`; neither needs a driver. Estimates rank programs for one
chip; they are no measurements.
"""

import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.topologies import get_topology_desc
from jax.sharding import AxisType, Mesh
from jax.stages import Compiled, Lowered

from experiments.common.results import Row
from lowcost import batching, extras

CLOCKS = {"v4": 1.05e9, "v5e": 1.5e9, "v5p": 1.75e9, "v6e": 1.75e9}
"""Cycles per second, from the published peak and the size of the matrix units."""

GPUS = {"h100": 3352.32e9}
"""GPUs with a description beside this file, and their bytes per second."""

COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f64": 8, "s64": 8, "u64": 8, "c64": 8, "c128": 16}
_SHAPE = re.compile(r"\b(pred|bf16|[sufc]\d+)\[([\d,]*)\]")
_SCRATCH = re.compile(r", [su]8\[\d+\]\S*(?=\)$)")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$", re.MULTILINE)
_FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "constant", "while"}


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
        milliseconds: estimated; loops count once.
        bytes: read and written by its kernels, without the scratch memory of library calls; on TPUs XLA's own count.
        flops: XLA's count; None on GPUs, where XLA has none.
        temporary_bytes, code_bytes: of memory.
        collectives: number by kind; collective_bytes: of their results.
        copies, gathers, fft, loops, host_calls, float64: numbers of such instructions.
        gathered_max: numbers in the largest result of a gather or all-gather.
        donated: number of results that reuse the memory of an argument.
    """
    text = program.as_text() or ""
    types: dict[str, str] = {}
    milliseconds, moved = 0.0, 0
    for name, result, operation, rest in _INSTRUCTION.findall(_run(text)):
        types[name] = result
        if operation == "custom-call":  # whose last result may be scratch memory, which need not be moved
            result = _SCRATCH.sub("", result)
        if operation in _FREE or operation.endswith(("-start", "-done")):
            continue
        operands = re.findall(r"%([\w.\-]+)", rest.partition("), ")[0])
        size = _size(result) + sum(_size(types.get(operand, "")) for operand in operands)
        moved += size
        milliseconds += 1e3 * _seconds(rest, size, chip)
    costs: Any = program.cost_analysis() or {}
    memory: Any = program.memory_analysis()
    instructions = _INSTRUCTION.findall(text)
    everywhere = Counter(operation for _, _, operation, _ in instructions)
    exchanged = [result for _, result, kind, _ in instructions if kind.removesuffix("-start") in COLLECTIVES]
    gathers = [result for _, result, operation, _ in instructions if operation in ("gather", "all-gather")]
    return {
        "milliseconds": milliseconds,
        "bytes": int(costs.get("bytes accessed", moved)),
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


def _run(text: str) -> str:
    """The entry computation of a program, and the bodies of its loops; the others are parts of one instruction."""
    names = "|".join(["ENTRY", *(rf"%?{re.escape(name)}" for name in re.findall(r"body=%?([\w.\-]+)", text))])
    return "\n".join(re.findall(rf"^(?:{names}) [^\n]*\{{$(.*?)^\}}", text, re.MULTILINE | re.DOTALL))


def _seconds(instruction: str, size: int, chip: str) -> float:
    """Estimated seconds of one instruction of the entry computation."""
    if chip in CLOCKS:
        cycles = re.search(r'"estimated_cycles":"?(\d+)', instruction)
        return int(cycles[1]) / CLOCKS[chip] if cycles else 0.0
    models = re.findall(r'"exec_time_us":([\d.e+-]+),[^}]*?"name":"([^"]*)"', instruction)
    by_name = {name: float(microseconds) for microseconds, name in models}
    best = by_name.get("indexing-cost-model") or by_name.get("") or by_name.get("sol")
    return best / 1e6 if best else size / GPUS[chip]  # calls of a library have no estimate: at least their bytes


def _size(shape: str) -> int:
    return sum(_BYTES.get(dtype, 4) * math.prod(_dimensions(sizes)) for dtype, sizes in _SHAPE.findall(shape))


def _dimensions(sizes: str) -> list[int]:
    return [int(size) for size in sizes.split(",") if size]
