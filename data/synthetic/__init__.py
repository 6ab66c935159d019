"""Small H.264 files of moving textured shapes as shards: the demo's data, made on the spot and cached."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data.synthetic.datamodule import SyntheticDataModule

__all__ = ["SyntheticDataModule"]


def __getattr__(name: str) -> Any:
    """Import the class on first use (PEP 562): `python -m data.synthetic --help` needs no torch."""
    if name == "SyntheticDataModule":
        from data.synthetic.datamodule import SyntheticDataModule

        return SyntheticDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
