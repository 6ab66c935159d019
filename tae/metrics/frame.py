"""Per-frame quality metrics, each with one definition.

All take uint8 RGB frames (n, h, w, 3), as a viewer sees them, so there is no value range to guess, and return one float
value for each frame: (n,) float32. SSIM is computed in float64 on all devices: its variances are small differences of
large squares, which float32 leaves wrong in the third place where a frame is bright and flat.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tae.losses import Perceptual
from tae.losses.lpips import has_weights
from tae.metrics.metric import NotMeasured
from tae.model.clip import frames_to_clip

PSNR_CAP = 100.0  # dB; an exact frame's PSNR is infinite, which no mean survives
NO_LPIPS = (
    "the weights of VGG-16 are not here: run `python -m tae.weights get=vgg` once, or give loss.perceptual.weights_path "
    "(an evaluation downloads nothing)"
)


def psnr(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, from the mean squared error over a frame's 3 h w values; at most 100.

    Shapes: (n, h, w, 3) uint8 twice -> (n,) float32.
    """
    error = original.int() - reconstruction.int()
    mean_square = error.square().flatten(1).sum(1) / error[0].numel()
    return (20 * math.log10(255) - 10 * torch.log10(mean_square)).clamp(max=PSNR_CAP)


def ssim(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Structural similarity with torchmetrics' defaults: Gaussian window 11x11, sigma 1.5.

    Shapes: (n, h, w, 3) uint8 twice -> (n,) float32. Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    with torch.autocast(original.device.type, enabled=False):
        x, y = _unit_range(original), _unit_range(reconstruction)
        values = structural_similarity_index_measure(y, x, data_range=1.0, reduction="none")
    assert isinstance(values, Tensor)  # a pair only when asked for the full image
    return values.float().to(original.device)


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


class LPIPS:
    """Learned perceptual distance (Zhang et al., arXiv 1801.03924), always of VGG-16. Nothing is downloaded.

    Args:
        net, weights_path: of the training objective; its file serves here too where it is VGG-16's. Without one,
            what `tae.weights` or torchvision left in the cache.

    Raises:
        UserError: the file does not hold these weights.
    """

    def __init__(self, net: str = "vgg", weights_path: str | None = None) -> None:
        given = net == "vgg" and weights_path is not None
        self._network = Perceptual(weight=1.0, net="vgg", weights_path=weights_path) if given else None

    def __call__(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Shapes: (n, h, w, 3) uint8 twice -> (n,) float32."""
        return self.network().per_frame(frames_to_clip(original[None]), frames_to_clip(reconstruction[None]))[0]

    def network(self) -> Perceptual:
        """The network, loaded when it is first asked for. Raises NotMeasured where its weights are not here."""
        if self._network is None:
            if not has_weights("vgg"):
                raise NotMeasured(NO_LPIPS)
            self._network = Perceptual(weight=1.0, net="vgg", weights_path=None)
        return self._network


def _unit_range(frames: Tensor) -> Tensor:
    """(n, h, w, 3) uint8 to (n, 3, h, w) float64 in [0, 1]; on the CPU where the device has no float64."""
    frames = frames.cpu() if frames.is_mps else frames
    return frames.movedim(-1, 1).double() / 255
