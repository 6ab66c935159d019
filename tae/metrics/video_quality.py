"""Video quality as others model it: VMAF and ColorVideoVDP, by their packages.

Both take a clip's uint8 RGB frames (t, h, w, 3) twice, original and reconstruction. `pip install
"temporal-autoencoder[metrics]"` brings the packages.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from tae.metrics.metric import NotMeasured

INSTALL = 'pip install "temporal-autoencoder[metrics]"'
VMAF_SMALLEST = 32  # pixels: in smaller frames its filters are wider than their fourth scale
CVVDP_DISPLAY = "standard_fhd"


def vmaf(original: Tensor, reconstruction: Tensor) -> float:
    """VMAF (Netflix, model v0.6.1) in [0, 100], by vmaf-torch: the mean over frames.

    On luma of BT.709 in limited range, 16 to 235, as the model was fitted on. It expects a screen seen from three times its
    height, and its motion term counts pixels, so values of small frames are lower than those of the same film in HD.

    Raises:
        NotMeasured: the package is missing, or frames are too small.
    """
    if min(original.shape[1:3]) < VMAF_SMALLEST:
        raise NotMeasured(f"VMAF needs frames of {VMAF_SMALLEST}x{VMAF_SMALLEST} or more")
    network = _vmaf().to(original.device)
    return network(_luma(original), _luma(reconstruction)).item()


def cvvdp(original: Tensor, reconstruction: Tensor, *, fps: float) -> float:
    """ColorVideoVDP (Mantiuk et al., SIGGRAPH 2024, doi:10.1145/3658144) in JOD: 10 where no difference is visible.

    Display `standard_fhd`, a 24-inch screen of 200 cd/m2 seen from 60 cm, the clip shown at its own size and rate.

    Raises:
        NotMeasured: the package is missing.
    """
    quality, _ = _cvvdp(original.device).predict(
        reconstruction, original, dim_order="FHWC", frames_per_second=float(fps)
    )
    return quality.item()


@cache
def _vmaf() -> Any:
    try:
        from vmaf_torch import VMAF
    except ImportError as error:
        raise NotMeasured(f"vmaf-torch is not installed: {INSTALL}") from error
    return VMAF(temporal_pooling=True, clip_score=True)


@cache
def _cvvdp(device: torch.device) -> Any:
    try:
        import pycvvdp
    except ImportError as error:
        raise NotMeasured(f"cvvdp is not installed: {INSTALL}") from error
    return pycvvdp.cvvdp(display_name=CVVDP_DISPLAY, device=device, quiet=True)


def _luma(frames: Tensor) -> Tensor:
    """(t, 1, h, w) BT.709 luma in limited range, 16 to 235, not rounded."""
    weights = torch.tensor([0.2126, 0.7152, 0.0722], device=frames.device)
    return (16 + 219 / 255 * (frames.float() @ weights))[:, None]
