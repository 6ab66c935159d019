"""The model card: what a shared model is, how it was measured, and how to use it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from tae.evaluation.report import baseline_grid, interval_text, markdown_table, pace
from tae.evaluation.results import measured
from tae.latents.report import report_lines
from tae.latents.stats import STATS, LatentStats
from tae.metrics.registry import definitions
from tae.model.autoencoder import TemporalAutoencoder
from tae.model.diffusers.autoencoder import DiffusersAutoencoder
from tae.model.interface import VideoAutoencoder
from tae.model.onnx_codec import GRAPHS_FILE
from tae.model.pretrained import LoadedModel
from tae.model.pretrained_decoder import LoadedDecoder
from tae.runtime.errors import UserError
from tae.runtime.paths import to_path

CARD = "README.md"
USE_OF_OURS = """```python
from tae import TemporalAutoencoder, clip_to_frames, frames_to_clip

model = TemporalAutoencoder.from_pretrained("{name}")
clip = frames_to_clip(frames)  # uint8 (b, t, h, w, 3) -> (b, 3, t, h, w) in [-1, 1]
latents = model.encode(clip).mode()  # (b, {channels}, ceil(t / {time}), ceil(h / {space}), ceil(w / {space}))
frames = clip_to_frames(model.decode(latents, num_frames=clip.shape[2], size=clip.shape[3:]))
```"""


USE_OF_DIFFUSERS = """```python
from diffusers import {class_name}

vae = {class_name}.from_pretrained("{name}")
```

Clips: {takes}; `python evaluate.py ckpt=diffusers:{class_name}:{name}` measures it."""


def find_metrics(loaded: LoadedModel | LoadedDecoder, given: str | None) -> dict[str, Any] | None:
    """The metrics of an evaluation of this very file: the given ones, else those of the run that it lies in.

    Raises:
        UserError: the given file cannot be read, or speaks of another checkpoint.
    """
    source = to_path(loaded.source)
    nearby = (
        [source / "metrics.json"] if source.is_dir() else [folder / "metrics.json" for folder in source.parents[:2]]
    )
    for path in [to_path(given)] if given else [path for path in nearby if path.is_file()]:
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            evaluated = metrics["checkpoint"]["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"metrics_json={path} is not what an evaluation writes ({error!r}).") from error
        if evaluated == loaded.sha256:
            return metrics
        if given:
            raise UserError(
                f"metrics_json={path} is about another file (SHA-256 {str(evaluated)[:12]}..., ckpt={loaded.source} has "
                f"{str(loaded.sha256)[:12]}...). Evaluate this one: python evaluate.py ckpt={loaded.source}"
            )
        print(f"{path} is about another checkpoint, and is left out.")
    print("No metrics of this checkpoint were found, the card will have none: evaluate it, or give metrics_json=PATH.")
    return None


def model_card(
    loaded: LoadedModel,
    metrics: Mapping[str, Any] | None,
    stats: LatentStats | None,
    graphs: list[Path],
    name: str,
    license: str | None,
    dtype: str,
) -> str:
    """The README of the folder: what it is, how to use it, how it was measured, what it was made from."""
    model = loaded.model
    ours = isinstance(model, TemporalAutoencoder)
    library = "temporal-autoencoder" if ours else "diffusers"
    header = ModelCardData(license=license, library_name=library, tags=["video", "autoencoder", "vae"])
    what = (
        "A Temporal Autoencoder ([Movie Gen](https://arxiv.org/abs/2410.13720))"
        if ours
        else f"{model.name} of diffusers"
    )
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sections = [
        f"---\n{header.to_yaml()}\n---\n\n# {name}",
        f"{what}: compresses video {model.time_factor}x in "
        f"time, {model.space_factor}x in height and width, into {model.latent_channels} channels, and back. "
        f"{parameters / 1e6:.2f} M parameters.",
        use(model, name),
        "## Quality\n\n" + ("Not measured." if metrics is None else quality(metrics)),
    ]
    if stats is not None:
        sections.append(
            f"## Latents\n\nOver {stats.num_clips:,} clips, samples of the posterior have mean 0 and variance 1 after "
            f"`(latents - {stats.shift:.5f}) * {stats.scale:.5f}` (`shift_factor`, `scaling_factor`; `{STATS}` has each "
            f"channel). Outlier rate {stats.outlier_rate:.3%}."
        )
    if metrics is not None and "latents" in metrics:
        sections.append(
            "## Latents for a generator\n\n"
            + markdown_table(["", ""], report_lines(metrics["latents"]))
            + "\n\nOn the clips of the evaluation above. What each means: docs/latents-report.md of the software."
        )
    if graphs:
        sections.append(
            f"## Without Python\n\n`{graphs[0].name}`: `clip` to `mean` and `std`; `{graphs[1].name}`: `latents` to `clip`. "
            f"Batch, time, height and width are free; cut a decoded clip to the size that went in. "
            f"`{GRAPHS_FILE}` says the rest."
        )
    sections.append("## Origin\n\n" + origin(loaded.sha256, loaded.weights, model.starting_weights, dtype))
    return "\n\n".join(sections) + "\n"


def use(model: VideoAutoencoder, name: str) -> str:
    """How to load it, in code."""
    if isinstance(model, DiffusersAutoencoder):
        return USE_OF_DIFFUSERS.format(class_name=model.name, name=name, takes=model.rule)
    return USE_OF_OURS.format(
        name=name, channels=model.latent_channels, time=model.time_factor, space=model.space_factor
    )


def quality(metrics: Mapping[str, Any]) -> str:
    """The table of an evaluation beside its baseline, and how it was measured."""
    baseline = metrics["baselines"]["trilinear"]
    known = definitions(metrics)
    rows = [
        (known[name].label, interval_text(known[name], value), interval_text(known[name], baseline.get(name)))
        for name, value in measured(metrics["metrics"]).items()
    ]
    data = metrics["config"].get("data", {})
    words = {"num_frames": "{} frames", "resolution": "{} pixels each way"}
    window = ", ".join(text.format(data[key]) for key, text in words.items() if data.get(key) is not None)
    window += f", {pace(data)}" if data.get("frame_stride") is not None else ""
    skipped = len(metrics["skipped"])
    return markdown_table(["metric", "this model", f"trilinear {baseline_grid(metrics)}"], rows) + (
        f"\n\nProtocol `{metrics['protocol']}`: {metrics['num_clips']:,} clips, {metrics['num_frames']:,} frames"
        f"{f' ({window})' if window else ''}, mean [95 % interval over clips]; {skipped} clips could not be read. The "
        "posterior's mode is decoded, both sides are rounded to uint8, each metric is the mean over frames. The baseline "
        "resamples trilinearly on the same grid and learns nothing."
    )


def origin(sha256: str | None, weights: str | None, start: Mapping[str, str | None] | None, dtype: str) -> str:
    """The file that was exported, what its training started from, and how it was rounded.

    Args:
        weights: "ema" or "raw", which of the file's these are.
        start: {what: source, "sha256": of its file}, as checkpoints have it.
    """
    average = ", the moving average of its weights" if weights == "ema" else ""
    lines = [f"- exported from a file with SHA-256 `{sha256}`{average}"]
    if start:
        (kind, source), (_, digest) = start.items()
        name = Path(source).name if source and Path(source).exists() else source  # no paths of one's own machine
        lines.append(f"- training started from `{kind}={name}`, SHA-256 `{digest}`")
    if dtype != "fp32":
        lines.append(f"- weights rounded to {dtype}")
    return "\n".join(lines)
