"""The latents report: how easily a generator will learn these latents, and what its errors will cost.

Definitions and what each was found to predict: docs/latents-report.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor

from tae.latents.probes import NOISE, TRANSFORMS, Probed
from tae.latents.spectrum import BANDS, log_spectral_distance, mean_share
from tae.latents.sums import LatentSums
from tae.latents.velocity import (
    CROP,
    MIN_CLIPS,
    MIN_CLIPS_OF_LABEL,
    velocity_variance,
    velocity_variance_within,
)

PRINCIPAL = (4, 8)  # channels
NO_PROBE = "the model was not run on changed clips: an evaluation does that"


def latents_report(sums: LatentSums, probed: Sequence[Probed] = ()) -> dict[str, Any]:
    """The report as plain values; what cannot be told is None, with the reason under "reasons".

    Args:
        sums: of all clips.
        probed: clips that the model was run on once more.
    """
    reasons: dict[str, str] = {}
    report = {
        "clips": sums.clips,
        "positions": sums.positions,
        "mean": sums.mean.tolist(),
        "std": (sums.channel_variance + posterior_variance(sums)).sqrt().tolist(),
        "posterior_std": posterior_variance(sums).sqrt().tolist() if "variance" in sums.sums else None,
        **channels_report(sums.covariance),
        "spectrum": spectrum_report(sums, reasons),
        "velocity_variance": velocity_report(sums, reasons),
        "neighbour_correlation": neighbour_correlation(sums),
        **probes_report(probed, reasons),
    }
    if report["posterior_std"] is None:
        reasons["posterior_std"] = "the model shows no posterior"
    return report | {"reasons": reasons}


def posterior_variance(sums: LatentSums) -> Tensor:
    """(c,) mean variance of the posteriors, 0 where there are none."""
    return sums.sums.get("variance", torch.zeros_like(sums.mean)) / sums.positions


def channels_report(covariance: Tensor) -> dict[str, Any]:
    """Of the eigenvalues of the covariance (c, c) over channels: effective rank, condition number, energy of the first."""
    eigenvalues = torch.linalg.eigvalsh(covariance).clamp_min(0).flip(0)
    if not eigenvalues.any():
        return {"effective_rank": None, "condition_number": None, "principal_energy": None}
    shares = eigenvalues / eigenvalues.sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    smallest = eigenvalues[-1]
    return {
        "effective_rank": entropy.exp().item(),
        "condition_number": (eigenvalues[0] / smallest).item() if smallest > 0 else None,
        "principal_energy": {str(count): shares[:count].sum().item() for count in PRINCIPAL},
    }


def spectrum_report(sums: LatentSums, reasons: dict[str, str]) -> dict[str, Any]:
    """Shares of energy above a quarter and a half of the band in space and in time; distance to the pictures' spectrum."""
    report: dict[str, Any] = {}
    energy, varying = sums.channel_variance * sums.positions, sums.varying
    for name in ("space", "time"):
        bands = sums.sums[name]
        if not bands[varying].any():
            reasons[f"spectrum.{name}"] = f"latents that are constant in {name} have no frequencies"
            report[name] = None
            continue
        shares = (bands[varying] / energy[varying, None]).mean(0)
        report[name] = {
            "above_quarter": shares[BANDS // 4 :].sum().item(),
            "above_half": shares[BANDS // 2 :].sum().item(),
            "bands": mean_share(bands[varying]).tolist(),
        }
    pictures = sums.sums.get("pictures")
    if pictures is None:
        reasons["spectrum.distance"] = "the frames are not there any more: an evaluation has them"
    elif not pictures.any() or report["space"] is None:
        reasons["spectrum.distance"] = "pictures and latents that are constant in space have no frequencies"
    if pictures is None or "spectrum.distance" in reasons:
        return report | {"pictures": None, "distance": None}
    distance = log_spectral_distance(sums.sums["space"][varying], pictures)
    return report | {"pictures": {"bands": mean_share(pictures).tolist()}, "distance": distance}


def velocity_report(sums: LatentSums, reasons: dict[str, str]) -> dict[str, Any]:
    """VIV over the set and within labels, of crops normalised by channel."""
    count = len(sums.crops)
    report: dict[str, Any] = {"crop": list(CROP), "clips": count, "labels": 0, "set": None, "within_labels": None}
    known = sums.varying
    size = "x".join(map(str, CROP))
    if count < MIN_CLIPS:
        reasons["velocity_variance.set"] = f"{count} clips have {size} positions or more, {MIN_CLIPS} are needed"
    elif not known.any():
        reasons["velocity_variance.set"] = "the latents are constant"
    if "velocity_variance.set" in reasons:
        return report
    order = np.argsort(np.asarray(sums.keys), kind="stable")  # whatever process had which clip
    crops = torch.stack([sums.crops[i] for i in order]).double()[:, known]
    crops = (crops - sums.mean[known, None]) / sums.channel_variance[known, None].sqrt()
    report["set"] = velocity_variance(crops)
    within = velocity_variance_within(crops, [sums.labels[i] for i in order])
    if within is None:
        reasons["velocity_variance.within_labels"] = f"no label has {MIN_CLIPS_OF_LABEL} clips"
    else:
        report["within_labels"], report["labels"] = within
    return report


def neighbour_correlation(sums: LatentSums) -> float | None:
    """Mean over channels of the correlation of two positions of one 2x2x2 neighbourhood."""
    known = sums.varying
    if not (sums.pairs and known.any()):
        return None
    mean = sums.mean
    covariance = (sums.sums["pair_products"] - mean * sums.sums["pair_sums"]) / sums.pairs + mean.square()
    return (covariance[known] / sums.channel_variance[known]).mean().item()


def probes_report(probed: Sequence[Probed], reasons: dict[str, str]) -> dict[str, Any]:
    """Means over the clips that were probed."""
    probed = sorted(probed, key=lambda clip: clip.key)
    if not probed:
        reasons["equivariance"] = reasons["decode_noise"] = NO_PROBE
        return {"equivariance": None, "decode_noise": None, "probed": []}
    errors: dict[str, float | None] = {}
    for name in TRANSFORMS:
        values = [clip.equivariance[name] for clip in probed if name in clip.equivariance]
        errors[name] = float(np.mean(values)) if values else None
        if not values:
            reasons[f"equivariance.{name}"] = "the clips are too small or too short"
    curve = np.mean([clip.decode_noise for clip in probed], axis=0).tolist()
    return {
        "equivariance": errors,
        "decode_noise": {"scale": list(NOISE), "psnr": curve},
        "probed": [clip.key for clip in probed],
    }


def report_lines(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, value) in words, for tables; what could not be told is left out."""
    lines = [
        ("measured on", f"{report['clips']:,} clips, {report['positions']:,} positions"),
        ("channels", str(len(report["mean"]))),
        ("mean of each channel", _range(report["mean"])),
        ("deviation of each channel", _range(report["std"])),
        ("of it the posterior's", _range(report["posterior_std"])),
        ("effective rank", _number(report["effective_rank"])),
        ("condition number", _number(report["condition_number"])),
        (
            "energy of the first 4, 8 principal channels",
            _several((report["principal_energy"] or {"": None}).values(), percent=True),
        ),
    ]
    for name in ("space", "time"):
        shares = report["spectrum"][name] or {}
        parts = [shares.get("above_quarter"), shares.get("above_half")]
        lines.append((f"energy above 1/4, 1/2 of the band in {name}", _several(parts, percent=True)))
    viv = report["velocity_variance"]
    lines += [
        ("distance to the pictures' spectrum (dB)", _number(report["spectrum"]["distance"])),
        ("velocity variance (VIV)", _with(_number(viv["set"]), f"{viv['clips']:,} clips")),
        ("velocity variance within labels", _with(_number(viv["within_labels"]), f"{viv['labels']:,} labels")),
        ("correlation within 2x2x2 neighbourhoods", _number(report["neighbour_correlation"])),
    ]
    if report["equivariance"] is not None:
        lines += [
            (f"equivariance error, {name.replace('_', ' ')}", _number(value))
            for name, value in report["equivariance"].items()
        ]
    if report["decode_noise"] is not None:
        scales, values = report["decode_noise"]["scale"], report["decode_noise"]["psnr"]
        lines += [
            (f"PSNR (dB) at noise of {', '.join(f'{scale:g}' for scale in scales)} std", _several(values, digits=2))
        ]
    return [(name, text) for name, text in lines if text]


def report_scalars(report: Mapping[str, Any]) -> dict[str, float]:
    """{name: number} of what is one number, for loggers and tables; what could not be told is left out."""
    spectrum, viv, noise = report["spectrum"], report["velocity_variance"], report["decode_noise"]
    found = {
        "effective_rank": report["effective_rank"],
        "condition_number": report["condition_number"],
        **{f"principal_energy_{count}": share for count, share in (report["principal_energy"] or {}).items()},
        **{
            f"{name}_{part}": spectrum[name][part]
            for name in ("space", "time")
            for part in ("above_quarter", "above_half")
            if spectrum[name] is not None
        },
        "spectrum_distance": spectrum["distance"],
        "velocity_variance": viv["set"],
        "velocity_variance_within_labels": viv["within_labels"],
        "neighbour_correlation": report["neighbour_correlation"],
        **{f"equivariance_{name}": value for name, value in (report["equivariance"] or {}).items()},
    }
    if noise is not None:
        found |= {f"psnr_at_noise_{s:g}": value for s, value in zip(noise["scale"], noise["psnr"], strict=True)}
    return {name: value for name, value in found.items() if value is not None}


def terminal_table(report: Mapping[str, Any]) -> Table:
    """The report for a terminal."""
    table = Table("", "", title="latents report (docs/latents-report.md)", show_header=False)
    for line in report_lines(report):
        table.add_row(*line)
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _with(text: str, of: str) -> str:
    """A number and what it is of."""
    return f"{text} ({of})" if text else ""


def _range(values: Sequence[float] | None) -> str:
    return "" if values is None else f"{min(values):.3f} to {max(values):.3f}"


def _several(values: Any, percent: bool = False, digits: int = 3) -> str:
    """Numbers in a row; "" where one is missing."""
    values = list(values)
    if any(value is None for value in values):
        return ""
    return ", ".join(f"{value:.1%}" if percent else f"{value:.{digits}f}" for value in values)
