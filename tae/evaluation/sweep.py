"""A sweep ends in one table, one plot and one page of its runs: comparison.md, .csv, .png, index.html in its folder."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from rich.table import Table

from tae.evaluation.page import latents_table, write_page
from tae.evaluation.report import interval_text, markdown_table, measurement_text
from tae.evaluation.results import Interval
from tae.evaluation.sweep_page import comparison_page, rates, short_labels
from tae.evaluation.sweep_runs import Run, common_baseline, differing, measured_by, read_runs, run_label
from tae.latents.report import report_scalars
from tae.metrics.metric import Definition
from tae.runtime.console import plain_console
from tae.runtime.files import replacing, write_text

PANELS_IN_ROW = 4
LABEL_WIDTH = 40  # characters of a line beside the bars


def write_comparison(folder: Path, runs: list[Run] | None = None) -> list[Run]:
    """Compare runs below `folder`, by default those recorded there: comparison.md, .csv, .png and the page. Returns them."""
    runs = read_runs(folder) if runs is None else runs
    if not runs:
        return []
    write_text(folder / "comparison.md", _markdown(runs, folder))
    with replacing(folder / "comparison.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(_csv_rows(runs))
    _plot(runs, folder / "comparison.png")
    write_page(folder, comparison_page(folder, runs))
    return runs


def _status(run: Run) -> str:
    return run.status if run.error is None else f"{run.status}: {run.error}"


def _csv_rows(runs: Sequence[Run]) -> list[list[Any]]:
    """Header and one row for each run with every digit, then the baseline where the runs share one."""
    keys, names = differing(runs), list(measured_by(runs))
    bounds = [column for name in names for column in (name, f"{name}_ci95_low", f"{name}_ci95_high")]

    def numbers(metrics: Mapping[str, Interval]) -> list[float | None]:
        found = [metrics.get(name, {}) for name in names]
        return [number for value in found for number in (value.get("mean"), *(value.get("ci95") or (None, None)))]

    about_latents = [report_scalars(run.latents) if run.latents else {} for run in runs]
    latents = list(dict.fromkeys(name for of_run in about_latents for name in of_run))
    header = ["run", *keys, *bounds, *(f"latents_{name}" for name in latents), "compression", "s/step", "status"]
    rows: list[list[Any]] = [header]
    for run, of_run in zip(runs, about_latents, strict=True):
        settings = [run.overrides.get(key) for key in keys]
        row = [run.folder.name, *settings, *numbers(run.metrics), *(of_run.get(name) for name in latents)]
        rows.append([*row, run.compression, run.seconds_per_step, _status(run)])
    if baseline := common_baseline(runs):
        blank = [None] * len(latents)
        rows.append(["trilinear", *[None] * len(keys), *numbers(baseline), *blank, None, None, "baseline"])
    return rows


def _readable_rows(runs: Sequence[Run]) -> list[list[str]]:
    """The same rounded for reading, each mean with its interval, and only columns that hold something."""
    keys, metrics = differing(runs), measured_by(runs)
    rows = [["run", *keys, *(metric.heading for metric in metrics.values()), "compression", "s/step", "status"]]
    for run in runs:
        settings = [run.overrides.get(key, "") for key in keys]
        cells = [interval_text(metric, run.metrics.get(name)) for name, metric in metrics.items()]
        compression = "" if run.compression is None else f"{run.compression:.4g}"
        seconds = "" if run.seconds_per_step is None else f"{run.seconds_per_step:.3g}"
        rows.append([run.folder.name, *settings, *cells, compression, seconds, _status(run)])
    if baseline := common_baseline(runs):
        cells = [interval_text(metric, baseline.get(name)) for name, metric in metrics.items()]
        rows.append(["trilinear", *[""] * len(keys), *cells, "", "", "baseline"])
    filled = [any(row[i] for row in rows[1:]) for i in range(len(rows[0]))]
    return [[cell for cell, kept in zip(row, filled, strict=True) if kept] for row in rows]


def _markdown(runs: Sequence[Run], folder: Path) -> str:
    header, *rows = _readable_rows(runs)
    complete = next((run for run in runs if run.document), None)
    about = "" if complete is None else f"{measurement_text(complete.document)}\n\n"
    reports = "\n".join(f"- {run.folder.name}: {_report_link(run, folder)}" for run in runs)
    table = markdown_table(header, rows)
    picture = "![The runs' metrics](comparison.png)"
    latents = latents_table([run.latents for run in runs])
    if latents:
        names = [run.folder.name for run in runs]
        about += f"## Latents\n\n{markdown_table(['', *names], latents)}\n\n"
    return f"# Comparison of {len(runs)} runs\n\n{table}\n\n{about}{picture}\n\n{reports}\n"


def _report_link(run: Run, folder: Path) -> str:
    report = run.folder / "report.md"
    return f"[report](<{report.relative_to(folder).as_posix()}>)" if report.exists() else "no report"


def print_comparison(runs: Sequence[Run], folder: Path) -> None:
    """Print the table, with what differs between the runs."""
    console = plain_console()
    header, *rows = _readable_rows(runs)
    table = Table(title=f"{len(runs)} runs of this sweep so far", title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name in ("run", "status") else "right", overflow="fold")
    for row in rows:
        table.add_row(*(cell.replace(" [", "\n[") for cell in row))
    console.print(table)
    console.print(f"Comparison: {folder / 'comparison.md'}", soft_wrap=True)


def _plot(runs: Sequence[Run], path: Path) -> None:
    """A panel of bars for each metric and, where any run was validated, the curves of validation PSNR."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no display, no global state
    from matplotlib.figure import Figure

    labels = [fill(label, LABEL_WIDTH) for label in short_labels([run_label(run, differing(runs)) for run in runs])]
    colours = [f"C{i % 10}" for i in range(len(runs))]
    metrics = measured_by(runs)
    curves, plotted = any(run.curve for run in runs), rates(runs)
    count = len(metrics) + curves + (plotted is not None)
    if not count:
        return
    across = min(count, PANELS_IN_ROW)
    down = math.ceil(count / across)
    figure = Figure(figsize=(4.2 * across, down * (1.6 + max(2.4, 0.45 * len(runs)))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, across, squeeze=False).flatten()
    for i, (axis, (name, metric)) in enumerate(zip(axes, metrics.items(), strict=False)):
        _bars(axis, [run.metrics.get(name) for run in runs], metric, colours)
        axis.set_yticks(range(len(runs)), labels if i % across == 0 else [""] * len(runs))
    if curves:
        _curves(axes[len(metrics)], runs, labels, colours)
    if plotted is not None:
        _rates(axes[count - 1], plotted, colours)
    for axis in axes[count:]:
        axis.set_axis_off()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def _bars(axis: Any, values: Sequence[Interval | None], metric: Definition, colours: Sequence[str]) -> None:
    """Means as bars with their 95 % intervals."""
    means = [value["mean"] if value else 0.0 for value in values]
    reach = [value.get("ci95") or [value["mean"]] * 2 if value else [0.0, 0.0] for value in values]
    errors = [
        # Where all clips have one value, the mean may lie outside of its interval by a rounding error.
        [max(mean - low, 0.0) for mean, (low, _) in zip(means, reach, strict=True)],
        [max(high - mean, 0.0) for mean, (_, high) in zip(means, reach, strict=True)],
    ]
    bars = axis.barh(range(len(values)), means, xerr=errors, capsize=3, color=colours)
    axis.bar_label(bars, [metric.text(value["mean"]) if value else "failed" for value in values], padding=4)
    axis.set_title(metric.heading)
    axis.invert_yaxis()
    axis.margins(x=0.3)
    axis.set_xlim(left=min(0.0, axis.get_xlim()[0]) if min(means) < 0 else 0.0)  # also where all are 0
    axis.spines[["top", "right"]].set_visible(False)


def _rates(axis: Any, plotted: Mapping[str, Any], colours: Sequence[str]) -> None:
    """Models as dots above the lines of linear codecs."""
    for floor in plotted["floors"]:
        style = ".-" if floor["line"] else "s"  # each model's own grid: points that no line joins
        axis.plot(*zip(*floor["points"], strict=True), style, color="grey", label=floor["label"])
    for model in plotted["models"]:
        axis.plot(model["rate"], model["psnr"], "o", color=colours[model["run"]])
    axis.set_xscale("log")
    axis.set_title("PSNR (dB) by numbers in the latents")
    axis.set_xlabel("numbers for each value of the clip")
    axis.grid(alpha=0.3)
    if plotted["floors"]:
        axis.legend(fontsize="small")


def _curves(axis: Any, runs: Sequence[Run], labels: Sequence[str], colours: Sequence[str]) -> None:
    for run, label, colour in zip(runs, labels, colours, strict=True):
        if run.curve:
            axis.plot(*zip(*run.curve, strict=True), marker="o", markersize=3, color=colour, label=label)
    axis.set_title("validation PSNR (dB)")
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
