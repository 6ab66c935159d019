"""The sound of a copy: which container takes it, and times that no muxer minds."""

import io
from pathlib import Path

import av
import pytest

from tae.video.reader import VideoReader
from tae.video.writer import VideoWriter, container_for
from tests.references.video import make_video


@pytest.mark.parametrize(
    ("sound", "extension", "expected"),
    [
        ("aac", "mp4", ("mp4", True)),
        ("pcm_mulaw", "mov", ("mov", True)),
        ("adpcm_ima_wav", "avi", ("mp4", False)),
        ("wmav2", "wmv", ("mp4", False)),
        ("wavpack", "mkv", ("matroska", True)),
    ],
)
def test_the_muxer_says_what_it_takes(tmp_path: Path, sound: str, extension: str, expected: tuple[str, bool]) -> None:
    path = make_video(tmp_path / f"a.{extension}", [24 * i for i in range(3)], sound=sound)
    assert container_for(path) == expected


@pytest.mark.parametrize(("name", "container"), [("truehd.mkv", "matroska"), ("dts.mkv", "mp4")])
def test_sound_that_mp4_only_claims_to_take_goes_to_matroska(
    bug_inputs: Path, tmp_path: Path, name: str, container: str
) -> None:
    assert container_for(bug_inputs / name) == (container, True)
    copy = tmp_path / "copy"
    with (
        VideoReader(bug_inputs / name) as reader,
        VideoWriter(copy, container, reader, reader.size, sound=True) as writer,
    ):
        for frame in reader.frames():
            writer.write(frame)
    assert packets(copy) == packets(bug_inputs / name) != []


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def test_two_packets_of_one_time_are_moved_apart(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mkv", [24 * i for i in range(20)], sound="aac")
    content = io.BytesIO()
    with av.open(str(source)) as original, av.open(content, "w", format="matroska") as container:
        copies = {stream.index: container.add_stream_from_template(stream) for stream in original.streams}
        last = None
        for number, packet in enumerate(original.demux()):
            if packet.dts is None:
                continue
            if packet.stream.type == "audio":
                if number % 3 == 0 and last is not None:
                    packet.pts = packet.dts = last
                last = packet.dts
            packet.stream = copies[packet.stream.index]
            container.mux(packet)
    source.write_bytes(content.getvalue())
    copy = tmp_path / "copy.mp4"
    with VideoReader(source) as reader, VideoWriter(copy, "mp4", reader, reader.size, sound=True) as writer:
        for frame in reader.frames():
            writer.write(frame)
    assert packets(copy) == packets(source)
