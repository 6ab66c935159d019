"""The former home of `tae.runtime.errors`, kept for one version."""

from tae.runtime.errors import UserError

__all__ = ["UserError"]
