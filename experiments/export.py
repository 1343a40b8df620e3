"""Writes a trained network to one file for other machines: `python -m experiments.export --workdir DIR --out FILE`.

--format onnx         standard operators only; classes, preprocessing and card are in the metadata of the file
--format stablehlo    for jax.export.deserialize, on CPU, CUDA and TPU; the metadata are beside it, in FILE.json
--format safetensors  for lowcost.load: the weights as they were trained, with the same metadata
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Literal

from experiments.common import datasets, entry, files, runs
from lowcost import deploy, terminal
from lowcost.data import Dataset
from lowcost.data.batches import random_rows
from lowcost.deploy import packaged
from lowcost.nn.operations import Depthwise, Filter, Operation
from lowcost.scaling import to_unit_range

CALIBRATION, CALIBRATION_NUMBERS = 500, 2**23
"""Largest number of training images, and of numbers in them, that give the ranges of 8-bit activations."""


@dataclasses.dataclass(frozen=True)
class ExportConfig:
    """The run, and the file to make of it."""

    workdir: Path
    """Work directory of a finished run."""
    out: Path
    """File to write."""
    format: Literal["onnx", "stablehlo", "safetensors"] = "onnx"
    """Format of the file."""
    tolerance: float | None = None
    """onnx, stablehlo: replace the filter of each implicit step by the smallest stencil that loses at most this share
    of its features. None: exact. Circulant steps stay exact."""
    bits: Literal[32, 8] = 32
    """onnx: bits of a weight in the file."""
    activations: Literal[32, 8] = 32
    """onnx, with --bits 8: bits of the inputs and outputs of products and convolutions. With 8, runtimes can compute
    these in integers. The ranges are measured on at most 500 training images."""
    data_dir: Path | None = None
    """--activations 8: folder or file of the training images, if it is no longer the one of training."""
    opset: int = 21
    """onnx: version of the operators, 13 to 21; a lower one for older runtimes."""


def main(config: ExportConfig) -> None:
    """Writes the network, folded unless it is for lowcost.load, and prints the size of each file."""
    if config.format != "onnx" and (config.bits, config.activations, config.opset) != (32, 32, 21):
        raise ValueError(f"--bits, --activations and --opset are for --format onnx; leave them out for {config.format}")
    if config.format == "safetensors" and config.tolerance is not None:
        raise ValueError("--tolerance is for --format onnx and stablehlo; leave it out for safetensors")
    if config.activations == 8 and config.bits != 8:
        raise ValueError(f"--activations 8 needs --bits 8, got {config.bits}; add it")
    if config.data_dir is not None and config.activations != 8:
        raise ValueError(f"--data-dir needs --activations 8, got {config.activations}; leave it out, or add it")
    named = config.out.suffix.lower().removeprefix(".")
    if named in ("onnx", "safetensors") and named != config.format:
        expected = f"--out must not end in .{named} for --format {config.format}"
        raise ValueError(f"{expected}, got {config.out}; add --format {named}, or rename it")
    files.check_target(config.out, "--out")
    run = runs.trained(config.workdir, to_the_end=True)
    if config.format == "safetensors":
        _write({config.out: packaged.encode(run)}, config.out)
        return
    if run.net.masked:
        remedy = "use --format safetensors, or train on signals resampled to one length, --length N"
        raise ValueError(f"{config.workdir} must hold a network without a mask for {config.format}, got one; {remedy}")
    folded, metadata = deploy.fold(run.net, run.variables, run.image_shape), {**run.metadata(), **run.card}
    if config.tolerance is not None:
        folded, metadata["tolerance"] = deploy.truncate(folded, config.tolerance), str(config.tolerance)
    if config.activations == 8:
        folded = quantized(folded, datasets.data_again(config.workdir, run.config, config.data_dir))
    _write(serialized(folded, metadata, config), config.out)
    for layer in folded.layers:
        if config.tolerance is not None and (choice := _choice(layer.operations)):
            print(f"{layer.name:20} {choice}", file=files.messages(config.out))


def quantized(folded: deploy.Folded, dataset: Dataset) -> deploy.Folded:
    """Returns the network with 8-bit activations, calibrated on at most `CALIBRATION` training images."""
    images = dataset.train.images
    largest = max(1, min(CALIBRATION, CALIBRATION_NUMBERS // math.prod(dataset.image_shape)))
    return deploy.quantize(folded, to_unit_range(images[random_rows(len(images), largest)]))


def _write(contents: dict[Path, bytes], out: Path) -> None:
    for file, content in contents.items():
        files.write_whole(file, content)
        print(f"{terminal.printable(file)}: {len(content):,} bytes", file=files.messages(out))


def serialized(folded: deploy.Folded, metadata: dict[str, str], config: ExportConfig) -> dict[Path, bytes]:
    """Returns the content of each file."""
    if config.format == "onnx":
        metadata = {**metadata, "opset": str(config.opset)}
        model = deploy.to_onnx(folded, metadata=metadata, bits=config.bits, opset=config.opset)
        return {config.out: model.SerializeToString()}
    metadata_path = config.out.with_name(config.out.name + ".json")
    return {config.out: deploy.to_stablehlo(folded), metadata_path: (json.dumps(metadata, indent=2) + "\n").encode()}


def _choice(operations: tuple[Operation, ...]) -> str:
    """Returns how the implicit step of a layer is computed, "" if it has none."""
    for operation in operations:
        if isinstance(operation, Filter):
            return "exact: by matrix product"
        if isinstance(operation, Depthwise) and operation.dropped is not None:
            size = "x".join(map(str, operation.stencil.shape[:-1]))
            return f"stencil of {size}, loses at most {operation.dropped.max():.1e}"
    return ""


if __name__ == "__main__":
    entry.run(main, ExportConfig)
