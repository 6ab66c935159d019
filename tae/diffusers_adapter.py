"""The former home of `tae.interop.diffusers_adapter`, kept for one version."""

from tae.interop.diffusers_adapter import DiffusersVAE

__all__ = ["DiffusersVAE"]
