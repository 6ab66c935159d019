"""Checkpoints on a failing disk, bit by bit; and what makes a resumed run another one than it was."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import OmegaConf

from tae import UserError
from tae.model.checkpoint_file import read_checkpoint
from tae.runtime.files import remove_leftovers, write_text
from tae.training.checkpointing import AtomicCheckpointIO, BestCheckpoint
from tae.training.resume import check_resumable, find_resumable
from tae.training.run import find_checkpoint
from tae.video.writer import write_video

CONTENT = {
    "state_dict": {"model.x": torch.arange(5000.0)},
    "architecture": {"base_channels": 8},
    "config": {"seed": 0},
}


@pytest.fixture
def fill_disk(tmp_path: Path) -> Callable[[str], None]:
    """A function after which the writing of a file of this name finds no space: /dev/full stands where it writes first."""
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full, a disk without space")
    return lambda name: (tmp_path / f".{name}.{os.getpid()}.tmp").symlink_to("/dev/full")


def write_checkpoint(path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint(CONTENT | {"global_step": 2}, path)


def write_clip(path: Path) -> None:
    write_video(path, torch.randint(0, 256, (60, 64, 64, 3), dtype=torch.uint8), 24)


WRITERS: dict[str, Callable[[Path], None]] = {
    "last.ckpt": write_checkpoint,
    "clip.mp4": write_clip,
    "metrics.json": lambda path: write_text(path, "{}"),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("before", [b"the one before", None])
def test_a_full_disk_leaves_what_was_there(
    name: str, before: bytes | None, tmp_path: Path, fill_disk: Callable[[str], None]
) -> None:
    path = tmp_path / name
    if before is not None:
        path.write_bytes(before)
    fill_disk(name)
    with pytest.raises(UserError, match=rf"{name} cannot be written: no space left.*resume=auto"):
        WRITERS[name](path)
    assert [file.name for file in tmp_path.iterdir()] == ([] if before is None else [name])
    assert before is None or path.read_bytes() == before


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "new" / "last.ckpt")
    found = AtomicCheckpointIO().load_checkpoint(tmp_path / "new" / "last.ckpt")
    assert torch.equal(found["state_dict"]["model.x"], CONTENT["state_dict"]["model.x"])
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["last.ckpt"]


def test_the_name_appears_after_the_content_is_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    flushed: list[tuple[bool, bool]] = []
    monkeypatch.setattr(os, "fsync", lambda file: flushed.append((os.fstat(file).st_size > 20_000, path.exists())))
    write_checkpoint(path)
    assert flushed[0] == (True, False)  # the content, before there is a name
    assert len(flushed) == 2  # and then the folder


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    kept = [".gitignore", "last.ckpt", ".notes.tmp", "a.1.tmp"]
    for name in [*kept, ".last.ckpt.123.tmp", ".best.mp4.4567.tmp"]:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path / "missing")
    assert {file.name for file in tmp_path.iterdir()} == set(kept)


DAMAGE: dict[str, Callable[[bytearray], bytes]] = {
    "nothing left": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "without its end": lambda content: content[:-1],
    "zeros": lambda content: bytes(len(content)),
    "another file": lambda content: b"RIFF" + os.urandom(5000),
    "one bit of a weight": lambda content: flipped(
        content, content.index(CONTENT["state_dict"]["model.x"].numpy()[9:12].tobytes())
    ),
    "one bit of the structure": lambda content: flipped(content, content.index(b"state_dict")),
}


def flipped(content: bytearray, place: int) -> bytes:
    content[place] ^= 4
    return bytes(content)


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_newest_checkpoint_is_passed_over(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """torch.load reads a file with a flipped bit without a word."""
    write_checkpoint(tmp_path / "best.ckpt")
    damaged = tmp_path / "last.ckpt"
    damaged.write_bytes(DAMAGE[name](bytearray((tmp_path / "best.ckpt").read_bytes())))
    assert find_resumable(tmp_path) == tmp_path / "best.ckpt"
    assert f"passes over last.ckpt: {damaged} cannot be read" in capsys.readouterr().out


def test_every_byte_counts(tmp_path: Path) -> None:
    """Wherever a bit flips, the file is refused or what is read is the same."""
    path = tmp_path / "last.ckpt"
    small = CONTENT | {"state_dict": {"model.x": torch.arange(40.0)}}
    AtomicCheckpointIO().save_checkpoint(small, path)
    content = path.read_bytes()
    refused = 0
    for place in range(0, len(content), 3):
        path.write_bytes(flipped(bytearray(content), place))
        try:
            found = read_checkpoint(path)
        except UserError:
            refused += 1
        else:
            assert torch.equal(found["state_dict"]["model.x"], small["state_dict"]["model.x"])
            assert {key: found[key] for key in ("architecture", "config")} == {
                key: small[key] for key in ("architecture", "config")
            }
    assert refused > 100


def test_all_damaged_is_no_reason_to_start_anew(tmp_path: Path) -> None:
    assert find_resumable(tmp_path) is None
    (tmp_path / "last.ckpt").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 checkpoints"):
        find_resumable(tmp_path)


def test_a_checkpoint_between_two_steps_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By its name it is refused: a run resumed from it had other weights without a word."""
    write_checkpoint(tmp_path / "last.ckpt")
    between = CONTENT | {"between_steps": True, "global_step": 3}
    AtomicCheckpointIO().save_checkpoint(between, tmp_path / "best.ckpt")
    assert find_resumable(tmp_path) == tmp_path / "last.ckpt"
    assert "passes over best.ckpt" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"best.ckpt cannot be resumed exactly.*last.ckpt"):
        find_checkpoint(OmegaConf.create({"resume": str(tmp_path / "best.ckpt"), "output_dir": str(tmp_path / "out")}))


@pytest.mark.parametrize(("steps", "chosen"), [((4, 2), "last"), ((4, 4), "last"), ((2, 4), "best")])
@pytest.mark.parametrize("newest", ["last", "best"])
def test_the_checkpoint_furthest_on_is_resumed(
    steps: tuple[int, int], chosen: str, newest: str, tmp_path: Path
) -> None:
    """Whatever the times of the files: a copied folder has them in any order."""
    for name, step in zip(("last", "best"), steps, strict=True):
        AtomicCheckpointIO().save_checkpoint(CONTENT | {"global_step": step}, tmp_path / f"{name}.ckpt")
        os.utime(tmp_path / f"{name}.ckpt", (1 + (name == newest),) * 2)
    assert find_resumable(tmp_path) == tmp_path / f"{chosen}.ckpt"


@pytest.mark.parametrize(("pending", "chosen"), [(True, "best"), (False, "last")])
def test_at_one_step_a_validation_that_is_done_is_not_repeated(pending: bool, chosen: str, tmp_path: Path) -> None:
    """`last.ckpt` is written before a validation, `best.ckpt` after it; from the first one it would be logged twice."""
    for name, state in (("last", pending), ("best", False)):
        callbacks = {"LastCheckpoint": {"validation_pending": state}}
        content = CONTENT | {"global_step": 4, "callbacks": callbacks}
        AtomicCheckpointIO().save_checkpoint(content, tmp_path / f"{name}.ckpt")
    assert find_resumable(tmp_path) == tmp_path / f"{chosen}.ckpt"


def best_state(folder: Path, score: float) -> tuple[BestCheckpoint, dict[str, Any]]:
    """A best checkpoint in a folder, and what a checkpoint remembers of it."""
    callback = BestCheckpoint(str(folder), "val/psnr")
    path = Path(str(callback.dirpath), "best.ckpt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")
    callback.best_model_path = callback.kth_best_model_path = str(path)
    callback.best_model_score = callback.kth_value = torch.tensor(score)
    callback.best_k_models = {str(path): torch.tensor(score)}
    return callback, callback.state_dict()


def test_a_moved_run_keeps_its_best_checkpoint(tmp_path: Path) -> None:
    """Its score was forgotten, so that a worse one took its place, and the old folder's was the one to be evaluated."""
    _, state = best_state(tmp_path / "old", 30.0)
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    moved = BestCheckpoint(str(tmp_path / "new"), "val/psnr")
    moved.load_state_dict(state)
    best = str(tmp_path / "new" / "best.ckpt")
    assert moved.best_model_path == moved.kth_best_model_path == best
    assert list(moved.best_k_models) == [best]
    assert moved.best_model_score is not None
    assert moved.best_model_score.item() == 30.0
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(reduce_boolean_decision=bool))
    assert not moved.check_monitor_top_k(trainer, torch.tensor(29.0))


def test_another_folder_has_no_best_checkpoint_yet(tmp_path: Path) -> None:
    """Resumed from another run's checkpoint into a new folder: the best there is the first that is validated there."""
    _, state = best_state(tmp_path / "old", 30.0)
    branch = BestCheckpoint(str(tmp_path / "new"), "val/psnr")
    branch.load_state_dict(state)
    assert (branch.best_model_path, branch.best_model_score) == ("", None)


def test_earlier_checkpoints_are_asked_by_the_name_that_they_have(tmp_path: Path) -> None:
    plain = ModelCheckpoint(dirpath=tmp_path, filename="best", monitor="val/psnr", mode="max")
    assert BestCheckpoint(str(tmp_path), "val/psnr").state_key == plain.state_key


CONFIG = {
    "seed": 0,
    "output_dir": "a",
    "optimizer": {"lr": 1e-3},
    "scheduler": None,
    "model": {"base_channels": 8, "image_vae": "x"},
    "loss": {"kl": {"weight": 1e-6}},
    "trainer": {"precision": "32-true"},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"lr": 1e-4}}, "optimizer.lr was 0.001 and is 0.0001"),
        ({"scheduler": {"max_lr": 1}}, "scheduler"),
        ({"model": {"base_channels": 16}}, "model.base_channels was 8 and is 16"),
    ],
)
def test_settings_that_a_checkpoint_would_win_over_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_resumable({"config": CONFIG}, CONFIG | change, Path("last.ckpt"))


def test_other_settings_are_said_aloud(capsys: pytest.CaptureFixture[str]) -> None:
    quiet = {"output_dir": "b", "model": {"base_channels": 8, "image_vae": None}}
    loud = {"loss": {"kl": {"weight": 1e-5}}, "trainer": {"precision": "bf16-mixed"}}
    check_resumable({"config": CONFIG}, CONFIG | quiet | loud, Path("last.ckpt"))
    assert capsys.readouterr().out.splitlines() == [
        "resume: loss.kl.weight was 1e-06 and is 1e-05",
        "resume: trainer.precision was '32-true' and is 'bf16-mixed'",
    ]
