"""Two processes, checkpointing and compiled blocks together give the gradients of one plain process."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from tae import TemporalAutoencoder

WORLD = 2


def build(fast: bool) -> TemporalAutoencoder:
    torch.manual_seed(0)
    model = TemporalAutoencoder(8, (1, 2), 4, 1, 1, norm_groups=4)
    if fast:
        model.gradient_checkpointing = True
        model.compile_blocks()
    return model


def clips() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(WORLD, 4, 16, 16, 3, generator=generator).movedim(-1, 1) * 2 - 1


class Loss(torch.nn.Module):
    """What DDP wraps. It has to return tensors: in a dataclass it finds none, and with `static_graph` it then leaves the
    gradients of each process as they are, without a word."""

    def __init__(self, model: TemporalAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip: Tensor) -> Tensor:
        return (self.model(clip, sample_posterior=False).reconstruction - clip).square().mean()


def work(rank: int, folder: str, fast: bool) -> None:
    """One process: two steps on its clip (static_graph learns in the first), the second one's gradient to a file."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    model = build(fast)
    wrapped = DistributedDataParallel(Loss(model), static_graph=True, gradient_as_bucket_view=True)
    for _ in range(2):
        model.zero_grad()
        wrapped(clips()[rank : rank + 1]).backward()
    torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("fast", [False, True], ids=["eager", "checkpointed-compiled"])
def test_two_processes_equal_one(fast: bool, tmp_path: Path) -> None:
    mp.spawn(work, args=(str(tmp_path), fast), nprocs=WORLD)
    model = build(fast=False)
    Loss(model)(clips()).backward()
    for rank in range(WORLD):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, parameter in model.named_parameters():
            # Sums of another order in float32; a clip left out would differ by about the gradient's own size.
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)
