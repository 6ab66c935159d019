"""The command that plans: from its config to a table of costs."""

from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from tae.planning.planner import GB, plan
from tae.runtime.console import plain_console


def print_plan(cfg: DictConfig) -> dict[str, Any]:
    """Print the plan."""
    found = plan(cfg)
    clips, frames, height, width = found["shape"]
    checkpointing = "with" if cfg.model.get("gradient_checkpointing") else "without"
    table = Table(
        title=f"{found['parameters'] / 1e6:.2f} M parameters, {clips} x {width}x{height}x{frames}, {cfg.trainer.precision}, "
        f"{checkpointing} checkpointing, {cfg.device}"
    )
    for header in ("", "TFLOP", "peak memory (GB)"):
        table.add_column(header, justify="right" if header else "left")
    if found["largest"]:
        table.add_column(f"most frames in {cfg.memory_gb} GB", justify="right")
        table.add_column("largest square (pixels)", justify="right")
    for name, cost in found["costs"].items():
        fitting = [str(number) if number else "none" for number in found["largest"].get(name, ())]
        table.add_row(name, f"{cost.flops / 1e12:.2f}", f"{cost.peak_bytes / GB:.2f}", *fitting)
    plain_console().print(table)
    for name, peak in found["peaks"].items():
        note = ": the worst, which the table is of" if name == found["worst"] else ""
        plain_console().print(f"{name}: a training step takes {peak / GB:.2f} GB{note}")
    return found
