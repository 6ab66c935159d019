"""The metrics that come with this package, one row each. A user's own is a `Metric` too (docs/extending.md)."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from torch import Tensor

from tae.losses.outlier import outlier_rate
from tae.metrics.distribution import FRAMES, RFVD, SIZE
from tae.metrics.dists import FrameDISTS
from tae.metrics.frame import LPIPS, ms_ssim, psnr, ssim, ssim_uniform
from tae.metrics.metric import Definition, Metric
from tae.metrics.temporal import IMAGE_STEP, STILL, PhasePSNR, Warp, flicker, image_psnr, tpsnr
from tae.metrics.unrounded import SpatialLPIPS, psnr_float
from tae.metrics.video_quality import CVVDP_DISPLAY, cvvdp, vmaf
from tae.runtime.errors import UserError


def outlier_rate_of_clip(original: Tensor, reconstruction: Tensor, latents: Tensor) -> float:
    """Share of a clip's latent positions that stand out of their frame."""
    return outlier_rate(latents[None]).item()


# Those of protocol tae-eval-1.
METRICS = {
    "psnr": Metric(label="PSNR (dB)", digits=2, function=psnr),
    "ssim": Metric(label="SSIM", function=ssim, about={"window": "Gaussian 11x11, sigma 1.5"}),
    "ssim_uniform": Metric(
        label="SSIM (uniform)",
        function=ssim_uniform,
        about={"window": "uniform 7x7, sample covariance"},
        in_validation=False,
    ),
    "lpips": Metric(label="LPIPS (VGG)", higher_is_better=False, function=LPIPS()),
    "outlier_rate": Metric(
        label="outlier rate",
        higher_is_better=False,
        digits=3,
        percent=True,
        scope="clip",
        function=outlier_rate_of_clip,
        needs=("latents",),
    ),
}


def _version(package: str) -> str:
    """The installed version of a package, for metrics.json."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package}, not installed"


# Protocol tae-eval-2 adds these.
MORE_METRICS = {
    "image_psnr": Metric(
        label="PSNR as images (dB)",
        digits=2,
        scope="clip",
        function=image_psnr,
        needs=("images",),
        about={"frames": f"every {IMAGE_STEP}th, each a clip of one frame"},
        in_validation=False,
    ),
    "tpsnr": Metric(label="PSNR of motion (dB)", digits=2, scope="clip", function=tpsnr),
    "flicker": Metric(
        label="flicker",
        higher_is_better=False,
        digits=5,
        scope="clip",
        function=flicker,
        about={"still": f"changes of {STILL}/255 at most"},
    ),
    "psnr_phase": Metric(
        label="PSNR gap by phase (dB)",
        higher_is_better=False,
        digits=2,
        scope="set",
        function=PhasePSNR(),
        needs=("time_factor",),
        in_validation=False,
    ),
    "lpips_alex": Metric(label="LPIPS (AlexNet)", higher_is_better=False, function=LPIPS("alex"), in_validation=False),
    "dists": Metric(label="DISTS", higher_is_better=False, function=FrameDISTS(), in_validation=False),
    "ms_ssim": Metric(
        label="MS-SSIM",
        function=ms_ssim,
        about={"window": "Gaussian 11x11, sigma 1.5, five scales", "package": _version("torchmetrics")},
        in_validation=False,
    ),
    "warp": Metric(
        label="warping error",
        higher_is_better=False,
        scope="clip",
        function=Warp(),
        about={"flow": "DIS medium of the original", "package": _version("opencv-python")},
        in_validation=False,
    ),
    "vmaf": Metric(
        label="VMAF",
        digits=2,
        scope="clip",
        function=vmaf,
        about={"model": "v0.6.1", "input": "luma of BT.709, limited range", "package": _version("vmaf-torch")},
        in_validation=False,
    ),
    "cvvdp": Metric(
        label="ColorVideoVDP (JOD)",
        digits=3,
        scope="clip",
        function=cvvdp,
        needs=("fps",),
        about={"display": CVVDP_DISPLAY, "rate": "the clip's", "package": _version("cvvdp")},
        in_validation=False,
    ),
    "rfvd": Metric(
        label="rFVD",
        higher_is_better=False,
        digits=1,
        scope="set",
        function=RFVD(),
        about={"variant": "videogpt", "frames": FRAMES, "size": SIZE, "interval": "jackknife"},
        in_validation=False,
    ),
}
# Those of the published table that protocol ucf101-17 follows.
UCF101_17_METRICS = {
    "psnr_float": Metric(
        label="PSNR, float (dB)",
        digits=2,
        scope="clip",
        function=psnr_float,
        needs=("clip",),
        about={"values": "[0, 1], not rounded"},
        in_validation=False,
    ),
    "lpips_alex_spatial": Metric(
        label="LPIPS (AlexNet, spatial, of [0, 1])",
        higher_is_better=False,
        scope="clip",
        function=SpatialLPIPS(),
        needs=("clip",),
        about={"values": "[0, 1], not rounded; the network expects [-1, 1]"},
        in_validation=False,
    ),
}
BUNDLED_METRICS = {**METRICS, **MORE_METRICS, **UCF101_17_METRICS}
# How long these take is said beforehand.
SLOW_METRICS = ("lpips", "lpips_alex", "dists", "ms_ssim", "warp", "vmaf", "cvvdp", "rfvd")


def bundled(name: str, **changes: Any) -> Metric:
    """A metric of this package by name, with some of its settings changed.

    Raises:
        UserError: there is none of this name.
    """
    if name not in BUNDLED_METRICS:
        raise UserError(f'metrics: "{name}" is unknown. Choose of: {", ".join(BUNDLED_METRICS)}.')
    return replace(BUNDLED_METRICS[name], **changes)


def protocol(names: Iterable[str]) -> str:
    """The protocol that these metrics belong to: tae-eval-2 is tae-eval-1 and further metrics."""
    return "tae-eval-2" if any(name in MORE_METRICS for name in names) else "tae-eval-1"


def complete(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """The metrics with PSNR among them, by which clips are ranked everywhere."""
    return {"psnr": METRICS["psnr"], **metrics}


def definitions(document: Mapping[str, Any]) -> dict[str, Definition]:
    """How to write each metric of a metrics.json; older ones do not say it, and have metrics of this package alone."""
    stated = {name: Definition.read(values) for name, values in document.get("definitions", {}).items()}
    return {
        name: stated.get(name) or BUNDLED_METRICS.get(name) or Definition(label=name)
        for name in document.get("metrics", {})
    }
