"""The page of an evaluation or a sweep: one folder with `index.html` that a browser opens without a server or a network.

`assets/` holds the page itself; its data goes in as JSON, and what comes from outside becomes text on it, never markup.
Videos and pictures lie beside it under `videos/`.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tae.evaluation.pictures import enlargement, latent_picture, mosaic_columns, places, side_by_side
from tae.evaluation.report import measurement, model_lines, readable, verdicts
from tae.evaluation.results import ClipFrames, EvaluationResult, measured
from tae.latents.report import report_lines
from tae.metrics.baseline import trilinear_baseline
from tae.metrics.frame import psnr
from tae.metrics.metric import Definition, NotMeasured
from tae.metrics.temporal import flicker_of_steps, tpsnr_of_steps
from tae.model.frame_conversion import clip_to_frames, frames_to_clip
from tae.runtime.files import replacing, write_text
from tae.video.reader import VideoReader
from tae.video.writer import write_video

ASSETS = Path(__file__).parent / "assets"
SHOWN_CLIPS = "videos/index.json"  # of the clips that can be looked at; what a sweep reads of each of its runs


def write_page(folder: Path, data: Mapping[str, Any]) -> Path:
    """Write `folder`/index.html from `data`, whose form `assets/page.js` describes."""
    # In a script element only "<" can end it or open a comment; as \u003c it is the same character to JSON.
    content = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    page = (ASSETS / "page.html").read_text(encoding="utf-8")
    parts = {
        "STYLE": (ASSETS / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": (ASSETS / "page.js").read_text(encoding="utf-8"),
        "DATA": content,
    }
    for name, text in parts.items():  # data last, since what it holds must not be filled in again
        page = page.replace(f"<!--{name}-->", text)
    write_text(folder / "index.html", page)
    return folder / "index.html"


def write_clips(
    folder: Path, shown: Mapping[str, ClipFrames], time_factor: int, space_factor: int
) -> list[dict[str, Any]]:
    """Write what can be looked at of a run: a video and a picture of the latents for each clip, and their index.

    Args:
        folder: the run's; files go to `videos/`.
        shown: {name: clip}; the name is the files'.
        time_factor, space_factor: of the model, and so of the baseline beside it.
    """
    entries = []
    for name, clip in shown.items():
        video = f"videos/{name}.mp4"
        write_video(folder / video, side_by_side(clip.original, clip.reconstruction), clip.fps)
        baseline = clip_to_frames(trilinear_baseline(frames_to_clip(clip.original[None]), time_factor, space_factor))[0]
        entry = {
            "name": name,
            "key": clip.key,
            "fps": clip.fps,
            "frames": len(clip.original),
            "video": video,
            "scale": enlargement(clip.original),
            "height": clip.original.shape[1],
            "width": clip.original.shape[2],
            "psnr": psnr(clip.original, clip.reconstruction).tolist(),
            "trilinear_psnr": psnr(clip.original, baseline).tolist(),
            "motion": motion_over_time(clip.original, clip.reconstruction),
            "trilinear_motion": motion_over_time(clip.original, baseline),
            "latents": None,
        }
        if clip.latents is not None:
            picture, about = latent_picture(clip.latents)
            entry["latents"] = {"picture": f"videos/{name}_latents.png"} | about
            with replacing(folder / f"videos/{name}_latents.png") as partial:
                Image.fromarray(picture).save(partial, format="png")
        entries.append(entry)
    write_text(folder / SHOWN_CLIPS, json.dumps(entries, indent=1) + "\n")
    return entries


def motion_over_time(original: Tensor, reconstruction: Tensor) -> dict[str, list[float]]:
    """PSNR of motion in dB and flicker in levels of 255, of each step between frames; none for a clip of one frame."""
    try:
        tpsnr, flicker = (of_steps(original, reconstruction) for of_steps in (tpsnr_of_steps, flicker_of_steps))
    except NotMeasured:
        return {"tpsnr": [], "flicker": []}
    return {"tpsnr": tpsnr.tolist(), "flicker": (255 * flicker).tolist()}


def latents_charts(report: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the page draws of a latents report."""
    if report is None:
        return None
    spectrum, noise = report["spectrum"], report["decode_noise"]
    return {
        "space": spectrum["space"] and spectrum["space"]["bands"],
        "pictures": spectrum["pictures"] and spectrum["pictures"]["bands"],
        "noise": noise and list(zip(noise["scale"], noise["psnr"], strict=True)),
        "std": report["std"],
        "posterior_std": report["posterior_std"],
    }


def latents_table(reports: Sequence[Mapping[str, Any] | None]) -> list[list[str]]:
    """[name, text of each run ...] of every line that a latents report of any run has."""
    texts = [{} if report is None else dict(report_lines(report)) for report in reports]
    names = dict.fromkeys(name for of_run in texts for name in of_run)
    return [[name, *(of_run.get(name, "") for of_run in texts)] for name in names]


def metric_columns(metrics: Mapping[str, Definition]) -> list[dict[str, Any]]:
    """How the page writes each metric."""
    return [
        {
            "name": name,
            "label": metric.label,
            "higher": metric.higher_is_better,
            "digits": metric.digits,
            "percent": metric.percent,
        }
        for name, metric in metrics.items()
    ]


def short(value: float) -> float | None:
    """Six digits are more than the page shows and half of what a float's text takes."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def evaluation_page(
    document: Mapping[str, Any],
    result: EvaluationResult,
    clips: Sequence[Mapping[str, Any]],
    curve: Sequence[tuple[int, float]] = (),
) -> dict[str, Any]:
    """The page's data for one evaluation.

    Args:
        document: the content of metrics.json.
        clips: what `write_clips` returned.
        curve: (step, validation PSNR) of the training that this evaluation ends, if it does.
    """
    checkpoint = document["checkpoint"] or {"path": "weights that are in no file", "sha256": None}
    metrics = measured(document["metrics"])
    run: dict[str, Any] = {
        "label": "reconstruction",
        "href": None,
        "metrics": metrics,
        "note": None,
        "error": None,
        "curve": [list(point) for point in curve],
        "latents": latents_charts(document.get("latents")),
    }
    return {
        "title": f"Evaluation of {checkpoint['path']}",
        "lead": " ".join(verdicts(document, result)),
        "facts": facts(document),
        "metrics": metric_columns({name: result.measured_by[name] for name in metrics}),
        "runs": [run],
        "baseline": measured(document["baselines"]["trilinear"]),
        "advantage": result.advantage(),
        "settings": None,
        "latents": latents_table([document.get("latents")]),
        "rates": None,
        "rows": [
            {
                "key": clip.key,
                "frames": clip.num_frames,
                "runs": [{name: short(value) for name, value in clip.model.items()}],
                "baseline": {name: short(value) for name, value in clip.trilinear.items()},
            }
            for clip in result.clips
        ],
        "clips": [page_clip(clip, clip["video"], [clip], ["original", "reconstruction"], [""]) for clip in clips],
        "skipped": [", ".join(f"{name}: {value}" for name, value in clip.items()) for clip in document["skipped"]],
        "details": details(document),
    }


def facts(document: Mapping[str, Any]) -> list[list[str]]:
    """What stands at the top of the page."""
    return [list(line) for line in measurement(document)]


def details(document: Mapping[str, Any]) -> list[list[str]]:
    """What one needs to judge and to repeat the numbers."""
    pairs = {
        **(document["checkpoint"] or {}),
        **dict(model_lines(document)),
        **document.get("training", {}),
        **document["environment"],
    }
    return [[name.replace("_", " "), readable(value)] for name, value in pairs.items()]


def page_clip(
    clip: Mapping[str, Any],
    video: str,
    of_runs: Sequence[Mapping[str, Any] | None],
    labels: Sequence[str],
    folders: Sequence[str],
) -> dict[str, Any]:
    """One clip on the page: where in its video each picture is, and what is drawn beside it.

    Args:
        clip: an entry of `write_clips`, for what all runs share.
        video: path from the page.
        of_runs: each run's entry; None for a run without this clip, which then has no picture either.
        labels: of the pictures, in the order of `places`.
        folders: path from the page to each run's folder, "" or with a slash at its end.
    """
    height, width = clip["height"] * clip["scale"], clip["width"] * clip["scale"]
    runs = [None, *(i for i, of_run in enumerate(of_runs) if of_run is not None)]
    columns = mosaic_columns(len(labels))
    return {
        "name": clip["name"],
        "key": clip["key"],
        "fps": clip["fps"],
        "frames": clip["frames"],
        "video": video,
        "height": height,
        "width": width,
        "pictures": [
            {"label": label, "run": run, "x": x, "y": y}
            for label, run, (x, y) in zip(labels, runs, places(len(labels), height, width, columns), strict=True)
        ],
        "psnr": [None if entry is None else [short(value) for value in entry["psnr"]] for entry in of_runs],
        "baseline_psnr": [short(value) for value in clip["trilinear_psnr"]],
        "motion": page_motion(clip, of_runs),
        "latents": [
            None
            if entry is None or entry["latents"] is None
            else entry["latents"] | {"picture": folder + entry["latents"]["picture"]}
            for entry, folder in zip(of_runs, folders, strict=True)
        ],
    }


def page_motion(
    clip: Mapping[str, Any], of_runs: Sequence[Mapping[str, Any] | None]
) -> dict[str, list[list[float | None] | None]] | None:
    """{measure: [values of each run ..., of the baseline]}; None for clips that an older version wrote."""
    if "motion" not in clip:
        return None
    each = [*(None if entry is None else entry.get("motion") for entry in of_runs), clip["trilinear_motion"]]
    return {name: [values and [short(value) for value in values[name]] for values in each] for name in clip["motion"]}


def read_pictures(path: Path, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Original and reconstruction, (t, h, w, 3) uint8 each, out of a video that `write_clips` wrote."""
    with VideoReader(path) as reader:
        frames = torch.from_numpy(np.stack([frame.rgb for frame in reader.frames()]))
    return tuple(frames[:, :height, x : x + width] for x, _ in places(2, height, width, 2))  # type: ignore[return-value]
