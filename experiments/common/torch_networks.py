"""The networks of Section 4 in PyTorch, as one would write them there: what the benchmarks compare with.

The same function of the same weights as `lowcost.nn.network` where `padding` is "circular"; with "zeros" the
convolutions are the cheaper ones that most would take, and the function is another one at the border.
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


class Network(nn.Module):
    """Images [B, C_in, H, W] in [0, 1] → logits [B, num_classes]; see `lowcost.nn.network`.

    Attributes:
        architecture: as there.
        padding: of the convolutions, "circular" or "zeros"; the implicit and circulant steps are periodic anyway.
    """

    def __init__(self, architecture: str, channels: tuple[int, ...], num_classes: int, *, padding: str = "circular"):
        super().__init__()
        self.padding = padding
        self.opening = Opening(3, channels[0], padding)
        self.blocks = nn.ModuleList(
            nn.ModuleList([*(STEPS[architecture](c, padding) for _ in range(4)), Connecting(c, padding)])
            for c in channels
        )
        self.classifier = nn.Linear(2 * channels[-1], num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        y = self.opening(images)
        for i, block in enumerate(self.blocks):
            if i:
                y = F.avg_pool2d(y, 2)
            for layer in block:
                y = layer(y)
        return self.classifier(y.mean((2, 3)))

    @torch.no_grad()
    def load(self, variables: dict[str, Any]) -> "Network":
        """Take the weights and statistics of the Flax network."""
        params, statistics = variables["params"], variables["batch_stats"]
        modules = {"opening": self.opening}
        for i, block in enumerate(self.blocks, 1):
            *steps, connecting = block
            modules |= {f"block{i}_step{j}": step for j, step in enumerate(steps, 1)}
            modules[f"block{i}_connecting"] = connecting
        for name, module in modules.items():
            for key, value in _flat(params[name]).items():
                parameter = dict(module.named_parameters())[key]
                parameter.copy_(_to_torch(key, value, parameter))
            for key, value in _flat(statistics[name]).items():
                *path, kind = key.split(".")
                module.get_buffer(".".join([*path, f"running_{kind}"])).copy_(torch.tensor(np.asarray(value)))
        dense = params["classifier"]
        self.classifier.weight.copy_(torch.tensor(np.asarray(dense["kernel"]).T.copy()))
        self.classifier.bias.copy_(torch.tensor(np.asarray(dense["bias"])))
        return self


class Reaction(nn.Module):
    """σ(N(M y))."""

    def __init__(self, c: int):
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(c, c, 1, 1))
        self.normalize = _normalize(c)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return F.relu(self.normalize(F.conv2d(y, self.matrix)))


class ResNetStep(nn.Module):
    """y + K(θ²)ᵀ σ(N(K(θ¹) y))."""

    def __init__(self, c: int, padding: str):
        super().__init__()
        self.stencil1, self.stencil2 = (nn.Parameter(torch.zeros(c, c, 3, 3)) for _ in range(2))
        self.normalize, self.padding = _normalize(c), padding

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        inner = F.relu(self.normalize(_convolve(y, self.stencil1, self.padding)))
        return y + _convolve_adjoint(inner, self.stencil2, self.padding)


class LinearMixStep(nn.Module):
    """y + K_lm(θ²)ᵀ σ(N(K_lm(θ¹) y))."""

    def __init__(self, c: int, padding: str):
        super().__init__()
        self.stencil1, self.stencil2 = (nn.Parameter(torch.zeros(c, 1, 3, 3)) for _ in range(2))
        self.matrix1, self.matrix2 = (nn.Parameter(torch.zeros(c, c, 1, 1)) for _ in range(2))
        self.normalize, self.padding = _normalize(c), padding

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        inner = _convolve(y, self.stencil1, self.padding) + F.conv2d(y, self.matrix1)
        inner = F.relu(self.normalize(inner))
        back = F.conv2d(inner, self.matrix2.transpose(0, 1))
        return y + _convolve_adjoint(inner, self.stencil2, self.padding) + back


class MobileNetStep(nn.Module):
    """σ(N(M σ(N(K_dw y))))."""

    def __init__(self, c: int, padding: str):
        super().__init__()
        self.stencil = nn.Parameter(torch.zeros(c, 1, 3, 3))
        self.normalize, self.reaction, self.padding = _normalize(c), Reaction(c), padding

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return self.reaction(F.relu(self.normalize(_convolve(y, self.stencil, self.padding))))


class ExplicitRDStep(nn.Module):
    """y + (-KᵀK y + σ(N(M y)))."""

    def __init__(self, c: int, padding: str):
        super().__init__()
        self.stencil = nn.Parameter(torch.zeros(c, 1, 3, 3))
        self.reaction, self.padding = Reaction(c), padding

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        convolved = _convolve(y, self.stencil, self.padding)
        return y - _convolve_adjoint(convolved, self.stencil, self.padding) + self.reaction(y)


class ImplicitRDStep(nn.Module):
    """(I + KᵀK)⁻¹ (y + σ(N(M y)))."""

    def __init__(self, c: int, padding: str):
        super().__init__()
        self.stencil = nn.Parameter(torch.zeros(c, 3, 3))
        self.reaction = Reaction(c)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        grid = y.shape[2:]
        λ = torch.fft.rfft2(self.stencil, s=grid)  # a shift of the stencil changes no |λ|
        spectrum = torch.fft.rfft2(y + self.reaction(y))
        return torch.fft.irfft2(spectrum / (1 + λ.real**2 + λ.imag**2), s=grid)


class CirculantRDStep(nn.Module):
    """y + (-KᵀK y + σ(N(M y))), K circulant in the channels."""

    implicit = False

    def __init__(self, c: int, padding: str):
        super().__init__()
        self.shared_stencil = nn.Parameter(torch.zeros(c, 3, 3))
        self.reaction = Reaction(c)

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        size, axes = y.shape[1:], (1, 2, 3)
        θ = self.shared_stencil / y.shape[1] ** 0.5
        λ = torch.fft.rfftn(θ.unsqueeze(0), s=size, dim=axes)
        power = λ.real**2 + λ.imag**2
        reaction = self.reaction(y)
        if self.implicit:
            return torch.fft.irfftn(torch.fft.rfftn(y + reaction, dim=axes) / (1 + power), s=size, dim=axes)
        return y + reaction - torch.fft.irfftn(torch.fft.rfftn(y, dim=axes) * power, s=size, dim=axes)


class ImplicitCirculantRDStep(CirculantRDStep):
    """(I + KᵀK)⁻¹ (y + σ(N(M y))), K circulant in the channels."""

    implicit = True


class Opening(nn.Module):
    """σ(N(K y)), 5x5."""

    def __init__(self, c_in: int, c_out: int, padding: str):
        super().__init__()
        self.stencil = nn.Parameter(torch.zeros(c_out, c_in, 5, 5))
        self.normalize, self.padding = _normalize(c_out), padding

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return F.relu(self.normalize(_convolve(y, self.stencil, self.padding)))


class Connecting(nn.Module):
    """N([y; K_dw y])."""

    def __init__(self, c: int, padding: str):
        super().__init__()
        self.stencil = nn.Parameter(torch.zeros(c, 1, 3, 3))
        self.normalize, self.padding = _normalize(2 * c), padding

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return self.normalize(torch.cat([y, _convolve(y, self.stencil, self.padding)], 1))


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


def _convolve(y, stencil, padding):
    """Correlation, depth-wise where the stencil has a single input channel."""
    groups, reach = y.shape[1] // stencil.shape[1], stencil.shape[-1] // 2
    if padding == "zeros":
        return F.conv2d(y, stencil, padding=reach, groups=groups)
    return F.conv2d(F.pad(y, (reach,) * 4, mode="circular"), stencil, groups=groups)


def _convolve_adjoint(z, stencil, padding):
    groups, reach = z.shape[1] // stencil.shape[1], stencil.shape[-1] // 2
    if padding == "zeros":
        return F.conv_transpose2d(z, stencil, padding=reach, groups=groups)
    mirrored = stencil.flip((2, 3))
    mirrored = mirrored if groups > 1 else mirrored.transpose(0, 1)
    return F.conv2d(F.pad(z, (reach,) * 4, mode="circular"), mirrored, groups=groups)


def _normalize(c):
    return nn.BatchNorm2d(c, eps=1e-5, momentum=0.1, affine=False)


def _flat(tree, prefix=""):
    if not hasattr(tree, "items"):
        return {prefix[:-1]: tree}
    return {key: value for name, branch in tree.items() for key, value in _flat(branch, f"{prefix}{name}.").items()}


def _to_torch(key, value, parameter):
    """[*window, C] and [*window, C_in, C_out] with the channels in front, as PyTorch has them."""
    value = np.asarray(value)
    if "matrix" in key:
        value = value.T
    elif value.ndim == 4:
        value = value.transpose(3, 2, 0, 1)
    else:
        value = value.transpose(2, 0, 1)
    return torch.tensor(value.copy()).reshape(parameter.shape)
