"""Devices that a config asks for and this machine does not have."""

from omegaconf import DictConfig, OmegaConf


def missing_accelerator(cfg: DictConfig) -> str | None:
    """What is wrong with `trainer.accelerator` here; Lightning would find it late, or say it in words of its own."""
    name = OmegaConf.select(cfg, "trainer.accelerator")
    if not isinstance(name, str) or name in ("auto", "cpu"):
        return None
    import torch

    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    gpus = {"gpu": cuda or mps, "cuda": cuda, "mps": mps}
    if gpus.get(name):
        return None
    reason = "PyTorch finds no such device here" if name in gpus else "there is no such kind of device"
    allowed = ", ".join(["auto", "cpu", *(kind for kind, is_here in gpus.items() if is_here)])
    return f"trainer.accelerator={name}: {reason}. Give one of: {allowed}."
