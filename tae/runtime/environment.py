"""The machine and the software behind a number, for reports and loggers."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch


def environment() -> dict[str, Any]:
    """What one needs to know of the machine and the software to judge a number."""
    cuda = torch.cuda.is_available()
    return {
        "tae": _version("temporal-autoencoder"),
        "git_commit": _git_commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # its own class would not be plain YAML
        "lightning": _version("lightning"),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "threads": torch.get_num_threads(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of this source tree, with "-dirty" for local changes; None where it is no git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
