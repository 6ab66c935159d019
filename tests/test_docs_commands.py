"""Every command of the documentation is looked at; the slow tests run them. Python examples run too."""

import csv
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image

from tae import TemporalAutoencoder, TinyDecoder, frames_to_clip
from tae.train import GROUPS as DEMO_UNLESS
from tests.documented import COMMANDS, CONF, ENTRY, MENTIONED, NAMES, PAGES, ROOT, Command, blocks
from tests.references.video import make_video

NOT_COMPOSED = {
    "make demo": "installs into .venv and trains for minutes",
    "make test": "these tests",
    "source .venv/bin/activate": "of the shell",
    "hf auth login": "asks for an account's token",
    "tae-": "commands of the installed package; tests/test_installed.py starts them",
    "python -m benchmarks.": "has no config; its options are looked up below, tests/benchmarks/ runs most of them small",
    "python examples/flow_matching.py": "has no config; the slow tests run it",
}
NOT_RUN = {
    "=my_": "files of the reader's own; tests/test_extending.py writes and runs them",
    "torchrun": "several nodes; tests/test_clusters.py starts two on one machine",
    "srun": "SLURM",
    "launcher=": "SLURM",
    "push=true": "uploads to the hub",
    "download=true": "fetches 7 GB",
    "get=": "fetches packages; `make test-network` does",
    "splits_dir=": "UCF-101's lists of its splits, a download; tests/data/ingest/ makes some",
    "protocol=ucf101-17": "that split; tests/tae/evaluation/test_published.py measures by the protocol",
    "s3://": "no such bucket; tests/data/storage/test_s3.py reads from a local one",
    "experiment=ucf101_gan": "chooses by LPIPS, whose weights are fetched; test_adversarial_training.py trains small ones",
    "datasets/layouts/": "data sets of others; tests/data/ingest/test_layouts.py runs them where there are samples",
    "model=diffusers": "weights of others; tests/tae/training/test_diffusers_training.py trains small ones",
    "diffusers:": "weights of others; tests/fakes/diffusers_models.py makes small ones",
}


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) > 40
    assert {command.entry for command in COMMANDS} >= {path.stem for path in CONF.glob("*.yaml")}


def test_every_command_is_looked_at() -> None:
    """Those that have a config are given to their programs (tests/test_command_lines.py)."""
    others = [command for command in dict.fromkeys(COMMANDS + MENTIONED) if not command.entry]
    known = tuple(NOT_COMPOSED)
    assert [f"{command.page}: {command.text}" for command in others if not command.text.startswith(known)] == [], (
        "No test looks at these: add them to NOT_COMPOSED with the reason."
    )


BENCHMARKS = [command for command in COMMANDS if command.text.startswith("python -m benchmarks.")]


@pytest.mark.parametrize("command", BENCHMARKS, ids=lambda c: f"{c.page}: {c.text}")
def test_the_options_of_a_benchmark_exist(command: Command) -> None:
    """A benchmark parses its arguments when it starts to measure: its options are looked for in its text."""
    _, _, module, *arguments = shlex.split(command.text)
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    if "make_parser" in source:  # the options of all trainings that are compared
        source += (ROOT / "benchmarks/trainings.py").read_text()
    options = [argument for argument in arguments if argument.startswith("--")]
    assert [option for option in options if f'add_argument("{option}"' not in re.sub(r"\(\s+", "(", source)] == []


@pytest.mark.parametrize("table", [NOT_COMPOSED, NOT_RUN], ids=["not composed", "not run"])
def test_every_exception_is_needed(table: dict[str, str]) -> None:
    assert [start for start in table if not any(start in command.text for command in COMMANDS)] == []


def clips(folder: Path, names: list[str], size: tuple[int, int] = (48, 64)) -> None:
    """Small videos of 36 and more frames; each is of another length, since equal files are taken once."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        make_video(path, list(range(36 + number)), size, time_base=Fraction(1, 25))


SMALL_MODEL = {"model.base_channels": "8", "model.norm_groups": "1", "model": "tiny", "precision": "fp32"}
SMALL_DATA = {"data.num_frames": "8", "data.resolution": "32", "data.batch_size": "1", "data.num_workers": "0"}
SMALL_CLIPS = {"data.num_clips": "{train:4,val:2,test:2}", "data.clip_frames": "10", "data.clip_size": "32"}
ON_CPU = {"trainer.accelerator": "cpu", "trainer.devices": "1"}
LESS = {
    "train": SMALL_MODEL | SMALL_DATA | ON_CPU | {"trainer.max_steps": "2", "trainer.val_check_interval": "2"}
    | {"trainer.num_nodes": "1", "loss.perceptual.weight": "0", "page.clips": "1", "strategy": "auto"},
    "evaluate": ON_CPU | {"page.clips": "1"},
    "plan": SMALL_MODEL | {"data.num_frames": "8", "data.resolution": "32", "loss.perceptual.weight": "0"},
    "encode": ON_CPU | {"num_workers": "1", "tiling.tile_pixels": "null"},
    "reconstruct": {"trainer.accelerator": "cpu"},
    "prepare": {"workers": "2", "min_shot": "8"},
    "verify": {"workers": "2"},
    "index": {"workers": "2"},
    "synthetic": {"clip_frames": "10", "clip_size": "32"},
}  # fmt: skip


EXPERIMENT = "docs/experiment.md"
OF_ARMS = {
    "metrics": "[psnr]",
    "callbacks.best": "null",
    "report.latents": "false",
    "seed": "0",
}  # of many in one command


def made_small(command: Command) -> list[str]:
    """The command line with what makes it quick in the place of what the page says."""
    if not command.entry:
        _, script, *arguments = command.text.split()
        return [sys.executable, str(ROOT / script), *arguments, "--steps", "2"]
    entry, given = command.entry, command.overrides
    less = dict(LESS.get(entry, {}))
    chosen = {override.partition("=")[0] for override in given}
    if entry == "train" and not chosen & set(DEMO_UNLESS):
        less["experiment"] = "demo"
    if entry in ("train", "evaluate") and (
        "data=synthetic" in given or not chosen & {"data", "experiment", "ckpt", "source"}
    ):
        less |= (
            SMALL_DATA
            | SMALL_CLIPS
            | {"data.cache_dir": "cache"}
            | ({"data": "synthetic"} if entry == "evaluate" else {})
        )
    if entry == "train" and "init_from" not in chosen:
        less |= {"init_from": "null"} | (
            {} if "model.channel_multipliers" in chosen else {"model.channel_multipliers": "[1,2,2,2]"}
        )
    if "init_from=tiny" in given:
        less = {name: value for name, value in less.items() if not name.startswith("model.")}
    if "ablation/" in command.text:
        less |= OF_ARMS
    if "protocol=ucf101-17" in given:
        less["data.resolution"] = "64"
    if entry == "encode" and "resolution" in chosen:
        less["resolution"] = "32"
    if entry == "evaluate" and ("data=folder" in given or "source" in chosen):
        less |= {"data.num_workers": "0", "data.batch_size": "1"}
    kept = [override for override in given if override.partition("=")[0] not in less]
    flags = ["-m"] if re.search(r"\.py -m ", command.text) else []
    found = ENTRY.search(command.text)
    assert found
    program = [str(ROOT / found[1])] if found[1].endswith(".py") else found[1].split()
    return [sys.executable, *program, *flags, *kept, *(f"{name}={value}" for name, value in less.items())]


def run(arguments: list[str], folder: Path, timeout: int = 300) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def run_line(text: str, folder: Path) -> None:
    run(made_small(Command("", text)), folder)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader who has videos and has trained before."""
    folder = tmp_path_factory.mktemp("reader")
    clips(folder / "videos", [f"clip{i}.mp4" for i in range(10)])
    clips(folder / "films", ["first.mp4", "second.mp4"], size=(96, 128))
    names = [f"{label}/v_{label}_g{group:02}_c01.avi" for label in ("Archery", "Bowling") for group in range(1, 4)]
    clips(folder / "UCF-101", names)
    for name in ("film.mp4", "my film (1), cut=2 & more.mp4"):
        shutil.copy(folder / "videos" / "clip0.mp4", folder / name)
    (folder / "photos").mkdir()
    for number in range(4):
        Image.new("RGB", (48, 32), (number, 0, 0)).save(folder / "photos" / f"{number}.png")
    (folder / "webdataset").mkdir()
    with tarfile.open(folder / "webdataset" / "00000.tar", "w") as tar:  # as others write them
        for video in sorted((folder / "videos").iterdir()):
            tar.add(video, video.name)
            tar.addfile(tarfile.TarInfo(f"{video.stem}.txt"))
    run_line("python train.py output_dir=outputs/run", folder)
    return folder


def to_run(page: str) -> list[Command]:
    commands = [command for command in COMMANDS if command.page == page]
    skipped = (*NOT_RUN, *(start for start in NOT_COMPOSED if "examples/" not in start))
    return [command for command in commands if not any(start in command.text for start in skipped)]


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name in NAMES if to_run(name) and name != EXPERIMENT])
def test_the_commands_of_a_page_run(page: str, reader: Path, tmp_path: Path) -> None:
    """One after the other, as they stand, small: what one leaves the next one finds."""
    folder = tmp_path / "reader"
    shutil.copytree(reader, folder)
    commands = to_run(page)
    text = " ".join(command.text for command in commands)
    for dataset, source in (("folder", "videos/"), ("ucf101", "UCF-101/")):
        if f"dataset={dataset}" not in text:
            run_line(f"python -m data.prepare dataset={dataset} source={source}", folder)
    for command in commands:
        run(made_small(command), folder)


def as_ucf101(clips: Path, folder: Path) -> None:
    """Clips in the folders of their classes, and lists 01 of them: the first seven groups are the test's."""
    shutil.copytree(clips, folder / "UCF-101", dirs_exist_ok=True)
    lists = folder / "ucfTrainTestlist"
    lists.mkdir()
    names = sorted(path.relative_to(folder / "UCF-101").as_posix() for path in (folder / "UCF-101").rglob("*.avi"))
    tested = [name for name in names if int(name.partition("_g")[2][:2]) < 8]
    (lists / "testlist01.txt").write_text("\n".join(tested))
    (lists / "trainlist01.txt").write_text("\n".join(f"{name} 1" for name in names if name not in tested))


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_experiment_runs_on_real_clips_from_preparation_to_the_published_table(
    shared_clips: Path, reader: Path, tmp_path: Path
) -> None:
    """The page's commands in its order; a copy of the clips stands in for the download, and no GPU and no hub is asked."""
    shutil.copytree(reader / "photos", tmp_path / "IMAGES")
    as_ucf101(shared_clips / "ucf101", tmp_path)
    left_out = ("make demo", "source .venv", "hf auth login", "get=", "download=true")
    commands = [one for one in COMMANDS if one.page == EXPERIMENT and not any(text in one.text for text in left_out)]
    for command in commands:
        run(made_small(command), tmp_path, timeout=3000)
    index = json.loads((tmp_path / "datasets/ucf101/test/index.json").read_text())
    tested = sum(shard["samples"] for shard in index["shards"])
    for run_folder in ("outputs/ucf101/with", "outputs/opl/0", "outputs/opl/1"):
        assert json.loads((tmp_path / run_folder / "metrics.json").read_text())["num_clips"] == tested > 10
    with (tmp_path / "outputs/ablation/comparison.csv").open(newline="") as file:
        arms = [row["experiment"] for row in csv.DictReader(file) if row["status"] == "completed"]
    assert arms == sorted(f"ablation/{path.stem}" for path in (CONF / "experiment/ablation").glob("*.yaml"))
    pages = list((tmp_path / "outputs").rglob("comparison.md"))
    assert any("HunyuanVideo" in report.read_text() for report in (tmp_path / "outputs").rglob("report.md"))
    assert len(pages) == 5, "of the sweeps over opl, the arms and the penalty's weights, and of both evaluations"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Python examples load: models under the names that they use, and latents."""
    from tae.encode import main

    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TemporalAutoencoder(base_channels=8, channel_multipliers=(1, 2, 2, 2), norm_groups=1)
    for name in ("outputs/model", "my-tae"):
        model.save_pretrained(folder / name)
    TinyDecoder(width=8, blocks=1).save_pretrained(folder / "tiny-decoder")
    clips(folder / "videos", ["a.mp4", "b.mp4"])
    given = {"ckpt": "my-tae", "source": "videos", "output": "latents"}
    small = {"trainer.accelerator": "cpu", "num_workers": 0, "resolution": 32, "tiling.tile_pixels": "null"}
    paths = {name: str(folder / value) for name, value in given.items()}
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("encode", overrides=[f"{name}={value}" for name, value in (paths | small).items()])
    main(cfg)
    return folder


PYTHON = [(name, number, text) for page, name in zip(PAGES, NAMES, strict=True)
          for number, text in enumerate(blocks(page.read_text(), "python"))]  # fmt: skip


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(("page", "number", "text"), PYTHON, ids=[f"{name}-{number}" for name, number, _ in PYTHON])
def test_python_examples_run(
    page: str, number: int, text: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_folder)
    frames = torch.randint(0, 256, (1, 9, 32, 40, 3), dtype=torch.uint8)
    clip = frames_to_clip(frames)

    class Pipeline:
        vae: Any = None

    names: dict[str, Any] = {
        "frames": frames,
        "video": clip,
        "generated": torch.randn(1, 16, 2, 4, 5),
        "latents": torch.randn(1, 16, 2, 4, 5),
        "pipeline": Pipeline(),
        "pieces": clip.split(4, dim=2),
        "height": 32,
        "width": 40,
    }
    if "diffusers_adapter" in text:
        pytest.importorskip("diffusers")
    exec(compile(text, f"{page}[{number}]", "exec"), names)
    if page == "README.md":
        assert names["frames"].shape == frames.shape
