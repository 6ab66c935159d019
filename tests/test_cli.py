"""The command lines as a user meets them: every config composes, every mistake gets one message and no traceback."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from tae import UserError
from tae.model.pretrained import load_model
from tae.runtime.cli import chooses, empty_group, find_user_error, nested
from tae.runtime.config import plain
from tae.train import GROUPS as DEMO_UNLESS
from tae.training.run import train
from tests.fakes.warm import run_warm

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
GROUPS = (
    "callbacks",
    "data",
    "debug",
    "experiment",
    "launcher",
    "logger",
    "loss",
    "metrics",
    "model",
    "optimizer",
    "precision",
    "scheduler",
)
CHOICES = [
    (group, file.stem)
    for group in (*GROUPS, "strategy", "trainer")
    for file in sorted((CONF / group).glob("*.yaml"))
    if file.stem != "from_checkpoint"  # for evaluation
]


def composed(*overrides: str) -> DictConfig:
    """As `train.py` composes it: the demo, unless something else is chosen."""
    demo = [] if chooses(overrides, DEMO_UNLESS) else ["experiment=demo"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", overrides=[*overrides, *demo])


def compose_train(*overrides: str) -> dict[str, Any]:
    return plain(composed(*overrides, "output_dir=out"))


def run(script: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    return run_warm([*script.split(), *arguments], cwd, environment)


def test_the_groups_of_the_contract_have_choices() -> None:
    assert {group for group, _ in CHOICES} == {*GROUPS, "strategy", "trainer"}
    assert len(CHOICES) >= 20


COLUMNS = {group: [choice for other, choice in CHOICES if other == group] for group, _ in CHOICES}


@pytest.mark.parametrize("row", range(max(map(len, COLUMNS.values()))))
def test_every_choice_composes(row: int) -> None:
    """One of each group at a time, again from the first where a group has fewer."""
    chosen = {group: choices[row % len(choices)] for group, choices in COLUMNS.items()}
    needed = ["model.class_name=AutoencoderKLWan"] if chosen["model"] == "diffusers" else []
    assert compose_train(*(f"{group}={choice}" for group, choice in chosen.items()), *needed)["seed"] == 0


def test_the_reference_run_is_the_references() -> None:
    config = compose_train("experiment=ucf101", "trainer.devices=8")
    data, trainer, optimizer, loss = (config[name] for name in ("data", "trainer", "optimizer", "loss"))
    assert (data["num_frames"], data["resolution"], data["batch_size"]) == (32, 256, 1)
    assert (trainer["precision"], trainer["gradient_clip_val"], trainer["devices"]) == ("bf16-mixed", 1.0, 8)
    assert (optimizer["_target_"], optimizer["lr"], optimizer["weight_decay"]) == ("torch.optim.AdamW", 1e-5, 0.0)
    weights = {name: term["weight"] for name, term in loss.items() if isinstance(term, dict) and term["weight"]}
    assert weights == {"reconstruction": 1.0, "perceptual": 1.0, "kl": 1e-6, "opl": 1.0}


def test_a_choice_on_the_command_line_wins_over_the_experiment() -> None:
    assert compose_train("experiment=ucf101", "model=tiny")["model"]["base_channels"] < 128


def changed(before: Any, after: Any, key: str = "") -> dict[str, Any]:
    """{dotted key: value} of what differs."""
    if isinstance(before, dict) and isinstance(after, dict):
        both = [changed(before.get(name), after.get(name), f"{key}.{name}") for name in before.keys() | after.keys()]
        return {name: value for part in both for name, value in part.items()}
    return {} if before == after else {key.lstrip("."): after}


ARMS = sorted(f"ablation/{file.stem}" for file in (CONF / "experiment/ablation").glob("*.yaml") if file.stem != "base")


def test_an_arm_of_the_ablation_differs_from_its_base_in_one_choice() -> None:
    base = compose_train("experiment=ablation/base")
    differences = {arm: changed(base, compose_train(f"experiment={arm}")) for arm in ARMS}
    assert len(differences) > 12
    assert {arm: one for arm, one in differences.items() if len(one) != 1} == {}


def test_a_pattern_may_name_configs_of_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert nested("experiment=glob(ablation/*)") == f"experiment={','.join(sorted(['ablation/base', *ARMS]))}"
    assert nested("experiment=glob(ablation/kl_*)") == "experiment=ablation/kl_1e-4,ablation/kl_1e-5,ablation/kl_1e-7"
    for other in (
        "experiment=glob(ucf*)",
        "experiment=ablation/ema",
        "trainer.max_steps=glob(a/b)",
        "-m",
        "a/b=glob(c/d)",
    ):
        assert nested(other) == other
    with pytest.raises(SystemExit):
        nested("experiment=glob(ablations/*)")
    assert "experiment=glob(ablations/*) matches nothing. Folders of experiment: ablation." in capsys.readouterr().err


@pytest.mark.slow
def test_runs_of_one_sweep_share_a_folder_whatever_their_names(tmp_path: Path) -> None:
    done = run(f"{ROOT}/train.py", "-m", "experiment=ablation/ema,demo", "trainer.max_steps=0", cwd=tmp_path)
    assert done.returncode == 1
    (sweep,) = (tmp_path / "outputs" / "train").iterdir()
    assert [name for name in ("0", "1", "comparison.md") if not (sweep / name).exists()] == []
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["train"]


def test_debugging_wins_over_the_experiment_and_the_command_line_over_both() -> None:
    quick = ("experiment=ucf101", "debug=quick")
    assert (compose_train(*quick)["trainer"]["max_steps"], compose_train(*quick)["data"]["num_workers"]) == (4, 0)
    assert compose_train(*quick, "trainer.max_steps=7")["trainer"]["max_steps"] == 7


def test_help_shows_every_setting() -> None:
    shown = run("train.py", "--cfg", "job").stdout
    assert {"num_frames", "max_skipped", "image_vae"} <= {line.strip().split(":")[0] for line in shown.splitlines()}
    assert OmegaConf.create(shown)


SHARDS = "data.shards.train=/nowhere/*.tar"
MISTAKES = {
    "unknown experiment": (["experiment=ucf102"], "ucf102"),
    "unknown key": (["data.frames=3"], "frames"),
    "no frames": (["data.num_frames=0"], "data.num_frames=0"),
    "negative resolution": (["data.resolution=-64"], "data.resolution=-64"),
    "negative weight": (["loss.kl.weight=-1"], "loss.kl.weight=-1"),
    "no shards": (["data=folder", SHARDS, "loss.perceptual.weight=0"], r"/nowhere/\*\.tar"),
    "nothing to fine-tune": (["experiment=mixkit"], "init_from=CHECKPOINT"),
    "no weights": (["init_from=/nowhere/a.ckpt"], "init_from=/nowhere/a.ckpt: no such file"),
    "weights of another model": (["model.base_channels=8"], "init_from=null"),
    "no checkpoint": (["resume=/nowhere/last.ckpt"], "no such checkpoint"),
    "no image weights": (["init_from=null", "model.image_vae=/nowhere/vae"], "model.image_vae"),
    "no rate": (["optimizer.lr=0"], "optimizer.lr=0"),
    "no such list of loggers": (["logger=[csv,mlflow]"], "mlflow"),
    "no steps": (["trainer.max_steps=0"], "trainer.max_steps=0"),
    "no device": (["trainer.accelerator=cuda"], "cuda|CUDA|GPU"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_before_any_work(name: str, tmp_path: Path) -> None:
    arguments, message = MISTAKES[name]
    error = catch(lambda: train(composed(*arguments, f"output_dir={tmp_path}")))
    known = find_user_error(error) or (error if isinstance(error, HydraException) else None)
    assert known is not None, f"{error!r} would end in a traceback"
    assert re.search(message, str(known))
    assert not list(tmp_path.rglob("*.ckpt"))


def catch(call: Callable[[], object]) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011  (looked at by the caller)
        call()
    return caught.value


def test_a_mistake_ends_in_one_message(tmp_path: Path) -> None:
    done = run("train.py", "data.num_frames=0", f"output_dir={tmp_path}")
    assert done.returncode == 1
    assert done.stderr.startswith("error: data.num_frames=0")
    assert "Traceback" not in done.stderr


def test_an_output_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("train.py", f"output_dir={tmp_path}/file/run")
    assert done.returncode == 1
    assert done.stderr.startswith("error: output_dir=")
    assert "Traceback" not in done.stderr


COMMANDS = {
    "no switch": ("-m tae.export", ["output=new", "push=maybe"], "push=maybe is not allowed: give true or false."),
    "no GPU": (
        "evaluate.py",
        ["trainer.accelerator=gpu", "output_dir=new"],
        "trainer.accelerator=gpu: PyTorch finds no such device here.",
    ),
    "no folder": ("-m tae.export", ["output=file"], "output=file cannot be written (it is a file)"),
    "no tile": (
        "-m tae.reconstruct",
        ["source=file", "output=new", "tiling.tile_pixels=abc"],
        "tiling.tile_pixels=abc is not allowed",
    ),
    "no SLURM": ("train.py", ["-m", "launcher=slurm", "output_dir=new"], "launcher=slurm finds no SLURM here"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_refuses_in_one_message(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only shows on the command line: none of these reaches the work, where it would end in a traceback."""
    script, arguments, message = COMMANDS[name]
    if name == "no SLURM":
        pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run(str(ROOT / script) if script.endswith(".py") else script, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.mp4")) + list(tmp_path.rglob("*.safetensors"))


def test_the_demo_is_what_the_command_runs_alone() -> None:
    shown = OmegaConf.create(run("train.py", "--cfg", "job").stdout)
    assert (shown.name, shown.model.base_channels, shown.trainer.accelerator) == ("demo", 16, "cpu")


@pytest.mark.parametrize(
    "chosen", [("data=folder",), ("experiment=ucf101", "data=folder"), (empty_group("experiment=null"),)]
)
def test_what_is_chosen_trains_for_real(chosen: tuple[str, ...]) -> None:
    config = compose_train(*chosen)
    reference = compose_train("experiment=ucf101")
    for group in ("model", "loss", "optimizer", "scheduler", "trainer"):
        assert config[group] == reference[group], group
    differs = {name for name in config["data"] if config["data"][name] != reference["data"][name]}
    assert differs <= {"shards", "num_workers", "shuffle_buffer"}
    assert config["init_from"] is None


@pytest.mark.parametrize(
    ("arguments", "alone"),
    [
        ([], True),
        (["-m", "loss.opl.weight=0,1"], True),
        (["trainer.max_steps=3", "logger=csv", "data.batch_size=1"], True),
        (["data=folder"], False),
        (["model=sd35"], False),
        (["~experiment"], False),
        (["--config-name=mine"], False),
    ],
)
def test_the_demo_is_left_to_command_lines_that_choose_nothing(arguments: list[str], alone: bool) -> None:
    assert chooses(arguments, DEMO_UNLESS) is not alone


def test_what_this_machine_lacks_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU, no image autoencoder, no VGG, no shards: one message before the run, with what to do about each."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("tae.losses.lpips.has_weights", lambda net: False)
    monkeypatch.setattr("tae.losses.lpips._url", lambda net: "http://127.0.0.1:9/vgg.pth")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    cfg = composed("data=folder", "model.image_vae=nobody/nothing", f"output_dir={tmp_path}/run")
    with pytest.raises(UserError) as caught:
        train(cfg)
    told = str(caught.value)
    for way in (
        "trainer.accelerator=cpu",
        "python -m data.prepare",
        "data.shards.train=",
        "data.shards.test=",
        "hf download nobody/nothing",
        "python -m tae.weights get=vgg",
        "loss.perceptual.weights_path=PATH",
        "loss.perceptual.weight=0",
        "or model.image_vae=null",
    ):
        assert way in told, told
    assert not (tmp_path / "run").exists()


TYPOS = {
    "key": (["init_form=tiny"], "init_form is unknown. Did you mean init_from?"),
    "group": (["experimnt=ucf101"], "experimnt is unknown. Did you mean experiment?"),
    "empty group": (["debugg=quick"], "debugg is unknown. Did you mean debug?"),
    "nested key": (["data.frames=3"], "data.frames is unknown. Did you mean data.num_frames?"),
    "key of another group": (["num_frames=3"], "num_frames is unknown. Did you mean data.num_frames?"),
    "argument": (["trainer.overfit_batches=1"], "is given as +trainer.overfit_batches=1"),
    "brackets": (["data.cache_dir=clips (1)"], """'data.cache_dir="clips (1)"'"""),
    "choice": (["experiment=ucf102"], "ucf102"),
}


@pytest.mark.parametrize("name", TYPOS)
def test_a_typo_on_the_command_line_is_answered(name: str) -> None:
    """With the way to write it, and before torch is imported."""
    arguments, message = TYPOS[name]
    program = (
        "import sys; from tae.train import main; sys.argv[0] = 'train.py'\ntry: main()\nexcept SystemExit as end:\n    "
    )
    program += "sys.exit('torch was imported' if 'torch' in sys.modules else end.code)"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "HYDRA_FULL_ERROR" not in done.stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "truncated"), (b"PK\x03\x04half a file", "truncated"), (None, "no such file")],
)
def test_what_is_no_checkpoint_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_model(path)
