"""The finished and failed runs of a sweep, read back from their folders."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tae.evaluation.results import Interval, measured
from tae.metrics.metric import Definition
from tae.metrics.registry import definitions

RECORD = "run.json"  # one in each run's folder: what Hydra knows of a run, above all of one that failed
CURVE = "val/psnr"


@dataclass(frozen=True)
class Run:
    """One run of a sweep."""

    folder: Path
    overrides: dict[str, str]
    status: str  # "completed" or "failed"
    error: str | None
    document: dict[str, Any]  # its metrics.json; empty for a failed run
    curve: list[tuple[int, float]]  # (step, validation PSNR)

    @property
    def metrics(self) -> dict[str, Interval]:
        """Those that were measured."""
        return measured(self.document.get("metrics", {}))

    @property
    def baseline(self) -> dict[str, Interval]:
        """The trilinear baseline on the same clips."""
        return measured(self.document.get("baselines", {}).get("trilinear", {}))

    @property
    def compression(self) -> float | None:
        """Values of a clip for each value of its latents."""
        return self.document.get("model", {}).get("compression")

    @property
    def latents(self) -> dict[str, Any] | None:
        """Its latents report."""
        return self.document.get("latents")

    @property
    def baseline_rate(self) -> float | None:
        """Numbers that the trilinear baseline keeps for each value of a clip."""
        data, model = self.document.get("data", {}), self.document.get("model", {})
        if not {"num_frames", "resolution"} <= data.keys() or "time_factor" not in model:
            return None
        frames, size = data["num_frames"], data["resolution"]
        kept = math.ceil(frames / model["time_factor"]) * math.ceil(size / model["space_factor"]) ** 2
        return kept / (frames * size**2)

    @property
    def seconds_per_step(self) -> float | None:
        return self.document.get("training", {}).get("seconds_per_step")


def read_runs(folder: Path) -> list[Run]:
    """The runs below `folder` in the order of their job numbers."""
    records = [(json.loads(path.read_text(encoding="utf-8")), path.parent) for path in folder.rglob(RECORD)]
    return [_read_run(record, run_folder) for record, run_folder in sorted(records, key=lambda item: item[0]["job"])]


def measured_by(runs: Sequence[Run]) -> dict[str, Definition]:
    """{name: how to write it} of every metric that any run has, in the runs' own order."""
    known = {name: metric for run in reversed(runs) for name, metric in definitions(run.document).items()}
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    return {name: known[name] for name in names}


def differing(runs: Sequence[Run]) -> list[str]:
    """Keys of the overrides that are not the same in all runs; none for a single run."""
    keys = dict.fromkeys(key for run in runs for key in run.overrides)
    return [key for key in keys if len({run.overrides.get(key) for run in runs}) > 1]


def run_label(run: Run, keys: Sequence[str]) -> str:
    return ", ".join(f"{key}={run.overrides[key]}" for key in keys if key in run.overrides) or run.folder.name


def common_baseline(runs: Sequence[Run]) -> dict[str, Interval] | None:
    """The trilinear baseline where all runs were measured on the same clips, hence have the same one."""
    baselines = [run.baseline for run in runs if run.document]
    return baselines[0] if baselines and baselines[0] and all(one == baselines[0] for one in baselines) else None


def read_per_clip(run: Run) -> dict[str, dict[str, str]]:
    """A run's per_clip.csv by key."""
    path = run.folder / "per_clip.csv"
    if run.error is not None or not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["key"]: row for row in csv.DictReader(file)}


def read_json_or(path: Path, otherwise: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else otherwise


def _read_run(record: Mapping[str, Any], folder: Path) -> Run:
    document = read_json_or(folder / "metrics.json", {}) if record["error"] is None else {}  # an older run's, if any
    return Run(
        folder=folder,
        overrides=record["overrides"],
        status="completed" if record["error"] is None else "failed",
        error=record["error"],
        document=document,
        curve=read_curve(folder),
    )


def read_curve(folder: Path) -> list[tuple[int, float]]:
    """Validation PSNR over steps from the files of Lightning's CSVLogger: one for each time that the run was resumed.

    They are in the order of their numbers; where two have one step the later one counts.
    """
    curve: dict[int, float] = {}
    for path in sorted(folder.rglob("metrics.csv"), key=_version):
        with path.open(newline="", encoding="utf-8") as file:
            curve |= {int(row["step"]): float(row[CURVE]) for row in csv.DictReader(file) if row.get(CURVE)}
    return sorted(curve.items())


def _version(path: Path) -> int:
    number = path.parent.name.removeprefix("version_")
    return int(number) if number.isdecimal() else -1
