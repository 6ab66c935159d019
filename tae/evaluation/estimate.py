"""How long the metrics of an evaluation will take, measured on one made-up clip before it starts."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tae.metrics.metric import Candidate, Measurement, Metric
from tae.metrics.registry import SLOW_METRICS

FRAMES_MEASURED = 2  # of metrics of frames, whose time is proportional to them


def seconds_for(
    metrics: Mapping[str, Metric],
    clips: int,
    size: tuple[int, int, int],
    device: torch.device,
    in_all: int | None = None,
) -> dict[str, float]:
    """Seconds that each slow metric takes for all clips, model and baseline.

    Those that cannot be measured here take none and are left out.

    Args:
        clips: how many, in this process.
        size: frames, height and width of a clip.
        in_all: how many in all processes.
    """
    found = {}
    for name in (name for name in metrics if name in SLOW_METRICS):
        metric = metrics[name]
        frames = min(FRAMES_MEASURED * metric.every, size[0]) if metric.scope == "frame" else size[0]
        original, model, baseline = torch.randint(0, 256, (3, 1, frames, *size[1:], 3), device=device).byte()
        context: dict[str, Sequence[Any] | Tensor | None] = {"fps": [25.0], "time_factor": [1]}
        measure = Measurement({name: metric}, in_all)
        measure(original, model, **context)  # loads the network
        started = time.perf_counter()
        measure.of_each(original, [Candidate(model, context), Candidate(baseline, context)])
        if name not in measure.reasons:
            found[name] = (time.perf_counter() - started) * size[0] / frames * clips
    return found


def in_words(seconds: Mapping[str, float], clips: int) -> str:
    """One line with the whole and the longest parts."""
    longest = sorted(seconds, key=lambda name: -seconds[name])[:4]
    parts = ", ".join(f"{name} {duration(seconds[name])}" for name in longest)
    return f"these metrics will take about {duration(sum(seconds.values()))} for {clips} clips ({parts})"


def duration(seconds: float) -> str:
    """Seconds below two minutes, else minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
