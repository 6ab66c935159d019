"""Whether a tensor can be given to the Triton kernels."""

import importlib
import importlib.util
from types import ModuleType

from torch import Tensor

HAS_TRITON = importlib.util.find_spec("triton") is not None


def fused_kernels(x: Tensor, name: str) -> ModuleType | None:
    """The module `tae.kernels.<name>`, or None where this tensor's device has no kernels: they need a GPU and Triton."""
    if not x.is_cuda or not HAS_TRITON:
        return None
    return importlib.import_module(f"tae.kernels.{name}")  # here: a machine without a GPU need not have Triton
