"""Builds the networks of Section 4 in PyTorch, in its usual style, and times their steps.

With circular padding they compute the same function as `lowcost.nn.network`. With zeros the convolutions are the
cheaper ones that most would take, and the function differs at the border.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.common.timing import Step, interleave

Padding = Literal["circular", "zeros"]
Mode = Literal["train", "inference"]


class Layer(nn.Module):
    """A layer with the weights and the statistics of a Flax layer, under the same names.

    Attributes:
        padding: "circular" or "zeros"; the implicit and circulant steps are periodic anyway.
    """

    def __init__(self, params: Mapping[str, Any], statistics: Mapping[str, Any], padding: Padding):
        super().__init__()
        self.padding = padding
        for name, value in params.items():
            is_reaction = isinstance(value, Mapping)
            setattr(self, name, Reaction(value, statistics[name], padding) if is_reaction else _parameter(name, value))
        if "normalize" in statistics:
            mean, variance = (torch.tensor(np.asarray(statistics["normalize"][name])) for name in ("mean", "var"))
            self.normalize = nn.BatchNorm2d(len(mean), eps=1e-5, momentum=0.1, affine=False)
            self.normalize.running_mean, self.normalize.running_var = mean, variance

    def convolve(self, y: Tensor, stencil: Tensor) -> Tensor:
        """Returns K y, depth-wise if the stencil has a single input channel."""
        groups, reach = y.shape[1] // stencil.shape[1], stencil.shape[-1] // 2
        if self.padding == "zeros":
            return F.conv2d(y, stencil, padding=reach, groups=groups)
        return F.conv2d(F.pad(y, (reach,) * 4, mode="circular"), stencil, groups=groups)

    def convolve_adjoint(self, z: Tensor, stencil: Tensor) -> Tensor:
        """Returns Kᵀ z."""
        if self.padding == "zeros":
            groups = z.shape[1] // stencil.shape[1]
            return F.conv_transpose2d(z, stencil, padding=stencil.shape[-1] // 2, groups=groups)
        mirrored = stencil.flip((2, 3))
        return self.convolve(z, mirrored if stencil.shape[1] == 1 else mirrored.transpose(0, 1))


class Reaction(Layer):
    """σ(N(M y))."""

    def forward(self, y: Tensor) -> Tensor:
        return F.relu(self.normalize(F.conv2d(y, self.matrix)))


class ResNetStep(Layer):
    """y + K(θ²)ᵀ σ(N(K(θ¹) y))."""

    def forward(self, y: Tensor) -> Tensor:
        inner = F.relu(self.normalize(self.convolve(y, self.stencil1)))
        return y + self.convolve_adjoint(inner, self.stencil2)


class LinearMixStep(Layer):
    """y + K_lm(θ²)ᵀ σ(N(K_lm(θ¹) y))."""

    def forward(self, y: Tensor) -> Tensor:
        inner = F.relu(self.normalize(self.convolve(y, self.stencil1) + F.conv2d(y, self.matrix1)))
        return y + self.convolve_adjoint(inner, self.stencil2) + F.conv2d(inner, self.matrix2.transpose(0, 1))


class MobileNetStep(Layer):
    """σ(N(M σ(N(K_dw y))))."""

    def forward(self, y: Tensor) -> Tensor:
        return self.reaction(F.relu(self.normalize(self.convolve(y, self.stencil))))


class ExplicitRDStep(Layer):
    """y + (-KᵀK y + σ(N(M y)))."""

    def forward(self, y: Tensor) -> Tensor:
        return y - self.convolve_adjoint(self.convolve(y, self.stencil), self.stencil) + self.reaction(y)


class ImplicitRDStep(Layer):
    """(I + KᵀK)⁻¹ (y + σ(N(M y)))."""

    def forward(self, y: Tensor) -> Tensor:
        return _filter(_resolvent, self.stencil.transpose(0, 1), y + self.reaction(y), (2, 3))


class CirculantRDStep(Layer):
    """y + (-KᵀK y + σ(N(M y))), K circulant in the channels."""

    def forward(self, y: Tensor) -> Tensor:
        θ = self.shared_stencil.transpose(0, 1) / y.shape[1] ** 0.5
        return y + self.reaction(y) - _filter(lambda squared_modulus: squared_modulus, θ, y, (1, 2, 3))


class ImplicitCirculantRDStep(Layer):
    """(I + KᵀK)⁻¹ (y + σ(N(M y))), K circulant in the channels."""

    def forward(self, y: Tensor) -> Tensor:
        θ = self.shared_stencil.transpose(0, 1) / y.shape[1] ** 0.5
        return _filter(_resolvent, θ, y + self.reaction(y), (1, 2, 3))


class Opening(Layer):
    """σ(N(K y)), 5x5."""

    def forward(self, y: Tensor) -> Tensor:
        return F.relu(self.normalize(self.convolve(y, self.stencil)))


class Connecting(Layer):
    """N([y; K_dw y])."""

    def forward(self, y: Tensor) -> Tensor:
        return self.normalize(torch.cat([y, self.convolve(y, self.stencil)], 1))


STEPS = {
    "resnet": ResNetStep,
    "mobilenet": MobileNetStep,
    "linear_mix": LinearMixStep,
    "explicit_rd": ExplicitRDStep,
    "implicit_rd": ImplicitRDStep,
    "circulant_rd": CirculantRDStep,
    "implicit_circulant_rd": ImplicitCirculantRDStep,
}
"""The step of each architecture."""


class Network(nn.Module):
    """Images [B, C_in, H, W] in [0, 1] → logits [B, num_classes]; see `lowcost.nn.network`."""

    def __init__(self, architecture: str, variables: Mapping[str, Any], *, padding: Padding = "circular"):
        """Takes the weights and the statistics of the Flax network, which has four steps per block."""
        super().__init__()

        def layer(kind: type[Layer], name: str) -> Layer:
            return kind(variables["params"][name], variables["batch_stats"][name], padding)

        self.opening = layer(Opening, "opening")
        self.blocks = nn.ModuleList()
        while (block := f"block{len(self.blocks) + 1}") + "_connecting" in variables["params"]:
            steps = (layer(STEPS[architecture], f"{block}_step{j}") for j in range(1, 5))
            self.blocks.append(nn.Sequential(*steps, layer(Connecting, f"{block}_connecting")))
        classifier = variables["params"]["classifier"]
        kernel, bias = (torch.tensor(np.asarray(classifier[name])) for name in ("kernel", "bias"))
        self.classifier = nn.Linear(*kernel.shape)
        self.classifier.weight, self.classifier.bias = nn.Parameter(kernel.T.contiguous()), nn.Parameter(bias)

    def forward(self, images: Tensor) -> Tensor:
        y = self.opening(images)
        for i, block in enumerate(self.blocks):
            y = block(F.avg_pool2d(y, 2) if i else y)
        return self.classifier(y.mean((2, 3)))


def _filter(function: Callable[[Tensor], Tensor], stencil: Tensor, y: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Returns the filter of y with the symbol function(|λ|²), in which a shift of the stencil cancels."""
    size = [y.shape[axis] for axis in axes]
    λ = torch.fft.rfftn(stencil, s=size, dim=axes)
    symbol = function(λ.real**2 + λ.imag**2)
    return torch.fft.irfftn(symbol * torch.fft.rfftn(y, dim=axes), s=size, dim=axes)


def _resolvent(squared_modulus: Tensor) -> Tensor:
    return 1 / (1 + squared_modulus)


def _parameter(name: str, value: Any) -> nn.Parameter:
    """Returns a stencil [*window, C] or [*window, C_in, C_out], or a matrix, with the channels in front."""
    value = np.asarray(value)
    if "matrix" in name:
        value = value.T[..., None, None]
    else:
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.transpose(2, 0, 1)[:, None]
    return nn.Parameter(torch.tensor(value.copy()))


class Theirs:
    """The network in PyTorch with the weights of ours, ready to be timed."""

    def __init__(self, architecture: str, ours: Any, device: str):
        """Takes the weights and the batch of `throughput.Ours`; device is "cpu" or "cuda"."""
        self.images = torch.tensor(ours.images.transpose(0, 3, 1, 2).copy(), device=device)
        self.labels = torch.tensor(ours.labels, dtype=torch.long, device=device)
        self.network = lambda padding: Network(architecture, ours.variables, padding=padding).to(device)

    @torch.no_grad()
    def logits(self, number: int) -> np.ndarray:
        """Returns the logits of the first `number` images, from a CPU: a GPU rounds the products to fewer bits."""
        return self.network("circular").cpu().eval()(self.images[:number].cpu() / 255).numpy()

    def fastest(self, mode: Mode, padding: Padding, compiled: bool) -> tuple[str, Step]:
        """Returns name and step of the fastest form: channels first or last, and the better one of them compiled.

        On a GPU these are recorded once and replayed (a CUDA graph), which saves the time that Python and PyTorch take
        to start each kernel.
        """
        cuda = self.images.is_cuda
        torch.backends.cudnn.benchmark = cuda  # takes the fastest convolution, not the first
        recorded = _recorded if cuda else lambda step: step
        eager = {layout: recorded(self._step(mode, padding, layout, False)) for layout in ("first", "last")}
        seconds = interleave(eager, 3)
        layout = min(seconds, key=seconds.__getitem__)
        how = ", recorded" * cuda
        forms = {f"eager{how}, channels {layout}": eager[layout]}
        if compiled:
            forms[f"compiled{how}, channels {layout}"] = recorded(self._step(mode, padding, layout, True))
        seconds = interleave(forms, 3)
        best = min(seconds, key=seconds.__getitem__)
        return best, forms[best]

    def _step(self, mode: Mode, padding: Padding, channels: str, compiled: bool) -> Step:
        layout = torch.channels_last if channels == "last" else torch.contiguous_format
        net = self.network(padding).to(memory_format=layout).train(mode == "train")
        images = self.images.contiguous(memory_format=layout)
        call = torch.compile(net) if compiled else net
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True, capturable=images.is_cuda)

        def step() -> Started:
            if mode == "train":
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(call(images / 255), self.labels).backward()
                optimizer.step()
            else:
                with torch.inference_mode():
                    call(images / 255)
            return Started()

        return step


class Started:
    """What PyTorch has started, for `jax.block_until_ready`."""

    def block_until_ready(self) -> None:
        """Waits for the GPU, if there is one; a CPU has finished."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def _recorded(step: Step) -> Step:
    """Returns the replay of the kernels that a step starts on a GPU."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # three times to warm up, as PyTorch's documents advise
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay() -> Started:
        graph.replay()
        return Started()

    return replay
