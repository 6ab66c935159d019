"""What an evaluation leaves behind: metrics.json, report.md, per_clip.csv, and a table to read."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tae.evaluation.published import PUBLISHED_TABLES
from tae.evaluation.results import EvaluationResult, Interval, measured
from tae.latents.report import report_lines, terminal_table
from tae.metrics.metric import Definition
from tae.metrics.registry import protocol
from tae.runtime.console import plain_console
from tae.runtime.environment import environment
from tae.runtime.files import replacing, write_text


def write_report(
    output_dir: Path,
    result: EvaluationResult,
    videos: Sequence[str],
    *,
    checkpoint: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    skipped: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    linear_codec: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write metrics.json, per_clip.csv and report.md, and return what metrics.json holds.

    Args:
        output_dir: folder of this run; made where it is missing.
        videos: which of "best", "median" and "worst" are at videos/<role>.mp4.
        checkpoint: {"path": ..., "sha256": ...} of what was evaluated, None for weights that are in no file.
        config: the resolved configuration.
        skipped: clips that could not be measured, each with its reason.
        data: what was measured: {"shards": [...], "split": ..., "num_frames": ..., "frame_stride": ..., "resolution": ...,
            "precision": ...}.
        model: {"class": ..., "input": what it takes, "latents": shape, "compression": values in a clip for each in them};
            without the last two where it has none to look at.
        training: {"steps": ..., "seconds_per_step": ...} where the evaluation ends a training run.
        linear_codec: PSNR of principal components at several rates, as `tae.evaluation.floor` measures it.
    """
    document = metrics_document(
        result,
        checkpoint=checkpoint,
        config=config,
        skipped=skipped,
        data=data,
        model=model,
        training=training,
        linear_codec=linear_codec,
    )
    output_dir.mkdir(parents=True, exist_ok=True)
    _write_per_clip(output_dir / "per_clip.csv", result)
    write_text(output_dir / "report.md", _markdown(document, result, videos))
    write_text(output_dir / "metrics.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    return document


def metrics_document(
    result: EvaluationResult,
    *,
    checkpoint: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    skipped: Sequence[Mapping[str, Any]],
    data: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    linear_codec: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of metrics.json: valid JSON, so what has no number is null and says why."""
    metrics = result.metrics()
    document = {
        "protocol": named_protocol(config) or protocol(result.measured_by),
        "num_clips": len(result.clips),
        "num_frames": sum(clip.num_frames for clip in result.clips),
        "metrics": metrics,
        "baselines": {"trilinear": result.trilinear()},
        "definitions": {name: result.measured_by[name].definition() for name in metrics},
        "skipped": [dict(clip) for clip in skipped],
        "checkpoint": None if checkpoint is None else dict(checkpoint),
        "config": config,
        "environment": environment(),
    }
    if data is not None:
        document["data"] = dict(data)
    if model is not None:
        document["model"] = dict(model)
    if training is not None:
        document["training"] = dict(training)
    if linear_codec is not None:
        document["linear_codec"] = dict(linear_codec)
    if result.latents is not None:
        document["latents"] = result.latents
    return _finite(document)


def named_protocol(config: Mapping[str, Any]) -> str | None:
    """The protocol that an evaluation was asked for by name."""
    return (config.get("protocol") or {}).get("name")


def verdict(result: EvaluationResult) -> str:
    """In words, whether the model is worth more than a trivial codec of the same grid."""
    parts = []
    for name in ("psnr", "ssim"):
        difference = result.advantage().get(name)
        if difference is None:
            continue
        amount = abs(difference["mean"])
        if difference["ci95"] is None or difference["ci95"][0] <= 0 <= difference["ci95"][1]:
            parts.append(f"not clearly different from it in {name.upper()} ({difference['mean']:+.3g})")
        else:
            side = "above" if difference["mean"] > 0 else "BELOW"
            parts.append(f"{side} it by {amount:.3g}{' dB' if name == 'psnr' else ''} in {name.upper()}")
    baseline = f"the trilinear baseline ({grid(*result.factors)} down and up, nothing learned)"
    return f"Against {baseline} the model is {' and '.join(parts)}."


def grid(time_factor: int, space_factor: int) -> str:
    """How many values stand for one in the latent, along frames, height and width."""
    return f"{time_factor}x{space_factor}x{space_factor}"


def baseline_grid(document: Mapping[str, Any]) -> str:
    """The grid of a metrics.json's baseline; before version 0.2 it was the same for all models, and not stated."""
    model = document.get("model", {})
    return grid(model.get("time_factor", 8), model.get("space_factor", 8))


def training_verdict(document: Mapping[str, Any]) -> str | None:
    """In words, what training changed on the validation clips; None without a validation before and after."""
    training = document.get("training", {})
    before, best = training.get("validation_psnr_before"), training.get("validation_psnr_best")
    if before is None or best is None:
        return None
    return (
        f"Training for {training['steps']:,} steps took the validation PSNR from {before:.2f} to {best:.2f} dB at best "
        f"({best - before:+.2f})."
    )


def verdicts(document: Mapping[str, Any], result: EvaluationResult) -> list[str]:
    """What the numbers say: against the baseline, and of training."""
    table = PUBLISHED_TABLES.get(document["protocol"])
    published = None if table is None else table.beside(document)
    return [text for text in (verdict(result), training_verdict(document), published) if text]


def print_report(
    document: Mapping[str, Any], result: EvaluationResult, output_dir: Path, console: Console | None = None
) -> None:
    """The table on the terminal, what it was measured on, the verdict in words, and where the files are."""
    console = console or plain_console()
    table = Table(title=f"{document['protocol']}, mean [95 % interval over clips]")
    table.add_column("metric")
    for header in ("model", "trilinear", "difference"):
        table.add_column(header, justify="right")
    for row in _table_rows(result):
        table.add_row(*(cell.replace(" [", "\n[") for cell in row))  # narrow terminals: the interval below its mean
    console.print(table)
    if result.latents is not None:
        console.print(terminal_table(result.latents))
    for line in [measurement_text(document), *reasons(result), *verdicts(document, result)]:
        console.print(line)
    console.print(f"Report: {output_dir / 'index.html'}", soft_wrap=True)


def phases_line(document: Mapping[str, Any]) -> list[str]:
    """PSNR by place in a latent frame, where it was measured."""
    phases = document["metrics"].get("psnr_phase", {}).get("phases")
    if not phases:
        return []
    return [f"PSNR (dB) by place in a latent frame: {', '.join(f'{value:.2f}' for value in phases)}."]


def latents_section(document: Mapping[str, Any]) -> list[str]:
    """The latents report in Markdown; nothing where there is none."""
    if "latents" not in document:
        return []
    report = document["latents"]
    missing = [f"{name}: {reason}." for name, reason in report["reasons"].items()]
    return ["## Latents", markdown_table(["", ""], report_lines(report)), *missing]


def _finite(value: Any) -> Any:
    """The same document with null for every number that JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _table_rows(result: EvaluationResult) -> list[tuple[str, str, str, str]]:
    """(metric, model, trilinear, difference) as text, for the terminal and for Markdown."""
    trilinear, advantage = result.trilinear(), result.advantage()
    rows = []
    for name, value in measured(result.metrics()).items():
        metric = result.measured_by[name]
        baseline, difference = (
            interval_text(metric, trilinear.get(name)),
            interval_text(metric, advantage.get(name), "+"),
        )
        rows.append((metric.heading, interval_text(metric, value), baseline, difference))
    return rows


def reasons(result: EvaluationResult) -> list[str]:
    """Why metrics have no number, a line each."""
    without = {name: value["reason"] for name, value in result.metrics().items() if value["mean"] is None}
    return [f"{result.measured_by[name].label}: not measured, {reason}." for name, reason in without.items()]


def interval_text(metric: Definition, value: Interval | None, sign: str = "") -> str:
    """A mean and its interval, rounded as befits the metric."""
    if value is None or value["mean"] is None:
        return "-"
    mean = metric.text(value["mean"], sign)
    return (
        mean if value.get("ci95") is None else f"{mean} [{', '.join(metric.text(end, sign) for end in value['ci95'])}]"
    )


def _write_per_clip(path: Path, result: EvaluationResult) -> None:
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        first = result.clips[0]
        header = ["key", "num_frames", "fps", *first.model, *(f"trilinear_{name}" for name in first.trilinear)]
        writer = csv.writer(file)
        writer.writerow(header)
        for clip in result.clips:
            writer.writerow([clip.key, clip.num_frames, clip.fps, *clip.model.values(), *clip.trilinear.values()])


def _markdown(document: Mapping[str, Any], result: EvaluationResult, roles: Sequence[str]) -> str:
    checkpoint = document["checkpoint"] or {"path": "weights that are in no file", "sha256": "-"}
    chosen = result.chosen()
    sections = [
        "# Evaluation",
        *verdicts(document, result),
        markdown_table(["metric", "model", "trilinear", "difference"], _table_rows(result)),
        "Mean over frames, in brackets the 95 % interval by bootstrap over clips. Every metric is taken per frame on uint8 "
        "RGB, the posterior's mode decoded. ↑ higher is better, ↓ lower is better.",
        *phases_line(document),
        markdown_table(["measured on", ""], measurement(document)),
        *reasons(result),
        "## Clips to look at",
        markdown_table(
            ["", "clip", "PSNR (dB)", "trilinear (dB)", "original (left), reconstruction (right)"],
            [
                (
                    role,
                    f"`{clip.key}`",
                    f"{clip.model['psnr']:.2f}",
                    f"{clip.trilinear['psnr']:.2f}",
                    _link(role, roles),
                )
                for role, clip in chosen.items()
            ],
        ),
        "To look at them closely: [index.html](index.html). All clips: [per_clip.csv](per_clip.csv), all numbers: "
        "[metrics.json](metrics.json).",
        *latents_section(document),
        "## Skipped",
        "\n".join(f"- {_inline(clip)}" for clip in document["skipped"]) or "None.",
        "## Run",
        markdown_table(
            ["", ""],
            [
                ("checkpoint", f"`{checkpoint['path']}`"),
                ("sha256", f"`{checkpoint['sha256']}`"),
                ("weights", readable(checkpoint.get("weights"))),
                ("training started from", readable(checkpoint.get("starting_weights"))),
                *model_lines(document),
                *((name, readable(value)) for name, value in document.get("training", {}).items()),
                *((name, readable(value)) for name, value in document["environment"].items()),
            ],
        ),
    ]
    return "\n\n".join(sections) + "\n"


def measurement(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What belongs to every number: clips, window, size, shards and their split, precision, protocol."""
    data = document.get("data", {})
    lines = [("clips", f"{document['num_clips']:,}"), ("frames", f"{document['num_frames']:,}")]
    if data:
        lines += [
            ("window", f"{data['num_frames']} frames, {pace(data)}{window_place(data)}"),
            ("size", f"{data['resolution']}x{data['resolution']}"),
            ("shards", ", ".join(data["shards"])),
            ("split", data["split"]),
            ("precision", data["precision"]),
        ]
    return [*lines, ("protocol", document["protocol"])]


def pace(data: Mapping[str, Any]) -> str:
    """At what rate or stride the frames were taken: of several in a config the first, as evaluation does."""
    name, words = ("fps", "{} a second") if data.get("fps") else ("frame_stride", "stride {}")
    value = data.get(name, 1)
    return words.format(f"{value[0] if isinstance(value, Sequence) else value:g}")


def window_place(data: Mapping[str, Any]) -> str:
    """Where in a file the window is, if it is not in the middle, and whether the posterior was sampled."""
    place = ", the first of the file" if data.get("eval_window") == "first" else ""
    return place + (", posterior sampled" if data.get("posterior") == "sampled" else "")


def measurement_text(document: Mapping[str, Any]) -> str:
    """The same in a line; "" for a document that does not say."""
    return ", ".join(f"{name}: {text}" for name, text in measurement(document)) if "num_clips" in document else ""


def readable(value: Any) -> str:
    """A value for people: four digits, no Python syntax."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {readable(item)}" for name, item in value.items())
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def model_lines(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was measured, for readers."""
    if "model" not in document:
        return []
    model = document["model"]
    latents = latents_text(model)
    return [("model", f"{model['class']}: {model['input']}")] + ([] if latents is None else [("latents", latents)])


def latents_text(model: Mapping[str, Any]) -> str | None:
    """The latents of a clip and what they save; None for a model that has none to look at."""
    if "latents" not in model:
        return None
    return f"{'x'.join(map(str, model['latents']))}, one number for {model['compression']:.4g} of the clip"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for Markdown; a bar in a cell is escaped."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _link(role: str, written: Sequence[str]) -> str:
    return f"[videos/{role}.mp4](videos/{role}.mp4)" if role in written else "-"


def _inline(clip: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in clip.items())
