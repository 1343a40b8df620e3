"""Turns a trained network into constants, on request without FFT, for machines without JAX::

    folded = fold(net, variables, image_shape)
    logits = jax.jit(folded)(images)
    model = to_onnx(truncate(folded, tolerance=1e-3))

A folded network consists of the operations in `lowcost.nn.operations`.
"""

from lowcost.deploy.folding import Folded, FoldedLayer, fold
from lowcost.deploy.onnx_graph import to_onnx
from lowcost.deploy.quantization import quantize
from lowcost.deploy.stablehlo import to_stablehlo
from lowcost.deploy.truncation import Certified, certified, truncate
from lowcost.lazy import attributes

__all__ = ["Certified", "Folded", "FoldedLayer", "certified", "fold", "quantize", "to_onnx", "to_stablehlo", "truncate"]
__getattr__, __dir__ = attributes(__name__, __all__, (), ["input_steps", "loading", "packaged"])
