"""Metrics of protocol `ucf101-17`, of reconstructions that were not rounded to uint8.

Both take a clip's uint8 RGB frames (t, h, w, 3) twice and, by name, `clip`: the reconstruction as the model gave it,
(3, t, h, w) in [-1, 1].
"""

from typing import Any

import torch
from torch import Tensor, nn

from tae.losses.backbones import BY_NET
from tae.losses.lpips import BACKBONES, features, has_weights, load_network, spatial_distance
from tae.metrics.dists import FRAMES_PER_CALL
from tae.metrics.frame import PSNR_CAP
from tae.metrics.metric import NotMeasured

NET = "alex"


def psnr_float(original: Tensor, reconstruction: Tensor, *, clip: Tensor) -> float:
    """PSNR in dB of values in [0, 1] as they are, clamped but not rounded; at most 100; the mean over frames."""
    x, y = _unit_range(original, clip)
    mean_square = (x.double() - y.double()).square().flatten(1).mean(1)
    return (-10 * torch.log10(mean_square)).clamp(max=PSNR_CAP).mean().item()


class SpatialLPIPS:
    """LPIPS with AlexNet as the code behind the published table has it; the mean over frames.

    Each level's map of distances is enlarged to the frame before the mean (`lpips.LPIPS(net="alex", spatial=True)`), which
    changes little, and the network is shown values in [0, 1], though it was fitted on [-1, 1], which changes much.
    """

    def __init__(self) -> None:
        self._network: nn.Module | None = None

    def __call__(self, original: Tensor, reconstruction: Tensor, *, clip: Tensor) -> float:
        """Raises NotMeasured where there are no weights, or the frames are too small."""
        smallest = BACKBONES[NET][0]
        if min(original.shape[1:3]) < smallest:
            raise NotMeasured(f"LPIPS ({NET}) needs frames of {smallest}x{smallest} or more")
        network = self._network_on(original.device)
        pairs = zip(*(frames.split(FRAMES_PER_CALL) for frames in _unit_range(original, clip)), strict=True)
        values = [
            spatial_distance(network, features(network, x, half=False), features(network, y, half=False), x.shape[-2:])
            for x, y in pairs
        ]
        return torch.cat(values).mean().item()

    def _network_on(self, device: torch.device) -> nn.Module:
        if self._network is None:
            if not has_weights(NET):
                raise NotMeasured(BY_NET[NET].how_to_get())
            self._network = load_network(NET, None)
        self._network = self._network.to(device)
        return self._network

    @staticmethod
    def about() -> dict[str, Any]:
        return {"weights": BY_NET[NET].provenance()}


def _unit_range(original: Tensor, clip: Tensor) -> tuple[Tensor, Tensor]:
    """Both as (t, 3, h, w) float32 in [0, 1]."""
    return original.movedim(-1, 1).float() / 255, (clip.float().clamp(-1, 1).movedim(1, 0) + 1) / 2
