"""What metrics cost: seconds for each clip, and how much longer an evaluation takes by the metrics of `fast`.

    python -m benchmarks.metrics --size 32 128
    python -m benchmarks.metrics --size 32 256 --device cuda --repeats 10

Each row is one metric of a model and its baseline together, as an evaluation measures them; networks are loaded before. The
last rows are whole evaluations of a clip: encoding, decoding, and the metrics. Where weights are missing, so are their rows.
On a CPU the seconds are those that all its threads work, which other programs on the machine do not change.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, publish, seconds
from data.batch import Batch
from data.drawing import draw_clip
from tae.evaluation.protocol import Evaluation
from tae.metrics.baseline import trilinear_baseline
from tae.metrics.metric import Candidate, Measurement, Metric
from tae.metrics.registry import METRICS, MORE_METRICS, SLOW_METRICS
from tae.model.frame_conversion import clip_to_frames, frames_to_clip
from tae.model.pretrained import load_model

FPS = 25.0


def cost(function: Callable[[], Any], device: str) -> float:
    """Seconds of one call: of the GPU, or of the processor's work."""
    if device == "cuda":
        return seconds(function, device)
    before = time.process_time()
    function()
    return time.process_time() - before


def read_batch(frames: int, size: int, device: str) -> Batch:
    """One drawn clip."""
    drawn = draw_clip(np.random.default_rng(0), frames, size, size)
    return {"frames": torch.from_numpy(np.stack(drawn)).to(device)[None], "keys": ["drawn"], "fps": [FPS]}


@torch.no_grad()
def time_metrics(model: Any, batch: Batch, device: str, repeats: int) -> dict[str, float]:
    """Seconds of each metric that can be measured here."""
    original = batch["frames"]
    clip = frames_to_clip(original)
    out = model(clip, sample_posterior=False)
    baseline = clip_to_frames(trilinear_baseline(clip, model.time_factor, model.space_factor))
    context: dict[str, Any] = {"fps": [FPS], "time_factor": [model.time_factor], "latents": out.latents}
    candidates = [Candidate(clip_to_frames(out.reconstruction), context), Candidate(baseline, context)]
    found = {}
    for name, metric in (METRICS | MORE_METRICS).items():
        if "images" in metric.needs:  # its cost is the model's: see the evaluations
            continue
        measure = Measurement({name: metric})
        call = partial(measure.of_each, original, candidates)
        call()
        if name not in measure.reasons:
            found[name] = median(cost(call, device) for _ in range(repeats))
    return found


@torch.no_grad()
def time_evaluations(model: Any, batch: Batch, device: str, repeats: int) -> dict[str, float]:
    """Seconds of a clip's evaluation by tae-eval-1 and by `fast`, both without LPIPS, which would hide the difference."""

    def step_of(metrics: dict[str, Metric]) -> Callable[[], None]:
        evaluation = Evaluation(model, metrics).to(device)
        return lambda: evaluation.test_step(batch, 0)

    first = {name: metric for name, metric in METRICS.items() if name not in SLOW_METRICS}
    fast = first | {name: metric for name, metric in MORE_METRICS.items() if name not in SLOW_METRICS}
    steps = {"tae-eval-1": step_of(first), "fast": step_of(fast)}
    for step in steps.values():
        step()  # what is made once
    times = [{name: cost(step, device) for name, step in steps.items()} for _ in range(repeats)]
    return {name: median(of_round[name] for of_round in times) for name in steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="tiny")
    parser.add_argument("--size", type=int, nargs=2, default=(32, 128), metavar=("FRAMES", "PIXELS"))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    model = load_model(arguments.ckpt).model.to(arguments.device)
    batch = read_batch(*arguments.size, arguments.device)
    metrics = time_metrics(model, batch, arguments.device, arguments.repeats)
    whole = time_evaluations(model, batch, arguments.device, arguments.repeats)
    rows: list[dict[str, Any]] = [
        {"what": name, "s/clip": value, "of tae-eval-1": None} for name, value in metrics.items()
    ]
    rows += [
        {"what": f"evaluation, {name}", "s/clip": value, "of tae-eval-1": value / whole["tae-eval-1"]}
        for name, value in whole.items()
    ]
    frames, pixels = arguments.size
    settings = {"ckpt": arguments.ckpt, "frames": frames, "pixels": pixels, "threads": torch.get_num_threads()}
    publish("metrics", arguments.device, settings, rows, arguments.output)


if __name__ == "__main__":
    main()
