"""The command that plans: from its config to a table of costs."""

from typing import Any

from omegaconf import DictConfig
from rich.table import Table

from tae.planning.planner import GB, plan
from tae.runtime.console import plain_console


def print_plan(cfg: DictConfig) -> dict[str, Any]:
    """Print the plan."""
    found = plan(cfg)
    size = f"{cfg.data.resolution}x{cfg.data.resolution}x{cfg.data.num_frames}"
    checkpointing = "with" if cfg.model.gradient_checkpointing else "without"
    table = Table(
        title=f"{found['parameters'] / 1e6:.2f} M parameters, {cfg.data.batch_size} x {size}, {cfg.trainer.precision}, "
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
    return found
