"""The metrics that come with this package, one row each. A user's own is a `Metric` too (docs/extending.md)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from tae.losses.outlier import outlier_rate
from tae.metrics.frame import LPIPS, psnr, ssim, ssim_uniform
from tae.metrics.metric import Definition, Metric
from tae.runtime.errors import UserError


def outlier_rate_of_clip(original: Tensor, reconstruction: Tensor, latents: Tensor) -> float:
    """Share of a clip's latent positions that stand out of their frame."""
    return outlier_rate(latents[None]).item()


METRICS = {
    "psnr": Metric(label="PSNR (dB)", digits=2, function=psnr),
    "ssim": Metric(label="SSIM", function=ssim, about={"window": "Gaussian 11x11, sigma 1.5"}),
    "ssim_uniform": Metric(
        label="SSIM (uniform)",
        function=ssim_uniform,
        about={"window": "uniform 7x7, sample covariance"},
        in_validation=False,
    ),
    "lpips": Metric(label="LPIPS (VGG)", higher_is_better=False, function=LPIPS(), in_validation=False),
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


def bundled(name: str, **changes: Any) -> Metric:
    """A metric of this package by name, with some of its settings changed.

    Raises:
        UserError: there is none of this name.
    """
    if name not in METRICS:
        raise UserError(f'metrics: "{name}" is unknown. Choose of: {", ".join(METRICS)}.')
    return replace(METRICS[name], **changes)


def complete(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """The metrics with PSNR among them, by which clips are ranked everywhere."""
    return {"psnr": METRICS["psnr"], **metrics}


def definitions(document: Mapping[str, Any]) -> dict[str, Definition]:
    """How to write each metric of a metrics.json; older ones do not say it, and have metrics of this package alone."""
    stated = {name: Definition.read(values) for name, values in document.get("definitions", {}).items()}
    return {
        name: stated.get(name) or METRICS.get(name) or Definition(label=name) for name in document.get("metrics", {})
    }
