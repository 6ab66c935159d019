"""Bundled weights."""

from pathlib import Path

# By the name that is accepted wherever a checkpoint is expected.
FOLDERS = Path(__file__).parent / "weights"
BUNDLED = {name: FOLDERS / name for name in ("tiny", "tiny-haar")}
