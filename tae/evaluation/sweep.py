"""A sweep ends in one table, one plot and one page of its runs: comparison.md, .csv, .png, index.html in its folder."""

import csv
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from tae.evaluation.page import write_page
from tae.evaluation.report import markdown_table
from tae.evaluation.results import Interval
from tae.evaluation.sweep_page import comparison_page
from tae.evaluation.sweep_runs import RECORD, Run, differing, measured_by, read_runs, run_label
from tae.metrics.metric import Definition
from tae.runtime.errors import first_line
from tae.runtime.files import replacing, write_text

log = logging.getLogger(__name__)

PANELS_IN_ROW = 4
SECONDS = Definition(label="s/step", higher_is_better=False)


class SweepComparison(Callback):
    """Hydra callback that compares the runs of a multirun.

    The comparison is written anew after every run, not only at the end: once a run has failed, Hydra raises after the
    last one and never says that the sweep has ended; and a sweep that is interrupted leaves the comparison so far.
    """

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:  # also the further processes that Lightning starts for a run
            return
        write_text(Path(config.hydra.runtime.output_dir) / RECORD, json.dumps(_record(config, job_return), indent=2))
        write_comparison(_sweep_folder(config))

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        write_comparison(_sweep_folder(config))  # the runs of a parallel launcher end in any order, anywhere


def write_comparison(folder: Path, console: Console | None = None) -> None:
    """Compare the runs recorded below `folder`: write comparison.md, .csv, .png and the page there, print the table."""
    runs = read_runs(folder)
    if not runs:
        return
    header, rows = _table(runs)
    readable = _as_text(header, rows, measured_by(runs))
    write_text(folder / "comparison.md", _markdown(header, readable, runs))
    with replacing(folder / "comparison.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    _plot(runs, folder / "comparison.png")
    write_page(folder, comparison_page(folder, runs))
    _print(header, readable, folder, console or Console())


def _sweep_folder(config: DictConfig) -> Path:
    """The sweep's folder, also where Hydra has changed the working directory to a run's own."""
    return Path(config.hydra.runtime.cwd) / config.hydra.sweep.dir


def _record(config: DictConfig, job_return: JobReturn) -> dict[str, Any]:
    error = None
    if job_return.status == JobStatus.FAILED:
        try:
            _ = job_return.return_value  # raises what the run raised, after a line on standard error
        except Exception as failure:
            error = first_line(failure)
            log.error("Run %s failed: %s", config.hydra.job.num, error)
    plainly = (
        re.sub(r"\\(.)", r"\1", override) for override in job_return.overrides or []
    )  # Hydra escapes `:` and others
    overrides = dict(override.lstrip("+~").partition("=")[::2] for override in plainly)
    return {"job": config.hydra.job.num, "overrides": overrides, "error": error}


def _table(runs: Sequence[Run]) -> tuple[list[str], list[list[Any]]]:
    """Header and one row of values for each run; a column of metrics is there if any run has it."""
    keys = differing(runs)
    names = measured_by(runs)
    header = ["run", *keys, *names, "s/step", "status"]
    rows = [
        [
            run.folder.name,
            *(run.overrides.get(key) for key in keys),
            *(run.metrics[name]["mean"] if name in run.metrics else None for name in names),
            run.seconds_per_step,
            run.status if run.error is None else f"{run.status}: {run.error}",
        ]
        for run in runs
    ]
    return header, rows


def _as_text(
    header: Sequence[str], rows: Sequence[Sequence[Any]], metrics: Mapping[str, Definition]
) -> list[list[str]]:
    """The rows rounded for reading; the CSV keeps every digit."""

    def cell(name: str, value: Any) -> str:
        if value is None:
            return ""
        return metrics.get(name, SECONDS).text(value) if isinstance(value, float) else str(value)

    return [[cell(name, value) for name, value in zip(header, row, strict=True)] for row in rows]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]], runs: Sequence[Run]) -> str:
    folders = "\n".join(f"- {run.folder.name}: {_report_link(run)}" for run in runs)
    table = markdown_table(header, rows)
    return f"# Comparison of {len(runs)} runs\n\n{table}\n\n![The runs' metrics](comparison.png)\n\n{folders}\n"


def _report_link(run: Run) -> str:
    return f"[report]({run.folder.name}/report.md)" if (run.folder / "report.md").exists() else "no report"


def _print(header: Sequence[str], rows: Sequence[Sequence[str]], folder: Path, console: Console) -> None:
    table = Table(title="Runs of this sweep so far", title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name in ("run", "status") else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"Comparison: {folder / 'comparison.md'}", highlight=False, soft_wrap=True)


def _plot(runs: Sequence[Run], path: Path) -> None:
    """A panel of bars for each metric and, where any run was validated, the curves of validation PSNR."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no display, no global state
    from matplotlib.figure import Figure

    labels = [run_label(run, differing(runs)) for run in runs]
    colours = [f"C{i % 10}" for i in range(len(runs))]
    metrics = measured_by(runs)
    curves = any(run.curve for run in runs)
    count = len(metrics) + curves
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
        _curves(axes[count - 1], runs, labels, colours)
    for axis in axes[count:]:
        axis.set_axis_off()
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def _bars(axis: Any, values: Sequence[Interval | None], metric: Definition, colours: Sequence[str]) -> None:
    """Means as bars with their 95 % intervals."""
    means = [value["mean"] if value else 0.0 for value in values]
    reach = [value.get("ci95") or [value["mean"]] * 2 if value else [0.0, 0.0] for value in values]
    errors = [
        [mean - low for mean, (low, _) in zip(means, reach, strict=True)],
        [high - mean for mean, (_, high) in zip(means, reach, strict=True)],
    ]
    bars = axis.barh(range(len(values)), means, xerr=errors, capsize=3, color=colours)
    axis.bar_label(bars, [metric.text(value["mean"]) if value else "failed" for value in values], padding=4)
    axis.set_title(metric.heading)
    axis.invert_yaxis()
    axis.margins(x=0.3)
    axis.set_xlim(left=min(0.0, axis.get_xlim()[0]) if min(means) < 0 else 0.0)  # also where all are 0
    axis.spines[["top", "right"]].set_visible(False)


def _curves(axis: Any, runs: Sequence[Run], labels: Sequence[str], colours: Sequence[str]) -> None:
    for run, label, colour in zip(runs, labels, colours, strict=True):
        if run.curve:
            axis.plot(*zip(*run.curve, strict=True), marker="o", markersize=3, color=colour, label=label)
    axis.set_title("validation PSNR (dB)")
    axis.set_xlabel("step")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
