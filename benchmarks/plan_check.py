"""The planner's peak memory beside the measured one.

    python -m benchmarks.plan_check --device cuda
    python -m benchmarks.plan_check --device cpu --cases tiny
    python -m benchmarks.plan_check --device cuda --only fp32 resolution=512

A plan that is off by more than `BOUND` makes the command fail. Every case runs in a fresh process. On a GPU the measure is
the allocator's peak, cuDNN's workspaces included; on a CPU it is the peak resident memory over what the process had after
the same task on a clip of one 16x16 frame. That holds what no plan counts, such as the kernels that oneDNN compiles for each
shape: 2 to 12 MB in the smallest case. A plan of a few ten MB may therefore be lower by more than the bound.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor

from benchmarks.common import RESULTS, peak_resident_bytes, publish
from tae.losses.step import training_step
from tae.planning import planner as plan
from tae.runtime.cli import CONFIG_FOLDER

# Overrides of conf/plan.yaml
CASES = {
    "tiny": [
        "model=tiny precision=fp32 data.num_frames=8 data.resolution=64",
        "model=tiny precision=fp32 data.num_frames=32 data.resolution=128",
        "model=tiny precision=bf16 data.num_frames=16 data.resolution=128",
        "model=tiny precision=fp32 data.num_frames=16 data.resolution=128 model.gradient_checkpointing=true",
        "model=tiny precision=fp32 data.num_frames=16 data.resolution=96 data.batch_size=2 model.group_norm=clip",
        "model=tiny model.base_channels=64 precision=fp32 data.num_frames=16 data.resolution=96",
        "model=tiny precision=fp32 data.num_frames=16 data.resolution=128 trainable=decoder",
    ],
    "full": [
        "model=sd35 precision=bf16 data.num_frames=32 data.resolution=256",
        "model=sd35 precision=bf16 data.num_frames=32 data.resolution=256 model.gradient_checkpointing=false",
        "model=sd35 precision=bf16 data.num_frames=16 data.resolution=256 data.batch_size=2",
        "model=sd35 precision=fp32 data.num_frames=16 data.resolution=256",
        "model=sd35 precision=bf16 data.num_frames=32 data.resolution=512",
        "model=sd35 precision=bf16 data.num_frames=1 data.resolution=512",
        "model=sd35 precision=bf16 data.num_frames=32 data.resolution=256 trainable=decoder",
    ],
}
BOUND = 0.15  # of the measured peak
TASKS = ("encoding", "decoding", "training step, without LPIPS", "training step, with LPIPS")


def configure(overrides: str, device: str) -> DictConfig:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose("plan", overrides=[*overrides.split(), f"device={device}"])


def real_task(cfg: DictConfig, task: str) -> Callable[[], Any]:
    """The task on real tensors, everything that it needs already on the device."""
    planner, device = plan.make_planner(cfg), cfg.device
    model = planner.make_model().to(device)
    side, frames_count, batch = cfg.data.resolution, cfg.data.num_frames, cfg.data.batch_size
    precision = torch.autocast(device, planner.autocast, enabled=planner.autocast is not None)
    frames = torch.randint(0, 256, (batch, frames_count, side, side, 3), dtype=torch.uint8, device=device)
    if task.startswith("training"):
        loss = plan.build_losses(cfg.loss)[task.removeprefix("training step, ")]
        optimizer = planner.make_optimizer(p for p in model.parameters() if p.requires_grad)
        return lambda: training_step(model, loss, optimizer, frames, precision)
    latents = torch.randn(batch, *model.latent_shape(frames_count, side, side), device=device)

    def encode_or_decode() -> Tensor:
        with torch.no_grad(), precision:
            if task == "encoding":
                return model.encode(plan.frames_to_clip(frames)).mean
            return model.decode(latents, frames_count, (side, side))

    return encode_or_decode


def measure(cfg: DictConfig, task: str) -> int:
    """Peak bytes of the second of two runs (the first makes the optimizer's moments)."""
    real_task(configure("model=tiny precision=bf16 data.num_frames=1 data.resolution=16", cfg.device), task)()
    gc.collect()
    before = psutil.Process().memory_info().rss  # the libraries' own
    run = real_task(cfg, task)
    run()
    if cfg.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run()
    if cfg.device == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_resident_bytes() - before


def in_child(overrides: str, task: str, device: str) -> int:
    """`measure` in a fresh process, which returns freed memory to the system at once."""
    command = [sys.executable, "-m", "benchmarks.plan_check", "--device", device, "--child", overrides, task]
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def rows(overrides: str, device: str) -> list[dict[str, Any]]:
    costs = plan.plan(configure(overrides, device))["costs"]
    found = []
    for task in TASKS:
        measured, planned = in_child(overrides, task, device) / plan.GB, costs[task].peak_bytes / plan.GB
        found.append({"case": overrides, "task": task, "planned GB": planned, "measured GB": measured})
        found[-1]["planned / measured"] = planned / measured
        print(found[-1], flush=True)
    return found


def choose(cases: Sequence[str], parts: Sequence[str]) -> list[str]:
    """The cases whose overrides contain one of `parts`; all of them where none is named."""
    chosen = [overrides for overrides in cases if not parts or any(part in overrides for part in parts)]
    if not chosen:
        raise SystemExit(f"--only {' '.join(parts)} names none of: {'; '.join(cases)}.")
    return chosen


def check_bound(table: Sequence[dict[str, Any]]) -> None:
    """Fail where a plan is too far from what was measured."""
    broken = [row for row in table if not abs(row["planned / measured"] - 1) <= BOUND]
    if broken:
        named = "; ".join(f"{row['case']}, {row['task']}: {row['planned / measured']:.3f}" for row in broken)
        raise SystemExit(f"Planned / measured must be within {BOUND} of 1. It is not for {named}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=plan.DEVICES, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cases", choices=tuple(CASES))
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="PART", help="cases whose overrides contain one of these"
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, metavar=("OVERRIDES", "TASK"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        overrides, task = arguments.child
        print(json.dumps(measure(configure(overrides, arguments.device), task)))
        return
    cases = CASES[arguments.cases or ("full" if arguments.device == "cuda" else "tiny")]
    table = [row for overrides in choose(cases, arguments.only) for row in rows(overrides, arguments.device)]
    publish("plan", arguments.device, {"bound": BOUND, "only": arguments.only}, table, arguments.output)
    check_bound(table)


if __name__ == "__main__":
    main()
