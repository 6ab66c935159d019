"""Batches of latents of one size, for a DataLoader over clips of several sizes."""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from tae.latents.dataset import LatentDataset


class SizeBatchSampler(Sampler[list[int]]):
    """Batches of clips of one size: `DataLoader(dataset, batch_sampler=SizeBatchSampler(dataset, 8))`.

    Clips are shuffled within their size and batches among all; `set_epoch` gives another order. The last batch of a size may
    be smaller. With several processes each gets its share of the batches, equally many: up to `world_size - 1` are left out.

    Args:
        rank, world_size: number of this process, and how many there are. (Lightning needs `use_distributed_sampler=False`.)
    """

    def __init__(
        self, dataset: LatentDataset, batch_size: int, *, seed: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self._by_size: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for index, size in enumerate(dataset.sizes()):
            self._by_size[size].append(index)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return sum(-(-len(members) // self.batch_size) for members in self._by_size.values()) // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = []
        for members in self._by_size.values():
            order = rng.permutation(members).tolist()
            batches += [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        chosen = rng.permutation(len(batches))[: len(self) * self.world_size]
        return (batches[number] for number in chosen[self.rank :: self.world_size])
