"""Bundled weights."""

from pathlib import Path

# By the name that is accepted wherever a checkpoint is expected.
BUNDLED = {"tiny": Path(__file__).parent / "weights" / "tiny"}
