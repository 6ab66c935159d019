"""The sound of a copy: its container, its packets bit for bit, and FLAC in place of what no container takes."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer

from tae.video.reader import plain_errors

CONTAINERS = {"mp4": ".mp4", "matroska": ".mkv", "mov": ".mov"}  # in the order of preference
LOSSLESS = "flac"


@dataclass(frozen=True)
class Sound:
    """What becomes of a file's sound streams, by their index in the file.

    container: one of `CONTAINERS`
    copied:    streams whose packets it takes as they are
    converted: {stream: codec} of those that it does not take; they are decoded and written as FLAC, which is lossless
    lost:      {stream: codec} of those that cannot be decoded either
    """

    container: str = "mp4"
    copied: tuple[int, ...] = ()
    converted: dict[int, str] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)

    @property
    def notes(self) -> list[str]:
        """What a table has to say of it; nothing where all is copied."""
        notes = [f"its sound ({_kinds(self.converted)}) as FLAC: no container takes the original"] * bool(
            self.converted
        )
        return notes + [f"without its sound ({_kinds(self.lost)}), which cannot be decoded"] * bool(self.lost)


def plan_sound(source: Path) -> Sound:
    """The container that takes most of a file's sound streams as they are, and what becomes of the others."""
    with plain_errors(source), av.open(str(source), metadata_errors="replace") as container:
        streams = container.streams.audio
        names = {stream.index: _codec(stream) for stream in streams}
        playable = [stream for stream in streams if stream.codec_context is not None]
        for name in CONTAINERS:
            if len(playable) == len(streams) and _takes(name, streams):
                return Sound(name, tuple(names))
        copied = {name: [stream for stream in playable if _takes(name, [stream])] for name in CONTAINERS}
        best = max(CONTAINERS, key=lambda name: len(copied[name]))
        kept = tuple(stream.index for stream in copied[best])
        others = [stream.index for stream in playable if stream.index not in kept]
        lost = [index for index in names if index not in (*kept, *others)]
        return Sound(best, kept, {i: names[i] for i in others}, {i: names[i] for i in lost})


def sound_packets(source: Path, sound: Sound, target: OutputContainer, start: Fraction) -> Iterator[Any]:
    """Add the sound streams to a container, then give their packets in the order of the file.

    Args:
        start: of the frames in the source, in seconds: the time that is 0 in the copy.
    """
    with plain_errors(source), av.open(str(source), metadata_errors="replace") as container:
        wanted = [s for s in container.streams.audio if s.index in sound.copied or s.index in sound.converted]
        if not wanted:
            return
        copies: dict[int, Any] = {}
        converters: dict[int, _Converter] = {}
        for stream in wanted:
            if stream.index in sound.copied:
                copies[stream.index] = target.add_stream_from_template(stream)
            else:
                converters[stream.index] = _Converter(stream, target, start)
        last: dict[int, int] = {}
        for packet in container.demux(*wanted):
            number = packet.stream.index
            if number in converters:
                yield from converters[number].convert(packet)
            elif packet.dts is not None:  # the last one of each only flushes
                # In each stream later and later, as muxers insist.
                origin = round(start / packet.time_base)
                earliest = last.get(number, packet.dts - origin - 1) + 1
                packet.dts = last[number] = max(packet.dts - origin, earliest)
                packet.pts = packet.dts if packet.pts is None else max(packet.pts - origin, packet.dts)
                packet.stream = copies[number]
                yield packet
        for converter in converters.values():
            yield from converter.finish()


class _Converter:
    """One stream, decoded and written as FLAC; packets that do not decode are passed over."""

    def __init__(self, stream: AudioStream, target: OutputContainer, start: Fraction) -> None:
        context = stream.codec_context
        self._start = start
        self._stream = cast(AudioStream, target.add_stream(LOSSLESS, rate=context.sample_rate))
        self._stream.layout = context.layout
        # FLAC has whole numbers; 24 bits for codecs that calculate with floating point.
        self._stream.format = "s16" if context.format is not None and context.format.bits <= 16 else "s32"

    def convert(self, packet: av.Packet) -> Iterator[Any]:
        try:
            frames = cast(list[av.AudioFrame], packet.decode())
        except av.FFmpegError:
            return
        for frame in frames:
            if frame.pts is not None and frame.time_base:
                frame.pts = max(frame.pts - round(self._start / frame.time_base), 0)
            yield from self._stream.encode(frame)

    def finish(self) -> Iterator[Any]:
        yield from self._stream.encode(None)


def _takes(name: str, streams: Iterable[AudioStream]) -> bool:
    """Whether a muxer writes a header for these streams: what it says about codecs is not the whole truth."""
    streams = list(streams)
    if not streams:
        return True
    try:
        with av.open(io.BytesIO(), "w", format=name) as candidate:
            for stream in streams:
                candidate.add_stream_from_template(stream)
            candidate.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True


def _codec(stream: AudioStream) -> str:
    return "of an unknown kind" if stream.codec_context is None else stream.codec_context.codec.canonical_name


def _kinds(codecs: dict[int, str]) -> str:
    return ", ".join(dict.fromkeys(codecs.values()))
