"""Options that the documentation recommends, in pairs, each in two real processes."""

import csv
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tae.model.checkpoint_file import read_checkpoint

ROOT = Path(__file__).parents[1]
OPTIONS = {
    "strategy": ("strategy=ddp", "strategy=auto"),
    "accumulation": ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches=1"),
    "precision": ("precision=bf16", "precision=fp32"),
    "checkpointing": ("model.gradient_checkpointing=true", "model.gradient_checkpointing=false"),
    "schedule": ("scheduler=one_cycle", "scheduler=constant"),
    "logger": ("logger=[csv,tensorboard]", "logger=csv"),
    "objective": ("loss.reconstruction.weight=0", "loss.reconstruction.weight=1"),  # perceptual is 0 in the demo
    "average": ("ema.decay=0.9", "ema.decay=null"),
    "adversary": ("adversary=patch", "adversary=none"),
    "trained": ("trainable=temporal", "trainable=all"),
    "views": ("loss.equivariance.weight=0.5", "loss.equivariance.weight=0"),
    "latents": ("model.latent_noise=0.2 model.latent_mask=0.2 model.channel_dropout=[4,16]", "model.latent_noise=0"),
    "scale": ("loss.reconstruction.learned_scale=true", "loss.reconstruction.learned_scale=false"),
}
SMALL_ADVERSARY = ("frame_channels=4", "clip_channels=4", "layers=2", "alone=1", "ramp=1")

# Few runs in which every pair of choices meets.
RUNS = (
    "0000000000000",
    "1111111111000",
    "1111110000111",
    "1110001110111",
    "1001101101110",
    "0101011011101",
    "0010110111011",
)
TINY = (
    "init_from=null",
    "model.base_channels=4",
    "model.channel_multipliers=[1, 1, 1, 2]",
    "data.num_clips={train: 12, val: 2, test: 2}",
    "data.clip_frames=4",
    "data.clip_size=32",
    "data.num_frames=2",
    "data.resolution=16",
    "data.batch_size=1",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "trainer.max_steps=3",
    "trainer.val_check_interval=4",
    "callbacks.progress.refresh_rate=0",
    "callbacks.videos.num_clips=0",
    "page.clips=0",
    "validate_first=false",
)


def choices(run: str) -> list[str]:
    groups = [values[int(choice)] for values, choice in zip(OPTIONS.values(), run, strict=True)]
    chosen = [setting for group in groups for setting in group.split()]
    if "adversary=patch" in chosen:
        chosen += [f"adversary.{setting}" for setting in SMALL_ADVERSARY]
    if "adversary=patch" in chosen or "loss.equivariance.weight=0.5" in chosen:
        chosen.append("loss.reconstruction.weight=1")  # they refuse an objective that looks at no reconstruction
    return chosen


def test_every_pair_of_choices_is_in_a_run() -> None:
    for one, other in itertools.combinations(range(len(OPTIONS)), 2):
        assert {(run[one], run[other]) for run in RUNS} == {("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthetic")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("run", RUNS)
def test_options_run_together_in_two_processes(run: str, cache: Path, tmp_path: Path) -> None:
    """A static graph with accumulated gradients crashed in the first backward pass, and plain DDP waited for the
    decoder's gradients where no term looks at the reconstruction."""
    command = [sys.executable, "train.py", *TINY, *choices(run), f"data.cache_dir={cache}", f"output_dir={tmp_path}"]
    for steps in (2, 3):  # the second one resumes
        again = [*command, f"trainer.max_steps={steps}", "resume=auto"] if "constant" in " ".join(command) else command
        done = subprocess.run(again, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        if again is command:
            break
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 3
    assert json.loads((tmp_path / "metrics.json").read_text())["num_clips"] == 2


TELLING = """
import sys
sys.path.insert(0, {root!r})
import torch
from hydra import compose, initialize_config_dir
from tae.training.module import AutoencoderModule
from train import train

step = AutoencoderModule.training_step

def tell(self, batch, number):
    with open({output!r} + f"/rank{{self.global_rank}}.txt", "a") as file:
        file.write(f"{{batch['source']}}:{{batch['frames'].shape[1]}}\\n")
    return step(self, batch, number)

AutoencoderModule.training_step = tell
with initialize_config_dir({root!r} + "/conf", version_base="1.3"):
    train(compose("train", overrides={overrides!r}))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_all_processes_take_batches_of_one_source(accumulate: int, cache: Path, tmp_path: Path) -> None:
    """With one batch to a step DDP's graph is static, whatever the shape. An epoch has 12 batches."""
    overrides = [*TINY, "experiment=demo", f"data.cache_dir={cache}", f"output_dir={tmp_path / 'run'}", "strategy=ddp"]
    overrides += ["data.sources={video: {weight: 2}, images: {num_frames: 1}}", "trainer.max_steps=6"]
    overrides += [f"trainer.accumulate_grad_batches={accumulate}", "trainer.val_check_interval=50"]
    script = tmp_path / "run.py"
    script.write_text(TELLING.format(root=str(ROOT), output=str(tmp_path), overrides=overrides))
    done = subprocess.run([sys.executable, script], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = ((tmp_path / f"rank{rank}.txt").read_text().split() for rank in (0, 1))
    assert first == second
    assert len(first) == 6 * accumulate
    assert set(first) == {"video:2", "images:1"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compiled_blocks_take_batches_of_every_shape(cache: Path, tmp_path: Path) -> None:
    """Images and video of two shapes, checkpointed, in two processes: as without compiling, but for rounding."""
    sources = "{video: {}, wide: {buckets: {wide: {width: 24}}}, images: {num_frames: 1}}"
    settings = [*TINY, f"data.sources={sources}", "data.cache_dir=" + str(cache), "strategy=ddp", "precision=fp32"]
    settings += ["model.gradient_checkpointing=true", "trainer.max_steps=8", "trainer.val_check_interval=9"]
    settings += ["optimizer.lr=1e-4", "trainer.log_every_n_steps=1"]
    losses = []
    for compiled in ("false", "true"):
        output = tmp_path / compiled
        command = [sys.executable, "train.py", *settings, f"model.compile_blocks={compiled}", f"output_dir={output}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "recompile_limit" not in done.stderr
        with next(output.rglob("metrics.csv")).open() as file:
            losses.append([float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")])
    assert len(losses[0]) == 8
    # Adam's first steps are of the size of the learning rate whatever the gradient's, so that rounding alone can turn one.
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
