"""Resuming: which checkpoint to resume from, and which settings may differ from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tae.model.checkpoint_file import read_checkpoint
from tae.runtime.config import flat
from tae.runtime.errors import UserError

# What a resumed run may change without a word, and what it may not change at all.
FREE = (
    *(
        "resume",
        "init_from",
        "name",
        "output_dir",
        "data.output_dir",
        "data.cache_dir",
        "callbacks.",
        "logger.",
        "metrics.",
    ),
    *("model.image_vae", "model.init_from", "model.gradient_checkpointing", "model.compile_blocks", "validate_first"),
    "trainer.default_root_dir",
)
FIXED = ("model.", "optimizer.", "scheduler")


def find_resumable(folder: Path) -> Path | None:
    """The newest checkpoint of an output folder to go on from, or None where there is none. Others are passed over aloud.

    Raises:
        UserError: there are checkpoints, and none of them will do. Starting anew would write over them.
    """
    found = sorted(folder.glob("*.ckpt"), key=lambda file: file.stat().st_mtime, reverse=True)
    for path in found:
        try:
            if read_checkpoint(path).get("between_steps"):
                print(f"resume=auto passes over {path}: validated between two batches of one step, it is not exact")
                continue
        except UserError as error:
            print(f"resume=auto passes over a damaged checkpoint: {error}")
        else:
            return path
    if found:
        raise UserError(
            f"resume=auto: none of the {len(found)} checkpoints in {folder} can be used; see above. Move them away to start "
            "anew there."
        )
    return None


def check_resumable(checkpoint: Mapping[str, Any], config: Mapping[str, Any], source: Path) -> None:
    """Compare a run's settings with those of the checkpoint that it goes on from, and say what differs.

    Raises:
        UserError: a setting differs where the checkpoint would win (optimizer, schedule) or would not fit (model).
    """
    was, now = flat(checkpoint["config"]), flat(config)
    changed = [name for name in sorted(was | now) if was.get(name) != now.get(name) and not name.startswith(FREE)]
    lines = {name: f"{name} was {was.get(name)!r} and is {now.get(name)!r}" for name in changed}
    if refused := [lines[name] for name in changed if name.startswith(FIXED)]:
        raise UserError(
            f"{source} was written with other settings: {', '.join(refused)}. A resumed run has its checkpoint's model, "
            "optimizer and schedule: give them as they were, or start a new run from the weights with init_from."
        )
    for line in lines.values():
        print(f"resume: {line}")
