"""The sound of a copy: which container takes it, and times that no muxer minds."""

import io
from pathlib import Path

import av
import numpy as np
import pytest

from tae.video.reader import VideoReader
from tae.video.sound import Sound, plan_sound
from tae.video.writer import VideoWriter
from tests.references.video import make_video


@pytest.mark.parametrize(
    ("sound", "extension", "container", "converted"),
    [
        ("aac", "mp4", "mp4", False),
        ("pcm_mulaw", "mov", "mov", False),
        ("wavpack", "mkv", "matroska", False),
        ("adpcm_ima_wav", "avi", "mp4", True),
        ("adpcm_ms", "avi", "mp4", True),
        ("wmav2", "wmv", "mp4", True),
    ],
)
def test_the_muxer_says_what_it_takes(
    tmp_path: Path, sound: str, extension: str, container: str, converted: bool
) -> None:
    path = make_video(tmp_path / f"a.{extension}", [24 * i for i in range(3)], sound=sound)
    plan = plan_sound(path)
    assert plan == Sound(container, () if converted else (1,), {1: sound} if converted else {})
    assert bool(plan.notes) == converted


@pytest.mark.parametrize(("sound", "extension"), [("adpcm_ima_wav", "avi"), ("adpcm_ms", "avi"), ("wmav2", "wmv")])
def test_sound_that_no_container_takes_is_kept_without_loss(tmp_path: Path, sound: str, extension: str) -> None:
    """It was dropped, with the word that it cannot be copied."""
    source = make_video(tmp_path / f"a.{extension}", [24 * i for i in range(20)], sound=sound, languages=2)
    (tmp_path / "copy").mkdir()
    plan, copy = plan_sound(source), tmp_path / "copy" / "a.mp4"
    write_copy(source, copy, plan)
    assert plan.converted.keys() == {1, 2}
    for number in range(2):
        (start, was), (copied_start, now) = samples(source, number), samples(copy, number)
        assert len(was) > 16 * 1024
        # 16 bits hold what ADPCM decodes to; of WMA's floating point, 24 bits lose less than 2**-23.
        np.testing.assert_allclose(now, was, atol=0 if sound.startswith("adpcm") else 2**-22, rtol=0)
        assert copied_start == pytest.approx(start, abs=1 / 48000)


def test_sound_of_several_kinds_is_converted_where_it_has_to_be(tmp_path: Path) -> None:
    source = tmp_path / "a.avi"
    with av.open(str(source), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.height = video.width = 32
        tracks = [container.add_stream(name, rate=48000) for name in ("mp2", "adpcm_ms")]
        for track in tracks:
            track.layout = "mono"
        for _ in range(3):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")))
        for track in tracks:
            block = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.int16), format="s16", layout="mono")
            block.sample_rate, block.pts = 48000, 0
            container.mux(track.encode(block))
        for stream in (video, *tracks):
            container.mux(stream.encode())
    plan = plan_sound(source)
    assert plan == Sound("mp4", (1,), {2: "adpcm_ms"})
    write_copy(source, tmp_path / "copy.mp4", plan)
    with av.open(str(tmp_path / "copy.mp4")) as container:
        names = [stream.codec_context.name for stream in container.streams.audio]
    assert len(names) == 2
    assert "flac" in names


@pytest.mark.parametrize(("name", "container"), [("truehd.mkv", "matroska"), ("dts.mkv", "mp4")])
def test_sound_that_mp4_only_claims_to_take_goes_to_matroska(
    bug_inputs: Path, tmp_path: Path, name: str, container: str
) -> None:
    plan = plan_sound(bug_inputs / name)
    assert plan == Sound(container, (1,))
    write_copy(bug_inputs / name, tmp_path / "copy", plan)
    assert packets(tmp_path / "copy") == packets(bug_inputs / name) != []


def write_copy(source: Path, copy: Path, plan: Sound) -> None:
    with VideoReader(source) as reader, VideoWriter(copy, reader, reader.size, plan) as writer:
        for frame in reader.frames():
            writer.write(frame)


def samples(path: Path, number: int) -> tuple[float, np.ndarray]:
    """When a sound stream begins, and its first channel from -1 to 1."""
    resampler = av.AudioResampler("dblp")
    with av.open(str(path)) as container:
        frames = list(container.decode(container.streams.audio[number]))
    return frames[0].time, np.concatenate(
        [out.to_ndarray()[0] for frame in frames for out in resampler.resample(frame)]
    )


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
    write_copy(source, copy, plan_sound(source))
    assert packets(copy) == packets(source)
