"""A sweep ends in one table and one plot of its runs: comparison.md, .csv and .png in the sweep's folder."""

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from tae.evaluation import Interval
from tae.files import replacing, write_text
from tae.report import FORMATS

log = logging.getLogger(__name__)

RECORD = "run.json"  # one in each run's folder: what Hydra knows of a run, above all of one that failed
METRICS = ("psnr", "ssim", "ssim_uniform", "lpips", "outlier_rate")
PLOTTED = {"psnr": "PSNR (dB)", "ssim": "SSIM", "outlier_rate": "outlier rate"}
CURVE = "val/psnr"


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    folder: Path
    overrides: dict[str, str]
    status: str  # "completed" or "failed"
    error: str | None
    metrics: dict[str, Interval]  # those that were measured
    seconds_per_step: float | None
    curve: list[tuple[int, float]]  # (step, validation PSNR)


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
    """Compare the runs recorded below `folder`: write comparison.md, .csv and .png there, print the table."""
    runs = read_runs(folder)
    if not runs:
        return
    header, rows = _table(runs)
    readable = _as_text(header, rows)
    write_text(folder / "comparison.md", _markdown(header, readable, runs))
    with replacing(folder / "comparison.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    _plot(runs, folder / "comparison.png")
    _print(header, readable, folder, console or Console())


def read_runs(folder: Path) -> list[Run]:
    """The runs below `folder` in the order of their job numbers."""
    records = [(json.loads(path.read_text(encoding="utf-8")), path.parent) for path in folder.rglob(RECORD)]
    return [_read_run(record, run_folder) for record, run_folder in sorted(records, key=lambda item: item[0]["job"])]


def _sweep_folder(config: DictConfig) -> Path:
    """The sweep's folder, also where Hydra has changed the working directory to a run's own."""
    return Path(config.hydra.runtime.cwd) / config.hydra.sweep.dir


def _record(config: DictConfig, job_return: JobReturn) -> dict[str, Any]:
    error = None
    if job_return.status == JobStatus.FAILED:
        try:
            _ = job_return.return_value  # raises what the run raised, after a line on standard error
        except Exception as failure:
            error = _one_line(failure)
            log.error("Run %s failed: %s", config.hydra.job.num, error)
    overrides = dict(override.lstrip("+~").partition("=")[::2] for override in job_return.overrides or [])
    return {"job": config.hydra.job.num, "overrides": overrides, "error": error}


def _one_line(failure: BaseException) -> str:
    """The first line that says something: libraries' messages run over many."""
    lines = [line.strip() for line in str(failure).splitlines() if line.strip()]
    return lines[0] if lines else type(failure).__name__


def _read_run(record: Mapping[str, Any], folder: Path) -> Run:
    document = _read_json(folder / "metrics.json") if record["error"] is None else {}  # an older run's, if any
    metrics = {name: value for name, value in document.get("metrics", {}).items() if value["mean"] is not None}
    return Run(
        folder=folder,
        overrides=record["overrides"],
        status="completed" if record["error"] is None else "failed",
        error=record["error"],
        metrics=metrics,
        seconds_per_step=document.get("training", {}).get("seconds_per_step"),
        curve=_read_curve(folder),
    )


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _read_curve(folder: Path) -> list[tuple[int, float]]:
    """Validation PSNR over steps from the newest file of Lightning's CSVLogger, where one is there."""
    files = sorted(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
    if not files:
        return []
    with files[-1].open(newline="", encoding="utf-8") as file:
        return [(int(row["step"]), float(row[CURVE])) for row in csv.DictReader(file) if row.get(CURVE)]


def _differing(runs: Sequence[Run]) -> list[str]:
    """Keys of the overrides that are not the same in all runs; all of them where nothing differs."""
    keys = list(dict.fromkeys(key for run in runs for key in run.overrides))
    return [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1] or keys


def _label(run: Run, keys: Sequence[str]) -> str:
    return ", ".join(f"{key}={run.overrides[key]}" for key in keys if key in run.overrides) or run.folder.name


def _table(runs: Sequence[Run]) -> tuple[list[str], list[list[Any]]]:
    """Header and one row of values for each run; a column of metrics is there if any run has it."""
    keys = _differing(runs)
    names = [name for name in METRICS if any(name in run.metrics for run in runs)]
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


def _as_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[list[str]]:
    """The rows rounded for reading; the CSV keeps every digit."""

    def cell(name: str, value: Any) -> str:
        if value is None:
            return ""
        return format(value, FORMATS.get(name, ".4f")) if isinstance(value, float) else str(value)

    return [[cell(name, value) for name, value in zip(header, row, strict=True)] for row in rows]


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]], runs: Sequence[Run]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    folders = "\n".join(f"- {run.folder.name}: {_report_link(run)}" for run in runs)
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
    """One panel of bars for each metric and, where any run was validated, the curves of validation PSNR."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # without pyplot: no display, no global state
    from matplotlib.figure import Figure

    labels = [_label(run, _differing(runs)) for run in runs]
    colours = [f"C{i % 10}" for i in range(len(runs))]
    curves = any(run.curve for run in runs)
    panels = [name for name in PLOTTED if any(name in run.metrics for run in runs)]
    if not panels and not curves:
        return
    figure = Figure(figsize=(4.2 * (len(panels) + curves), 1.6 + max(2.4, 0.45 * len(runs))), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels) + curves, squeeze=False)[0]
    for axis, name in zip(axes, panels, strict=False):
        _bars(axis, [run.metrics.get(name) for run in runs], name, labels, colours, first=axis is axes[0])
    if curves:
        _curves(axes[-1], runs, labels, colours)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=150)


def _bars(
    axis: Any, values: Sequence[Interval | None], name: str, labels: Sequence[str], colours: Sequence[str], first: bool
) -> None:
    """Means as bars with their 95 % intervals; only the first panel repeats the runs' labels."""
    means = [value["mean"] if value else 0.0 for value in values]
    reach = [value.get("ci95") or [value["mean"]] * 2 if value else [0.0, 0.0] for value in values]
    errors = [
        [mean - low for mean, (low, _) in zip(means, reach, strict=True)],
        [high - mean for mean, (_, high) in zip(means, reach, strict=True)],
    ]
    bars = axis.barh(range(len(values)), means, xerr=errors, capsize=3, color=colours)
    texts = [format(value["mean"], FORMATS.get(name, ".4f")) if value else "failed" for value in values]
    axis.bar_label(bars, texts, padding=4)
    axis.set_yticks(range(len(values)), labels if first else [""] * len(values))
    axis.set_title(PLOTTED[name])
    axis.invert_yaxis()
    axis.margins(x=0.3)
    axis.set_xlim(left=0.0)  # also where all are 0, which matplotlib would put in the middle
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
