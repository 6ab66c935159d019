"""DISTS (Ding et al., arXiv 2004.07728): structure and texture similarity of VGG-16 features.

The network of the package DISTS_pytorch, with weights from the cache: the package itself downloads VGG-16 when it is built
and looks for its own weights in the root of the Python installation.
"""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tae.losses.backbones import VGG, VGG16
from tae.metrics.metric import NotMeasured, SharedOriginal
from tae.runtime.weights_store import Shapes, WeightFile, how_to_get

CHANNELS = (3, 64, 128, 256, 512, 512)
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))  # VGG-16's convolutions between poolings
EPSILON = 1e-6
SMALLEST = 16  # pixels: one position is left at the last stage
FRAMES_PER_CALL = 16
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class DISTS(nn.Module):
    """Distance in [0, 1] or a little below, 0 for equal frames.

    Shapes:
        x, y:    (n, 3, h, w) in [0, 1]
        returns: (n,) float32
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleDict({str(i): nn.Conv2d(c_in, c_out, k, padding=1) for i, c_in, c_out, k in VGG16})
        self.alpha = nn.Parameter(torch.empty(sum(CHANNELS)))
        self.beta = nn.Parameter(torch.empty(sum(CHANNELS)))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return self.distance(self.levels(x), self.levels(y))

    def distance(self, x_levels: Sequence[Tensor], y_levels: Sequence[Tensor]) -> Tensor:
        """The distance (n,) of what `levels` gave."""
        total = self.alpha.sum() + self.beta.sum()
        alphas, betas = ((weights / total).split(CHANNELS) for weights in (self.alpha, self.beta))
        levels = zip(x_levels, y_levels, alphas, betas, strict=True)
        return 1 - torch.stack([self._similarity(*level) for level in levels]).sum(0)

    def levels(self, frames: Tensor) -> list[Tensor]:
        """The frames and the features of each stage, (n, c_k, h_k, w_k)."""
        mean, std = (frames.new_tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        levels, out = [frames], (frames - mean) / std
        for number, stage in enumerate(STAGES):
            if number:
                out = l2_pool(out)
            for index in stage:
                out = F.relu(self.features[str(index)](out))
            levels.append(out)
        return levels

    @staticmethod
    def _similarity(x: Tensor, y: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """Weighted sum over channels of texture (means) and structure (covariance): (n,)."""
        (var_x, mean_x), (var_y, mean_y) = (torch.var_mean(z, dim=(2, 3), correction=0) for z in (x, y))
        covariance = (x * y).mean(dim=(2, 3)) - mean_x * mean_y
        texture = (2 * mean_x * mean_y + EPSILON) / (mean_x**2 + mean_y**2 + EPSILON)
        structure = (2 * covariance + EPSILON) / (var_x + var_y + EPSILON)
        return texture @ alpha + structure @ beta


class FrameDISTS(SharedOriginal):
    """DISTS of each frame; the network is loaded when it is first needed."""

    def __init__(self) -> None:
        self._network: DISTS | None = None

    def of_each(self, original: Tensor, reconstructions: Sequence[Tensor]) -> list[Tensor]:
        """Shapes: (n, h, w, 3) uint8 each -> (n,) float32 each.

        Raises:
            NotMeasured: weights are missing, or frames are too small.
        """
        if min(original.shape[1:3]) < SMALLEST:
            raise NotMeasured(f"DISTS needs frames of {SMALLEST}x{SMALLEST} or more")
        network = self._network_on(original.device)
        found: list[list[Tensor]] = [[] for _ in reconstructions]
        for start in range(0, len(original), FRAMES_PER_CALL):
            x, *others = (
                network.levels(frames[start : start + FRAMES_PER_CALL].movedim(-1, 1).float() / 255)
                for frames in (original, *reconstructions)
            )
            for distances, y in zip(found, others, strict=True):
                distances.append(network.distance(x, y))
        return [torch.cat(distances) for distances in found]

    def _network_on(self, device: torch.device) -> DISTS:
        if self._network is None:
            if missing := [weights for weights in (VGG, DISTS_WEIGHTS) if not weights.is_here()]:
                raise NotMeasured(how_to_get(missing))
            self._network = load_dists()
        self._network = self._network.to(device)
        return self._network

    @staticmethod
    def about() -> dict[str, Any]:
        return {"weights": [VGG.provenance(), DISTS_WEIGHTS.provenance()]}


def l2_pool(x: Tensor) -> Tensor:
    """Root of a weighted mean of squares, window 3 (Hann), stride 2: (n, c, h, w) -> (n, c, ceil(h / 2), ceil(w / 2))."""
    window = torch.from_numpy(np.hanning(5)[1:-1]).to(x)
    window = torch.outer(window, window)
    kernel = (window / window.sum()).expand(x.shape[1], 1, 3, 3)
    return (F.conv2d(x.square(), kernel, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()


def load_dists() -> DISTS:
    """The network with its weights, frozen, in evaluation mode.

    Raises:
        UserError: weights of VGG-16 or of DISTS are not in the cache.
    """
    with torch.device("meta"):
        network = DISTS()
    network.load_state_dict(VGG.load() | DISTS_WEIGHTS.load(), assign=True)
    return network.eval().requires_grad_(False)


def dists_shapes() -> Shapes:
    return {"alpha": (sum(CHANNELS),), "beta": (sum(CHANNELS),)}


def read_dists(content: bytes) -> dict[str, Tensor]:
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return {name: tensor.flatten() for name, tensor in state.items()}


DISTS_WEIGHTS = WeightFile(
    name="dists",
    title="DISTS",
    used_by="dists (with vgg)",
    package="DISTS_pytorch",
    version="0.1",
    package_sha256="73e54ce13e7cf3ca962ee8e433d129884ec3dc75e00a27af90525e1da760ac61",
    licence="MIT",
    member="DISTS_pytorch/weights.pt",
    member_sha256="f5e65c96230b7f6ca995691647d482237e4cab8a50c5c4a5784f219ef0748218",
    member_bytes=12_288,
    shapes=dists_shapes,
    convert=read_dists,
    tensors_sha256="7176e799aca93e194c7b1bd18029ba55a854f853bbc0d7250b5c5d9338be653b",
)
