"""What every benchmark needs: the environment it ran in, timing, and a table as Markdown and JSON."""

import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from typing import Any, TypeVar

import torch

from tae.model.bundled import BUNDLED

Name = TypeVar("Name", str, tuple[str, str])
RESULTS = Path(__file__).parent / "results"
# Other work on the machine spoils wall time; processor time, of all threads together, it changes little.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Networks of this repository, all 8x8x8 and 16 channels; haar1 folds pixels once, haar twice.
MODELS: dict[str, dict[str, Any]] = {
    "sd35": {},
    "haar": {"frontend": "haar", "folds": 2, "channel_multipliers": (2, 4)},
    "haar1": {"frontend": "haar", "folds": 1, "channel_multipliers": (1, 2, 4)},
    "tiny": json.loads((BUNDLED["tiny"] / "config.json").read_text()),
}


def hardware(device: str) -> str:
    """Name of the GPU, or of the processor."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found.group(1) if found else platform.processor() or platform.machine()


def environment(device: str) -> dict[str, str]:
    """Hardware, versions and commit: what a number means nothing without."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in (
        "triton",
        "lightning",
        "diffusers",
        "decord2",
        "av",
        "torchcodec",
        "onnxruntime",
    ):  # where they are installed
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    if device == "cuda":
        versions |= {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}
    return {
        "hardware": hardware(device),
        "threads": str(torch.get_num_threads()),
        "processors": str(os.cpu_count()),
        **versions,
        "commit": commit(),
        "date": date.today().isoformat(),
    }


def commit() -> str:
    """Abbreviated commit, with `+` where tracked files differ; BENCHMARK_COMMIT for a copy without the repository."""
    if named := os.environ.get("BENCHMARK_COMMIT"):
        return named
    try:
        describe = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True, cwd=RESULTS.parent).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(function: Callable[[], Any], device: str, clock: str = "wall") -> float:
    """Time of one call by a clock of `CLOCKS`; of wall time the device's work included."""
    synchronize(device)
    start = CLOCKS[clock]()
    function()
    synchronize(device)
    return CLOCKS[clock]() - start


def interleaved(
    functions: dict[Name, Callable[[], Any]], device: str, warmup: int, repeats: int, clock: str = "wall"
) -> dict[Name, list[float]]:
    """Seconds of each call, in rounds over all functions, so that a busy moment of the machine hits all alike."""
    times: dict[Name, list[float]] = {name: [] for name in functions}
    for number in range(warmup + repeats):
        for name, function in functions.items():
            elapsed = seconds(function, device, clock)
            if number >= warmup:
                times[name].append(elapsed)
    return times


def spread(times: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, _, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else (times[0],) * 3
    return {"median": median(times), "p25": low, "p75": high}


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product of random values here and now: what the hardware gives, not its data sheet."""
    size = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = interleaved({"matmul": lambda: a @ b}, device, warmup=3, repeats=10)["matmul"]
    return 2 * size**3 / median(times)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Rows of equal keys as a Markdown table."""
    lines = [" | ".join(rows[0]), " | ".join("---" if isinstance(v, str) else "---:" for v in rows[0].values())]
    lines += [" | ".join(map(show, row.values())) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def show(value: Any) -> str:
    """A cell: four digits are more than any timing deserves."""
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def publish(theme: str, device: str, settings: dict[str, Any], rows: Sequence[dict[str, Any]], output: Path) -> None:
    """Print the table, and write it as <theme>_<hardware>_<date>.md and .json; an older file is never overwritten."""
    where = environment(device)
    head = "\n".join("- " + ", ".join(f"{k} {v}" for k, v in block.items()) for block in (where, settings))
    text = f"# {theme}\n\n{head}\n\n{markdown(rows)}\n"
    print(text)
    slug = re.sub(r"[^a-z0-9]+", "-", where["hardware"].lower()).strip("-")
    stem, number = f"{theme}_{slug}_{where['date']}", 1
    while (output / f"{stem}_{number}.json").exists():
        number += 1
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{stem}_{number}.md").write_text(text)
    record = {"theme": theme, "environment": where, "settings": settings, "rows": list(rows)}
    (output / f"{stem}_{number}.json").write_text(json.dumps(record, indent=2) + "\n")


def peak_resident_bytes() -> int:
    """Peak resident memory of this process.

    Not `ru_maxrss` where Linux has better: a child inherits the peak of the process that started it, even through exec.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
