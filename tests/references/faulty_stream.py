"""A stream whose decoder hangs or dies in worker processes, where a clip's bytes say so."""

import ctypes
import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

import data.stream
from data.decode import read_frames
from data.stream import ClipStream, Item


def decode_or_die(video: bytes, *args: Any) -> np.ndarray:
    """Like `data.decode.read_frames`, but some bytes do what broken files do to decoders."""
    if get_worker_info() is not None:
        if video == b"hangs":
            ctypes.PyDLL(None).pause()  # in C, for ever, and without giving other threads of the process a turn
        if video == b"exits":
            os._exit(3)
        if video in (b"SIGSEGV", b"SIGKILL"):
            os.kill(os.getpid(), signal.Signals[video.decode()])
    return read_frames(video, *args)


class FaultyStream(ClipStream):
    """The stream with that decoder: worker processes do not see what a test patches, but they unpickle this."""

    def __iter__(self) -> Iterator[Item]:
        data.stream.read_frames = decode_or_die  # type: ignore[assignment]
        return super().__iter__()
