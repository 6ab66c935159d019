"""Batches from a worker process to the training process, through memory that both have.

PyTorch sends a tensor from a worker in new shared memory each time, and new pages cost more than all else that happens
to a decoded clip. Here a worker writes into a few pieces of memory in turns, and the training process copies a batch out
as soon as it arrives. A piece is written again only when the reader has said that it is free, so no batch can change
after it was handed out.
"""

from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

import torch
from torch import Tensor


class BatchWriter:
    """The worker's end."""

    def __init__(self, memory: Tensor, freed: Connection) -> None:
        self._memory = memory
        self._freed = freed
        self._free = len(memory)
        self._next = 0

    def write(self, clips: Sequence[Tensor]) -> int:
        """Stack clips into a free piece, and wait for one if there is none; returns its number for `BatchReader.read`.

        Raises:
            EOFError: the training process is gone.
        """
        while self._free == 0:
            self._freed.recv_bytes()
            self._free += 1
        piece = self._next
        torch.stack(list(clips), out=self._memory[piece, : len(clips)])
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
        batch = torch.empty_like(shared, pin_memory=torch.cuda.is_available()).copy_(shared)
        self._freed.send_bytes(b"free")
        return batch


def exchange(shape: Sequence[int], pieces: int, context: BaseContext) -> tuple[BatchWriter, BatchReader]:
    """Two ends of `pieces` pieces of memory, each for a uint8 batch of at most `shape`."""
    memory = torch.empty((pieces, *shape), dtype=torch.uint8).share_memory_()
    receiver, sender = context.Pipe(duplex=False)
    return BatchWriter(memory, receiver), BatchReader(memory, sender)
