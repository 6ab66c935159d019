"""Checks across config groups, before any long work."""

from pathlib import Path

from omegaconf import DictConfig

from tae.model.bundled import BUNDLED
from tae.runtime.config import plain
from tae.runtime.errors import UserError
from tae.runtime.hub import may_be_repository


def check_training(cfg: DictConfig) -> None:
    """Refuse settings that are each allowed but do not fit together; everything that is wrong at once.

    Raises:
        UserError: with one line for each finding.
    """
    plain(cfg)
    findings = []
    if cfg.init_from is not None and is_missing(cfg.init_from):
        findings.append(
            f"init_from={cfg.init_from}: no such file or folder. Give a checkpoint (.ckpt), a folder that save_pretrained "
            "wrote, or a hub repository id (OWNER/NAME)."
        )
    if cfg.optimizer.lr <= 0:
        findings.append(
            f"optimizer.lr={cfg.optimizer.lr} would not train: give a number > 0 (1e-5 is the reference's)."
        )
    if cfg.trainer.max_steps < 1:
        findings.append(
            f"trainer.max_steps={cfg.trainer.max_steps} would not train: give a whole number of at least 1."
        )
    if str(cfg.trainer.precision).startswith("16") and cfg.trainer.gradient_clip_val and cfg.optimizer.get("fused"):
        findings.append("optimizer.fused=true cannot be clipped under precision=fp16: set optimizer.fused=false.")
    if findings:
        raise UserError("\n".join(findings))


def is_missing(source: str) -> bool:
    """Whether weights are asked for by a local path that does not exist; OWNER/NAME may be a hub repository."""
    path = BUNDLED.get(source, Path(source).expanduser())
    return not path.exists() and not may_be_repository(source)
