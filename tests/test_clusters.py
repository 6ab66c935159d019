"""Many processes that nobody but torchrun or a launcher connects: one folder, one result, each clip once."""

import csv
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tae import UserError
from tae.runtime import start_time as launch

ROOT = Path(__file__).parents[1]
SMALL = [
    "experiment=demo",
    "init_from=null",
    "model.base_channels=8",
    "model.norm_groups=4",
    "data.num_clips={train: 4, val: 3, test: 3}",
    "data.clip_frames=10",
    "data.num_frames=8",
    "data.clip_size=32",
    "data.resolution=32",
    "data.batch_size=1",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "callbacks.progress.refresh_rate=0",
    "scheduler=constant",
    "page.clips=0",
]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment() -> dict[str, str]:
    return os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_two_nodes_of_torchrun_write_one_run(tmp_path: Path) -> None:
    """The folder is named by the start, a second of which would tell the nodes apart: they start three apart."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"]
    launcher += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    task = [*SMALL, f"data.cache_dir={tmp_path}/cache", "trainer.num_nodes=2", "trainer.accelerator=cpu"]
    task += [f"output_dir={tmp_path}/runs/${{started:%Y-%m-%d_%H-%M-%S}}"]
    nodes = []
    for rank, wait in enumerate((0, 3)):
        command = ["sh", "-c", f'sleep {wait}; exec "$@"', "sh", *launcher, "--node_rank", str(rank), "train.py", *task]
        nodes.append(
            subprocess.Popen(
                command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    outputs = [node.communicate(timeout=400)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs[0][-2000:] + outputs[1][-2000:]
    (run,) = (tmp_path / "runs").iterdir()
    document = json.loads((run / "metrics.json").read_text())
    assert document["num_clips"] == 3, "the clips are divided among the nodes, none is counted twice"
    assert document["training"]["steps"] == 2
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert (run / "index.html").is_file()


@pytest.mark.slow
def test_a_sweep_through_submitit_compares_its_runs(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
    command = [sys.executable, "train.py", "-m", "launcher=submitit_local", *SMALL, "trainer.accelerator=cpu"]
    command += [f"data.cache_dir={tmp_path}/cache", f"output_dir={tmp_path}/sweep", "loss.opl.weight=0,1"]
    command += ["trainer.devices=1,2"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    with (tmp_path / "sweep" / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["loss.opl.weight"], row["trainer.devices"]) for row in rows] == [
        ("0", "1"),
        ("0", "2"),
        ("1", "1"),
        ("1", "2"),
    ]
    assert {row["status"] for row in rows} == {"completed"}
    assert (tmp_path / "sweep" / "index.html").is_file()
    assert [json.loads((tmp_path / "sweep" / str(i) / "metrics.json").read_text())["num_clips"] for i in range(4)] == [
        3
    ] * 4


def started(monkeypatch: pytest.MonkeyPatch, **variables: Any) -> int:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    launch.start_time.cache_clear()
    try:
        return launch.start_time()
    finally:
        launch.start_time.cache_clear()


def test_tasks_of_slurm_take_the_jobs_start(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"SLURM_PROCID": 3, "SLURM_NTASKS": 8}
    with pytest.raises(UserError, match="output_dir=PATH"):
        started(monkeypatch, **job)
    monkeypatch.setenv("TZ", "UTC")
    assert started(monkeypatch, **job, SLURM_JOB_START_TIME=1_700_000_000) == 1_700_000_000


def test_processes_of_torchrun_without_a_store_are_told_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="output_dir=PATH"):
        started(monkeypatch, TORCHELASTIC_RUN_ID="none", WORLD_SIZE=2, RANK=0)
