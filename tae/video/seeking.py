"""Frames of a video file by index, found by their times of display.

Containers seek in their own ways, and counting frames from a keyframe goes wrong where frames are shown in another order
than they are stored (B-frames, open groups of pictures), where an edit list hides some, or in transport streams. Here all
packets are read once; decoding starts at the last keyframe that is shown no later than the frame that is wanted, and a frame
is recognised by its time alone.
"""

from bisect import bisect_right
from collections.abc import Generator
from contextlib import ExitStack
from itertools import chain, islice

import av
import numpy as np

from tae.video.facts import VideoError, VideoFacts, facts_of, find_damage, find_stream, to_rgb
from tae.video.reader import NO_TIMES, open_container, plain_errors


class PacketReader:
    """An open video of `len()` frames. Holds the compressed video in memory, and one frame.

    Raises:
        VideoError: the file cannot be opened or holds no video, or a frame is not found.
    """

    _running: Generator[tuple[int, av.VideoFrame]]
    _position: int  # index of the frame that comes next
    _fed: int  # place of the packet that comes next
    _counting: bool  # frames are numbered from the start, not known by their times

    def __init__(self, path: str) -> None:
        self._path = path
        with plain_errors(path), ExitStack() as stack:
            self._container = stack.enter_context(open_container(path))
            stream = find_stream(self._container, path)
            stream.thread_type = "NONE"  # processes use every core already
            self._codec = stream.codec_context
            self._time_base = stream.time_base or 0
            self._packets = [packet for packet in self._container.demux(stream) if packet.size]
            self._read_times()
            self._start(0, counting=True)
            first = next(self._running, None)
            if first is None:
                raise VideoError(path, find_damage(0, 0, 0, 0))
            self.facts: VideoFacts = facts_of(stream, first[1], path)
            self._start(0, counting=True)
            stack.pop_all()

    def _read_times(self) -> None:
        shown = [packet.pts for packet in self._packets if not packet.is_discard]
        self._length = len(shown)
        self._times = sorted(time for time in shown if time is not None)
        usable = len(set(self._times)) == len(shown) and self._container.format.name not in NO_TIMES
        self._index_of = {time: index for index, time in enumerate(self._times)} if usable else {}
        # (time, place among the packets) of each keyframe, by time
        self._keys = sorted(
            (packet.pts, place)
            for place, packet in enumerate(self._packets)
            if packet.is_keyframe and packet.pts is not None
        )

    @property
    def has_times(self) -> bool:
        """Whether frames are known by their times; otherwise they are counted from the start."""
        return bool(self._index_of)

    @property
    def times(self) -> np.ndarray | None:
        """When each frame is shown, ascending seconds; None where the file does not say."""
        return np.array(self._times) * float(self._time_base) if self.has_times else None

    def close(self) -> None:
        """Free the memory now; the decoding generator and this object refer to each other."""
        self._running.close()
        self._packets.clear()
        self._container.close()

    def __len__(self) -> int:
        return self._length

    def frame(self, index: int, seek: bool) -> np.ndarray:
        """A frame as players show it, uint8 RGB (h, w, 3).

        Args:
            seek: start at a keyframe; otherwise, and where the file has no times, frames are counted from the start.
        """
        place = self._keyframe_before(index) if seek and self._index_of else 0
        counting = not (seek and self._index_of)
        if index < self._position or place > self._fed or counting != self._counting:
            self._start(place, counting)
        for position, frame in self._running:
            self._position = position + 1
            if position == index:
                return to_rgb(frame, self.facts)
        raise VideoError(self._path, f"frame {index} is not found")

    def _keyframe_before(self, index: int) -> int:
        """The place among the packets of the last keyframe that is shown no later than the frame."""
        key = bisect_right(self._keys, (self._times[index], len(self._packets)))
        return self._keys[key - 1][1] if key else 0

    def _start(self, place: int, counting: bool) -> None:
        self._codec.flush_buffers()
        self._position, self._fed, self._counting = 0, place, counting
        self._running = self._decode(place, counting)

    def _decode(self, place: int, counting: bool) -> Generator[tuple[int, av.VideoFrame]]:
        """(index, frame) from a packet on; frames that do not decode, or have no time of their own, are left out."""
        number = 0
        for packet in chain(islice(self._packets, place, None), [None]):
            self._fed += 1
            try:
                frames = self._codec.decode(packet)
            except av.FFmpegError:
                continue
            for frame in frames:
                index = number if counting else self._index_of.get(frame.pts, -1)  # type: ignore[arg-type]
                number += 1
                if index >= 0:
                    yield index, frame
