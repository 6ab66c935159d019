"""Videos through the model and back into files: timing, sound, colours, sizes, and what cannot be read."""

import os
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file, safe_open

from data.sampling.transforms import resize_short_side
from tae import TemporalAutoencoder
from tae.evaluation.reconstruction import panels, plan_outputs
from tae.metrics.frame import psnr
from tae.model.frame_conversion import clip_to_frames, frames_to_clip
from tae.model.streaming import decode_stream, encode_stream
from tae.reconstruct import main
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.errors import UserError
from tae.video.reader import Frame, VideoReader
from tae.video.writer import VideoWriter
from tests.fakes.processes import running
from tests.references.video import make_video


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TemporalAutoencoder(
            base_channels=4, channel_multipliers=(1, 1, 1, 1), norm_groups=2, encoder_blocks=1, decoder_blocks=1
        )
    model.save_pretrained(folder)
    return folder


def config(**values) -> DictConfig:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        cfg = compose("reconstruct", overrides=["trainer.accelerator=cpu"])
    for key, value in values.items():
        cfg[key] = str(value) if isinstance(value, Path) else value
    return cfg


def show_times(path: Path) -> list[Fraction]:
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def sound_packets(path: Path) -> list[list[bytes]]:
    """Of each sound stream."""
    with av.open(str(path)) as container:
        streams = range(len(container.streams.audio))
    packets = []
    for i in streams:
        with av.open(str(path)) as container:
            packets.append([bytes(p) for p in container.demux(container.streams.audio[i]) if p.dts is not None])
    return packets


def rgb_of(path: Path) -> np.ndarray:
    with VideoReader(path) as reader:
        return np.stack([frame.rgb for frame in reader.frames()])


def test_a_video_comes_back_with_its_times_and_its_sound(checkpoint, tmp_path):
    uneven = [0, 24, 48, 96, 100, 130] + [200 + 24 * i for i in range(40)]
    source = make_video(tmp_path / "a.mp4", uneven, sound="aac", languages=2)
    (outcome,) = main(config(ckpt=checkpoint, source=source, output=tmp_path / "out"))
    assert outcome.output == tmp_path / "out" / "a.mp4"
    assert outcome.num_frames == len(uneven)
    assert show_times(outcome.output) == [Fraction(pts, 600) for pts in uneven]
    assert sound_packets(outcome.output) == sound_packets(source)
    assert len(sound_packets(source)) == 2
    assert list((tmp_path / "out").iterdir()) == [outcome.output]  # no temporary file stays


def test_the_written_frames_are_the_models(checkpoint, tmp_path):
    source = make_video(tmp_path / "a.mp4", [24 * i for i in range(40)])
    (outcome,) = main(config(ckpt=checkpoint, source=source, output=tmp_path / "out"))
    original = torch.from_numpy(rgb_of(source))
    model = TemporalAutoencoder.from_pretrained(checkpoint)
    latents = [posterior.mode() for posterior in encode_stream(model, [frames_to_clip(original[None])])]
    expected = clip_to_frames(torch.cat(list(decode_stream(model, latents, num_frames=40)), 2))[0]
    assert outcome.psnr == pytest.approx(psnr(original, expected).mean().item(), abs=1e-3)
    # In brightness alone, since yuv420p halves the colours' resolution; H.264 at CRF 14 loses a level or two.
    written = torch.from_numpy(rgb_of(outcome.output))
    brightness = torch.tensor([0.299, 0.587, 0.114])
    error = ((written.float() - expected.float()) @ brightness).abs().mean(dim=(1, 2))
    shifted = ((written[8:].float() - expected[:-8].float()) @ brightness).abs().mean(dim=(1, 2))
    assert error.max() < 4
    assert shifted.min() > 6  # a fresh model's output changes every 8 frames


@pytest.mark.slow
def test_a_real_video_keeps_its_rate_and_its_sound(checkpoint, shared_clips, tmp_path):
    source = shared_clips / "awkward" / "short_10f_720p.mp4"
    (outcome,) = main(config(ckpt=checkpoint, source=source, output=tmp_path))
    assert outcome.num_frames == 10
    assert show_times(outcome.output) == show_times(source)
    assert sound_packets(outcome.output) == sound_packets(source) != []


def test_sound_that_mp4_cannot_carry_goes_to_matroska(checkpoint, tmp_path):
    source = make_video(tmp_path / "a.mkv", [24 * i for i in range(3)], sound="wavpack")
    (outcome,) = main(config(ckpt=checkpoint, source=source, output=tmp_path / "out"))
    assert outcome.output.suffix == ".mkv"
    assert sound_packets(outcome.output) == sound_packets(source)


def test_sound_that_no_container_takes_is_converted_and_said_so(checkpoint, tmp_path):
    source = make_video(tmp_path / "a.wmv", [24 * i for i in range(3)], sound="wmav2")
    (outcome,) = main(config(ckpt=checkpoint, source=source, output=tmp_path / "out"))
    assert "(wmav2) as FLAC" in outcome.notes[0]
    assert len(rgb_of(outcome.output)) == 3
    assert len(sound_packets(outcome.output)) == 1


def test_odd_sizes_are_padded_in_the_file_and_said_so(checkpoint, tmp_path):
    source = make_video(tmp_path / "a.mkv", [0, 24], size=(35, 51), codec="ffv1")
    (outcome,) = main(config(ckpt=checkpoint, source=source, output=tmp_path / "out"))
    assert outcome.size == (35, 51)
    assert "odd size" in outcome.notes[0]
    written = rgb_of(outcome.output)
    assert written.shape[1:3] == (36, 52)


def test_panels_stand_side_by_side():
    original, reconstruction = np.full((4, 6, 3), 100, np.uint8), np.full((4, 6, 3), 90, np.uint8)
    shown = panels(original, reconstruction, side_by_side=True, difference=True)
    assert shown.shape == (4, 18, 3)
    assert [int(shown[0, x, 0]) for x in (0, 6, 12)] == [100, 90, 40]  # the difference is shown 4 times as strong
    assert panels(original, reconstruction, side_by_side=False, difference=False) is reconstruction


def test_latents_only(checkpoint, tmp_path):
    source = make_video(tmp_path / "a.mp4", [24 * i for i in range(41)], size=(44, 60))
    cfg = config(ckpt=checkpoint, source=source, output=tmp_path / "out", latents_only=True)
    cfg.tiling.overlap_pixel_frames = 32  # too much, but not used here
    (outcome,) = main(cfg)
    latents = load_file(outcome.output)
    model = TemporalAutoencoder.from_pretrained(checkpoint)
    with torch.no_grad():
        clips = frames_to_clip(torch.from_numpy(rgb_of(source))[None]).split(32, dim=2)
        posteriors = [model.encode(clip) for clip in clips]
    expected = torch.cat([p.mean for p in posteriors], 2)[0].movedim(1, 0)
    deviation = torch.cat([(0.5 * p.logvar).exp() for p in posteriors], 2)[0].movedim(1, 0)
    torch.testing.assert_close(latents["mean"], expected, atol=1e-5, rtol=0)  # float32 in another order of summation
    torch.testing.assert_close(latents["std"], deviation, atol=1e-5, rtol=0)
    with safe_open(outcome.output, "pt") as file:
        assert file.metadata() == {"num_frames": "41", "fps": "25.0", "height": "44", "width": "60"}


@pytest.mark.parametrize("latents_only", [False, True])
def test_a_file_that_is_cut_off_is_said_to_be(checkpoint, tmp_path, latents_only):
    whole = make_video(tmp_path / "whole.avi", list(range(40)), time_base=Fraction(1, 25))
    cut = tmp_path / "cut.avi"
    content = bytearray(whole.read_bytes())
    length = content.index(b"strh") + 40  # of the stream, in AVI's header: as if the rest of the file had been lost
    assert content[length : length + 4] == (40).to_bytes(4, "little")
    content[length : length + 4] = (80).to_bytes(4, "little")
    cut.write_bytes(content)
    settings = {"ckpt": checkpoint, "output": tmp_path / "out", "latents_only": latents_only}
    (outcome,) = main(config(source=cut, **settings))
    assert outcome.notes == ("truncated or damaged: 40 of 80 frames decode",)
    (outcome,) = main(config(source=whole, **settings))
    assert outcome.notes == ()


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(checkpoint, tmp_path, capsys):
    folder = tmp_path / "videos"
    (folder / "deeper").mkdir(parents=True)
    make_video(folder / "deeper" / "good.mp4", [0, 24])
    (folder / "empty.mp4").touch()
    (folder / "text.avi").write_text("not a video")
    make_video(folder / "tiny.mkv", [0], size=(6, 16), codec="ffv1")
    with pytest.raises(UserError, match="3 of 4 videos"):
        main(config(ckpt=checkpoint, source=folder, output=tmp_path / "out"))
    errors = capsys.readouterr().err
    assert "empty.mp4: empty file (0 bytes)" in errors
    assert "text.avi: not a video file that can be opened" in errors
    assert "tiny.mkv: frames of 6x16" in errors
    assert [p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*.*")] == [Path("deeper/good.mp4")]


def test_a_fault_in_writing_costs_that_file(checkpoint, tmp_path, capsys, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / "in" / name, [0, 24])
    write = VideoWriter.write

    def fail_once(writer, frame):
        monkeypatch.setattr(VideoWriter, "write", write)
        raise av.error.InvalidDataError(22, "Invalid argument")

    monkeypatch.setattr(VideoWriter, "write", fail_once)
    with pytest.raises(UserError, match="1 of 2 videos"):
        main(config(ckpt=checkpoint, source=tmp_path / "in", output=tmp_path / "out"))
    assert "a.mp4 cannot be written again" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.mp4"]


def test_an_output_that_is_a_file_is_refused_before_the_model_is_loaded(tmp_path):
    make_video(tmp_path / "a.mp4", [0])
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match=r"^output=.*out cannot be written \(it is a file\)"):
        main(config(ckpt="/nowhere/a.ckpt", source=tmp_path / "a.mp4", output=tmp_path / "out"))


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line_and_leaves_no_half_a_file(checkpoint, tmp_path):
    source = make_video(tmp_path / "a.mp4", list(range(0, 48_000, 24)))
    arguments = [f"ckpt={checkpoint}", f"source={source}", "output=out", "trainer.accelerator=cpu"]
    command = [sys.executable, "-m", "tae.reconstruct", *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    # A shell starts what it puts into the background with SIGINT ignored, which children inherit.
    options = {"preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL), "stderr": subprocess.PIPE}
    with running(command, cwd=tmp_path, env=environment, text=True, **options) as process:
        while process.poll() is None and not list((tmp_path / "out").glob(".a.mp4.*")):
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        errors = process.communicate(timeout=300)[1]
    assert process.returncode == 128 + signal.SIGINT
    assert errors.splitlines()[-1] == "stopped by Ctrl-C"
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(("latents_only", "name"), [(False, "a[1].mp4"), (True, "a[1].safetensors")])
def test_what_a_killed_process_left_of_a_file_is_removed(checkpoint, tmp_path, latents_only, name):
    """That of another file may be the draft of a process that is at work."""
    source = make_video(tmp_path / "a[1].mp4", [0, 24])
    output = tmp_path / "out"
    output.mkdir()
    for draft in (f".{name}.4711.tmp", ".b.mp4.4711.tmp"):
        (output / draft).touch()
    main(config(ckpt=checkpoint, source=source, output=output, latents_only=latents_only))
    assert {path.name for path in output.iterdir()} == {name, ".b.mp4.4711.tmp"}


def test_an_excerpt_at_another_size(checkpoint, tmp_path):
    """Frames 5 to 14 of 20 at half the size: the values are those of the whole video, scaled."""
    source = make_video(tmp_path / "a.mkv", list(range(0, 480, 24)), size=(64, 96), codec="ffv1")
    options = {"start": 5, "num_frames": 10, "resolution": 32}
    (outcome,) = main(config(ckpt=checkpoint, source=source, output=tmp_path / "out", side_by_side=True, **options))
    assert (outcome.num_frames, outcome.size) == (10, (32, 48))
    with VideoReader(source) as reader:
        expected = [resize_short_side(frame.rgb, 32) for frame in reader.frames()][5:15]
    with VideoReader(outcome.output) as reader:
        written = list(reader.frames())
    assert written[0].pts == 0
    assert len(written) == 10
    left = np.stack([frame.rgb[:, :48] for frame in written]).astype(int)
    # H.264 at crf 16 keeps these pictures to a few levels; frames differ by more.
    assert np.abs(left - np.stack(expected)).mean() < 4


def test_an_excerpt_beyond_the_end_and_wrong_numbers(checkpoint, tmp_path, capsys):
    source = make_video(tmp_path / "a.mp4", list(range(0, 120, 24)))
    with pytest.raises(UserError, match="1 of 1 videos"):
        main(config(ckpt=checkpoint, source=source, output=tmp_path / "out", start=9))
    assert "has no frame 9" in "".join(capsys.readouterr())
    assert not list((tmp_path / "out").iterdir())
    for name, value in (("start", -1), ("num_frames", 0), ("resolution", 4)):
        with pytest.raises(UserError, match=f"^{name}={value} is not allowed"):
            main(config(ckpt="/nowhere.ckpt", source=source, output=tmp_path / "out", **{name: value}))


def test_outputs_keep_apart(tmp_path):
    for name in ("a.mp4", "a.avi", "b.mp4"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).touch()
    planned = plan_outputs(tmp_path / "in", tmp_path / "out")
    assert sorted(p.name for p in planned.values()) == ["a.avi", "a.mp4", "b"]
    for source, output in (("in", "in/out"), ("in/b.mp4", "in"), ("nowhere", "out")):
        with pytest.raises(UserError):
            plan_outputs(tmp_path / source, tmp_path / output)


@pytest.mark.parametrize(("height", "matrix"), [(480, "smpte170m"), (720, "bt709")])
def test_colours_survive_writing_and_reading(tmp_path, height, matrix):
    """A wrong matrix turns pure green by some 20 levels, a wrong range black and white by 16."""
    source = make_video(tmp_path / "a.mkv", [0], size=(height, 32), codec="ffv1")
    colours = np.array([[0, 0, 0], [255, 255, 255], [0, 255, 0], [255, 0, 0], [0, 0, 255], [180, 90, 30]], np.uint8)
    with (
        VideoReader(source) as reader,
        VideoWriter(tmp_path / "b.mp4", reader, (height, 32)) as writer,
    ):
        for i, colour in enumerate(colours):
            writer.write(Frame(np.broadcast_to(colour, (height, 32, 3)), 24 * i))
    with av.open(str(tmp_path / "b.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == ({"bt709": 1, "smpte170m": 6}[matrix], 1)
    read = rgb_of(tmp_path / "b.mp4")
    assert np.abs(read[:, height // 2, 8].astype(int) - colours).max() <= 3  # 8-bit YUV of limited range, H.264


def test_rotation_is_applied(shared_clips):
    with VideoReader(shared_clips / "awkward" / "rotated_270_640x360.mp4") as turned:
        upright = next(turned.frames()).rgb
    with VideoReader(shared_clips / "awkward" / "With space & ünïcode.MP4") as plain:  # the same bytes without rotation
        assert np.array_equal(upright, np.rot90(next(plain.frames()).rgb, -1))
    assert turned.size == (640, 360)


@pytest.mark.parametrize("name", ["resolution_change.ts", "audio_only.mp4", "truncated_no_moov.mp4", "lfs_pointer.mp4"])
def test_broken_files_say_so(shared_clips, name):
    with pytest.raises(UserError, match=name), VideoReader(shared_clips / "awkward" / name) as reader:
        for _ in reader.frames():
            pass
