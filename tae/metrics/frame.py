"""Per-frame quality metrics, each with one definition.

All take uint8 RGB frames (n, h, w, 3), as a viewer sees them, so there is no value range to guess, and return one float
value for each frame: (n,) float32. SSIM is computed in float64 on all devices: its variances are small differences of
large squares, which float32 leaves wrong in the third place where a frame is bright and flat.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tae.losses import Perceptual
from tae.losses.backbones import BY_NET
from tae.losses.lpips import BACKBONES, Backbone, has_weights, torchvision_file
from tae.metrics.metric import NotMeasured, SharedOriginal
from tae.model.frame_conversion import frames_to_clip
from tae.runtime.files import file_sha256
from tae.runtime.paths import to_path

PSNR_CAP = 100.0  # dB; an exact frame's PSNR is infinite, which no mean survives
MS_SSIM_SMALLEST = 161  # pixels: (11 - 1) * 2^4 and one more


def psnr(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, from the mean squared error over a frame's 3 h w values; at most 100.

    Shapes: (n, h, w, 3) uint8 twice -> (n,) float32.
    """
    error = original.int() - reconstruction.int()
    mean_square = error.square().flatten(1).sum(1) / error[0].numel()
    return (20 * math.log10(255) - 10 * torch.log10(mean_square)).clamp(max=PSNR_CAP)


def ssim(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity with torchmetrics' defaults: Gaussian window 11x11, sigma 1.5, reflected borders.

    The numbers are torchmetrics'. Its 121 taps for each pixel are 22 here, since a Gaussian is separable: in float64 they
    were most of the time of an evaluation on a CPU.

    Shapes: (n, h, w, 3) uint8 twice -> (n,) float32. Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861.
    """
    c1, c2 = 0.01**2, 0.03**2
    with torch.autocast(original.device.type, enabled=False):
        x, y = (F.pad(_unit_range(frames), (5, 5, 5, 5), mode="reflect") for frames in (original, reconstruction))
        mean_x, mean_y, mean_xx, mean_yy, mean_xy = map(gaussian_mean, (x, y, x * x, y * y, x * y))
        var_x, var_y = (mean_xx - mean_x**2).clamp(min=0), (mean_yy - mean_y**2).clamp(min=0)
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        structure = (2 * (mean_xy - mean_x * mean_y) + c2) / (var_x + var_y + c2)
        values = (luminance * structure).mean(dim=(1, 2, 3))
    return values.float().to(original.device)


def gaussian_mean(values: Tensor) -> Tensor:
    """Means weighted by a Gaussian of sigma 1.5 within 11x11: (..., h, w) -> (..., h - 10, w - 10)."""
    weights = torch.exp(-((torch.arange(-5, 6, dtype=torch.float64) / 1.5) ** 2) / 2)
    for dim in (-2, -1):
        size = values.shape[dim] - 10
        mean = torch.zeros_like(values.narrow(dim, 0, size))
        for start, weight in enumerate((weights / weights.sum()).tolist()):
            mean.add_(values.narrow(dim, start, size), alpha=weight)
        values = mean
    return values


def ssim_uniform(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity with scikit-image's defaults: 7x7 uniform window, sample covariance.

    The mean runs over the positions whose window lies inside the frame, and over channels. Many published figures
    are this one; it differs from `ssim` by about 0.01.

    Shapes: (n, h, w, 3) uint8 twice -> (n,) float32.
    """
    window, c1, c2 = 7, 0.01**2, 0.03**2
    with torch.autocast(original.device.type, enabled=False):
        x, y = _unit_range(original), _unit_range(reconstruction)
        mean_x, mean_y, mean_xx, mean_yy, mean_xy = (
            F.avg_pool2d(values, window, stride=1) for values in (x, y, x * x, y * y, x * y)
        )
        sample = window**2 / (window**2 - 1)
        var_x, var_y = sample * (mean_xx - mean_x**2), sample * (mean_yy - mean_y**2)
        covariance = sample * (mean_xy - mean_x * mean_y)
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        values = (luminance * (2 * covariance + c2) / (var_x + var_y + c2)).mean(dim=(1, 2, 3))
    return values.float().to(original.device)


def ms_ssim(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Multi-scale structural similarity with torchmetrics' defaults: five scales, Gaussian window 11x11, sigma 1.5.

    Contrast and structure of all scales, luminance of the coarsest; a negative product counts as 0.

    Shapes: (n, h, w, 3) uint8 twice, more than 160 pixels a side -> (n,) float. Source: Wang, Simoncelli, Bovik 2003,
    doi:10.1109/ACSSC.2003.1292216.

    Raises:
        NotMeasured: smaller frames, of which the window leaves nothing at the fifth scale.
    """
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

    if min(original.shape[1:3]) < MS_SSIM_SMALLEST:
        raise NotMeasured(f"MS-SSIM needs frames of {MS_SSIM_SMALLEST}x{MS_SSIM_SMALLEST} or more")
    x, y = _unit_range(original), _unit_range(reconstruction)
    return multiscale_structural_similarity_index_measure(y, x, data_range=1.0, reduction="none", normalize="relu")


class LPIPS(SharedOriginal):
    """Learned perceptual distance (Zhang et al., arXiv 1801.03924). Nothing is downloaded.

    Args:
        backbone: whose features are compared, `vgg` or `alex`. They are two metrics: never compare one with the other.
        net, weights_path: of the training objective; its file serves here too where it is this backbone's. Without one,
            what `tae.weights` or torchvision left in the cache.

    Raises:
        UserError: the file does not hold these weights.
    """

    def __init__(self, backbone: Backbone = "vgg", net: Backbone = "vgg", weights_path: str | None = None) -> None:
        self.backbone = backbone
        self.weights_path = weights_path if net == backbone else None
        given = self.weights_path is not None
        self._network = Perceptual(weight=1.0, net=backbone, weights_path=weights_path) if given else None

    def of_each(self, original: Tensor, reconstructions: Sequence[Tensor]) -> list[Tensor]:
        """Shapes: (n, h, w, 3) uint8 each -> (n,) float32 each.

        Raises:
            NotMeasured: there are no weights, or the frames are too small.
        """
        smallest = BACKBONES[self.backbone][0]
        if min(original.shape[1:3]) < smallest:
            raise NotMeasured(f"LPIPS ({self.backbone}) needs frames of {smallest}x{smallest} or more")
        clip, *others = (frames_to_clip(frames[None]) for frames in (original, *reconstructions))
        return [distances[0] for distances in self.network().per_frame_of_each(clip, others)]

    def network(self) -> Perceptual:
        """The network, loaded when it is first asked for. Raises NotMeasured where its weights are not here."""
        if self._network is None:
            if not has_weights(self.backbone):
                raise NotMeasured(BY_NET[self.backbone].how_to_get())
            self._network = Perceptual(weight=1.0, net=self.backbone, weights_path=None)
        return self._network

    def about(self) -> dict[str, Any]:
        """The weights in use, for metrics.json."""
        known = BY_NET[self.backbone]
        if self.weights_path is None and known.is_here():
            return {"weights": known.provenance()}
        path = to_path(self.weights_path) if self.weights_path is not None else torchvision_file(self.backbone)
        return {"weights": {"file": path.name, "sha256": file_sha256(path)}} if path.is_file() else {}


def _unit_range(frames: Tensor) -> Tensor:
    """(n, h, w, 3) uint8 to (n, 3, h, w) float64 in [0, 1]; on the CPU where the device has no float64."""
    frames = frames.cpu() if frames.is_mps else frames
    return frames.movedim(-1, 1).double() / 255
