"""Batches in shared memory: pieces that a worker writes in turns, and the training process reads."""

from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

import numpy as np
import torch
from torch import Tensor


class BatchWriter:
    """The worker's end."""

    def __init__(self, memory: Tensor, freed: Connection) -> None:
        self._memory = memory
        self._freed = freed
        self._free = len(memory)
        self._next = 0

    def memory(self) -> Tensor:
        """The piece that the next batch belongs into; waits for one if none is free.

        Raises:
            EOFError: the training process is gone.
        """
        while self._free == 0:
            self._freed.recv_bytes()
            self._free += 1
        return self._memory[self._next]

    def hand_over(self) -> int:
        """The piece has been written; returns its number for `BatchReader.read`."""
        piece = self._next
        self._free -= 1
        self._next = (piece + 1) % len(self._memory)
        return piece


class BatchReader:
    """The training process' end. Pieces must be read in the order in which they were written."""

    def __init__(self, memory: Tensor, freed: Connection) -> None:
        self._memory = memory
        self._freed = freed

    def read(self, piece: int, clips: int) -> Tensor:
        """A copy of the batch, in page-locked memory where there is a GPU to send it to; the piece is free again."""
        shared = self._memory[piece, :clips]
        batch = torch.empty_like(shared, pin_memory=torch.cuda.is_available())
        # Not torch's copy: its threads spin for a while after each, on the cores that the workers need.
        np.copyto(batch.numpy(), shared.numpy())
        self._freed.send_bytes(b"free")
        return batch


def exchange(shape: Sequence[int], pieces: int, context: BaseContext) -> tuple[BatchWriter, BatchReader]:
    """Two ends of `pieces` pieces of memory, each for a uint8 batch of at most `shape`."""
    memory = torch.empty((pieces, *shape), dtype=torch.uint8).share_memory_()
    receiver, sender = context.Pipe(duplex=False)
    return BatchWriter(memory, receiver), BatchReader(memory, sender)
