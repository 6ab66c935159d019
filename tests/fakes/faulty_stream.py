"""A stream whose decoder hangs or dies in worker processes, where a clip's bytes say so."""

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager

from torch.utils.data import get_worker_info

import data.loading.stream
from data.decode import VideoFile, open_video
from data.loading.stream import ClipStream, WorkerItem


def open_or_die(video: bytes, reader: str | None = None) -> AbstractContextManager[VideoFile]:
    """Like `data.decode.open_video`, but some bytes do what broken files do to decoders."""
    if get_worker_info() is not None:
        if video == b"hangs":
            ctypes.PyDLL(None).pause()  # in C, for ever, and without giving other threads of the process a turn
        if video == b"exits":
            os._exit(3)
        if video in (b"SIGSEGV", b"SIGKILL"):
            os.kill(os.getpid(), signal.Signals[video.decode()])
    return open_video(video, reader)


class FaultyStream(ClipStream):
    """The stream with that decoder: worker processes do not see what a test patches, but they unpickle this."""

    def __iter__(self) -> Iterator[WorkerItem]:
        data.loading.stream.open_video = open_or_die  # type: ignore[assignment]
        return super().__iter__()
