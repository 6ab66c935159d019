"""What a command leaves out of its output, and that the rest comes once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import logging, sys, warnings
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
from tae.runtime.quiet import quiet
quiet()
quiet()
import lightning as L
from lightning.pytorch.utilities import rank_zero_info
rank_zero_info("something to know")
for _ in range(2):
    L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
logging.getLogger("lightning.pytorch.trainer.connectors.checkpoint_connector").info("`weights_only` was not set, x")
logging.getLogger("torch.utils.cpp_extension").warning("No CUDA runtime is found, using CUDA_HOME='/usr/local'")
logging.getLogger("lightning.pytorch.utilities.rank_zero").info("Tip: try our product")
warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated", FutureWarning)
warnings.warn("It is recommended to use `self.log('test/psnr', ..., sync_dist=True)` when", UserWarning)
warnings.warn("Total length of `list` across ranks is zero. Please make sure", UserWarning)
warnings.warn("another matter", FutureWarning)
"""


def lines(**environment: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


def test_lines_that_nobody_can_use_are_left_out_and_others_come_once() -> None:
    told = lines()
    assert sum("something to know" in line for line in told) == 1
    assert sum("GPU available" in line for line in told) == 1
    assert any("another matter" in line for line in told)
    assert not [
        line
        for text in ("TPU", "Tip", "weights_only", "LeafSpec", "sync_dist", "CUDA runtime")
        for line in told
        if text in line
    ]


@pytest.mark.slow
def test_further_processes_say_nothing_of_the_kind() -> None:
    assert not [line for line in lines(LOCAL_RANK="1") if "available" in line or "to know" in line]
