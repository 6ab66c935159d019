"""Console commands, `tae-train` and others: what each starts, and the extra of the package that it needs."""

import importlib
import sys
from pathlib import Path

PACKAGE = "temporal-autoencoder"

# Command: its module, and the extra that brings what it imports.
COMMANDS = {
    "encode": ("tae.encode", "eval"),
    "evaluate": ("tae.evaluate", "eval"),
    "export": ("tae.export", "eval"),
    "index": ("data.index", "data"),
    "inspect": ("data.inspect", "data"),
    "pca": ("tae.pca", "eval"),
    "plan": ("tae.plan", "eval"),
    "prepare": ("data.prepare", "data"),
    "reconstruct": ("tae.reconstruct", "eval"),
    "synthetic": ("data.synthetic.__main__", "eval"),
    "train": ("tae.train", "train"),
    "verify": ("data.verify", "data"),
    "weights": ("tae.weights", "eval"),
}
# What the extra of a command brings, by the name that is imported.
BROUGHT = {
    *("annotated_types", "hydra", "omegaconf", "pydantic", "rich"),
    *("av", "braceexpand", "decord", "filelock", "fsspec", "aiohttp", "joblib", "pebble", "PIL", "webdataset"),
    *("lightning", "lpips", "matplotlib", "torchmetrics", "torchvision"),
    *("tensorboard",),
}
# What only some of its settings need.
ON_REQUEST = {
    **dict.fromkeys(["onnx", "onnxruntime", "onnxscript"], "export"),
    "pyarrow": "parquet",
    "wandb": "wandb",
}


def main() -> None:
    """Start the command that the console script is named after."""
    name = Path(sys.argv[0]).stem.removeprefix("tae-")
    try:
        command = importlib.import_module(COMMANDS[name][0]).main
    except ModuleNotFoundError as error:
        message = missing_package(name, error)
        if message is None:
            raise
        sys.exit(f"error: {message}")
    command()


def missing_package(command: str, error: ModuleNotFoundError) -> str | None:
    """What to install for a command that lacks a package; None if the package is none that an extra brings."""
    package = (error.name or "").partition(".")[0]
    if package not in BROUGHT and package not in ON_REQUEST:
        return None
    extra = ON_REQUEST.get(package, COMMANDS[command][1])
    return f"{package} is not installed, which tae-{command} needs here: pip install '{PACKAGE}[{extra}]'."
