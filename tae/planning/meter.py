"""Counting FLOPs and memory of code that runs on fake tensors."""

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, register_flop_formula, sdpa_backward_flop, sdpa_flop

# PyTorch counts attention as GPUs compute it, and not the CPU's kernels, by which fake tensors go.
for kernel, formula in {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flop,
}.items():
    if kernel not in flop_registry:
        register_flop_formula(kernel, get_raw=True)(formula)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of matrix products and convolutions, and the most bytes that were alive at once."""

    flops: int
    peak_bytes: int


class Meter(TorchDispatchMode):
    """Counts FLOPs and the bytes of all tensors alive while it is active.

    Each storage counts once, from the first operation that makes or reads it until Python releases it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.live = self.peak = 0
        self._storages: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **kwargs, out_val=out)
        for leaf in tree_leaves((args, kwargs, out)):
            if isinstance(leaf, Tensor):
                self._track(leaf.untyped_storage())
        return out

    def _track(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        if key in self._storages:
            return
        size = storage.nbytes()

        def release(_: weakref.ref) -> None:
            del self._storages[key]
            self.live -= size

        self._storages[key] = weakref.ref(storage, release)
        self.live += size
        self.peak = max(self.peak, self.live)

    def start(self) -> Self:
        """Count from here; what is alive stays counted."""
        self.flops, self.peak = 0, self.live
        return self

    @property
    def cost(self) -> Cost:
        return Cost(self.flops, self.peak)


class GroupNormLayout(TorchDispatchMode):
    """Group norms give results in their input's layout, as those of the CPU do.

    The fake ones are always contiguous, and what follows would copy them.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return (torch.empty_like(args[0]), *out[1:]) if func is torch.ops.aten.native_group_norm.default else out


@contextmanager
def rehearsal(device: str) -> Iterator[Meter]:
    """Run what is inside on fake tensors, as `device` would, and count.

    The tensors say that they are on the CPU, where fake tensors always work. For "cuda" they also answer to `is_cuda`,
    by which the model chooses its GPU code, and Triton kernels are not launched: their results are allocated all the
    same.
    """
    with ExitStack() as stack:
        if device == "cuda":
            stack.enter_context(mock.patch.object(Tensor, "is_cuda", True, create=True))
            stack.enter_context(without_triton_launches())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        if device == "cpu":
            stack.enter_context(GroupNormLayout())
        yield stack.enter_context(Meter())


@contextmanager
def without_triton_launches() -> Iterator[None]:
    """Let Triton kernels be called without being run."""
    try:
        from triton.runtime.jit import JITFunction
    except ImportError:  # then the model does not use them either
        yield
        return

    def run(*args: Any, **kwargs: Any) -> None:
        """Not a Mock, which would keep the tensors that it is called with: nothing would ever be released."""

    with mock.patch.object(JITFunction, "run", run):
        yield
