"""Resuming: which checkpoint to resume from, and which settings may differ from it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tae.model.checkpoint_file import read_checkpoint
from tae.runtime.config import flat
from tae.runtime.console import say
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
    *(
        "model.image_vae",
        "model.source",
        "model.init_from",
        "model.gradient_checkpointing",
        "model.compile_blocks",
        "validate_first",
    ),
    "trainer.default_root_dir",
)
LAST = "last.ckpt"
FIXED = ("model.", "optimizer.", "scheduler", "trainable", "ema.", "adversary")
EXTENDABLE = "scheduler.total_steps"
# Settings of later versions, with what earlier ones did.
ADDED: dict[str, Any] = {
    **{"trainable": "all", "model.trainable": "all"},
    **{"model.norm": "group", "model.frontend": "conv", "model.folds": 0},
    **{"model.temporal_init": "centric", "model.temporal_padding": "replicate"},
    **{"loss.wavelet._target_": "Wavelet", "loss.wavelet.weight": 0.0, "loss.wavelet.levels": 1},
    **{"loss.temporal._target_": "Temporal", "loss.temporal.weight": 0.0},
    **{"loss.local_correlation._target_": "LocalCorrelation", "loss.local_correlation.weight": 0.0},
    **{"loss.local_correlation.threshold": 0.75},
    **{"loss.equivariance._target_": "Equivariance", "loss.equivariance.weight": 0.0},
    **{"loss.equivariance.mode": "replace", "loss.equivariance.scales": None, "loss.equivariance.turns": None},
    **{"loss.spectrum._target_": "Spectrum", "loss.spectrum.weight": 0.0, "loss.spectrum.delta": 1.0},
    **{"loss.reconstruction.learned_scale": False, "loss.reconstruction.distance": "l1", "teacher": None},
    **{"loss.perceptual.frames": None},
    **{"loss.features._target_": "FeatureMatching", "loss.features.weight": 0.0},
    **{"model.latent_noise": 0.0, "model.latent_mask": 0.0, "model.channel_dropout": None},
}
RENAMED = {"AutoencoderLoss": "Objective"}  # classes of version 0.1 in the configs of its checkpoints


def find_resumable(folder: Path) -> Path | None:
    """The checkpoint of an output folder that is furthest on, or None where there is none; says which are passed over.

    The largest step counts. At one step it is the checkpoint that was written after the step's validation, which a run
    resumed from the one before it would repeat and log twice; else `last.ckpt`. Times of files would not do: a copied
    folder has them in any order.

    Raises:
        UserError: there are checkpoints, and none of them will do. Starting from scratch would write over them.
    """
    found = sorted(folder.glob("*.ckpt"), key=lambda file: (file.name == LAST, file.name), reverse=True)
    progress: dict[Path, tuple[int, bool]] = {}
    for path in found:
        try:
            checkpoint = read_checkpoint(path)
            check_exact(checkpoint, path)
            progress[path] = checkpoint.get("global_step", 0), not is_validation_pending(checkpoint)
        except UserError as error:
            say(f"resume=auto passes over {path.name}: {error}")
    if found and not progress:
        raise UserError(
            f"resume=auto: none of the {len(found)} checkpoints in {folder} can be used; see above. Move them away to "
            "start from scratch there."
        )
    return max(progress, key=lambda path: progress[path], default=None)


def is_validation_pending(checkpoint: Mapping[str, Any]) -> bool:
    """Whether a run resumed from it begins with a validation (`tae.training.checkpointing.LastCheckpoint`)."""
    callbacks = checkpoint.get("callbacks", {}).values()
    return any(isinstance(state, dict) and state.get("validation_pending") for state in callbacks)


def check_exact(checkpoint: Mapping[str, Any], source: Path) -> None:
    """Refuse a checkpoint that was written between two batches of one step: it has no gradients.

    Raises:
        UserError: it is one.
    """
    if checkpoint.get("between_steps"):
        raise UserError(
            f"{source} cannot be resumed exactly: it was written at a validation between two batches of one step "
            f"(trainer.accumulate_grad_batches). Resume from {LAST} beside it, or start from its weights with init_from."
        )


def check_resumable(checkpoint: Mapping[str, Any], config: Mapping[str, Any], source: Path) -> None:
    """Compare a run's settings with those of the checkpoint that it resumes from, and say what differs.

    Raises:
        UserError: a setting differs where the checkpoint would win (optimizer, schedule) or would not fit (model).
    """
    was, now = ADDED | flat(checkpoint["config"]), ADDED | flat(config)
    was = {name: RENAMED.get(value, value) if name.endswith("_target_") else value for name, value in was.items()}
    changed = [name for name in sorted(was | now) if was.get(name) != now.get(name) and not name.startswith(FREE)]
    lines = {name: f"{name} was {was.get(name)!r} and is {now.get(name)!r}" for name in changed}
    longer = [EXTENDABLE] if is_extended(was, now) else []
    for name in longer:
        lines[name] += ", and the learning rate follows the longer schedule from this step on"
    if refused := [lines[name] for name in changed if name.startswith(FIXED) and name not in longer]:
        raise UserError(
            f"{source} was written with other settings: {', '.join(refused)}. A resumed run has its checkpoint's model, "
            "optimizer, schedule, moving average and adversary: give them as they were, or start a new run from the weights "
            "with init_from."
        )
    for line in lines.values():
        say(f"resume: {line}")


def is_extended(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the schedule got longer, and is one that can: torch's own restore the length that they were saved with."""
    schedules = {config.get("scheduler._target_") for config in (was, now)}
    return schedules == {"one_cycle"} and now[EXTENDABLE] > was[EXTENDABLE]
