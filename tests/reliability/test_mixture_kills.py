"""A training on several sources: killed twice inside an epoch it ends in the same bits, and each source has its figures."""

import csv
import subprocess
import time
from pathlib import Path

import pytest
from reliability.test_kills import kill_group
from reliability.tiny_run import assert_same_state, finish, start

from tae.model.checkpoint_file import read_checkpoint

RUN = (
    "data.sources={video: {weight: 3, batch_size: 2, fps: [24, 12], buckets: {wide: {width: 24}}}, "
    "images: {num_frames: 1, batch_size: 4}}",
    "data.num_workers=3",
    "trainer.max_steps=10",
    "trainer.val_check_interval=9",
    "trainer.accumulate_grad_batches=2",
    "callbacks.last.every_n_steps=1",
    "model.gradient_checkpointing=true",
    "adversary=patch",
    *(
        "adversary.frame_channels=4",
        "adversary.clip_channels=4",
        "adversary.layers=2",
        "adversary.alone=1",
        "adversary.ramp=4",
    ),
)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_twice_inside_an_epoch(tmp_path: Path) -> None:
    code, _, errors = finish(start(tmp_path / "whole", tmp_path / "cache", *RUN))
    assert code == 0, errors
    killed = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    for step in (3, 6):
        process = start(tmp_path / "killed", tmp_path / "cache", *RUN)
        await_step(process, killed, step)
        kill_group(process)
        assert read_checkpoint(killed)["global_step"] < 10
    code, _, errors = finish(start(tmp_path / "killed", tmp_path / "cache", *RUN))
    assert code == 0, errors
    assert_same_state(tmp_path / "whole" / "checkpoints" / "last.ckpt", killed)
    check_figures(tmp_path / "whole" / "csv" / "version_0" / "metrics.csv")


def await_step(process: subprocess.Popen[str], path: Path, step: int) -> None:
    while not path.exists() or read_checkpoint(path)["global_step"] < step:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


def check_figures(path: Path) -> None:
    """Each logged step has the loss, and under their own names the sources that its batches were of, and those alone."""
    rows = [row for row in csv.DictReader(path.read_text().splitlines()) if row.get("train/loss")]
    assert len(rows) == 10
    assert not {"train/reconstruction", "train/psnr"} & rows[0].keys()
    shown = [{name for name in ("video/wide", "images") if row[f"train/{name}/reconstruction"]} for row in rows]
    assert shown[0] == {"video/wide", "images"}  # the first batches are one of each
    assert {"video/wide"} in shown
