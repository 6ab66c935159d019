"""The files that an evaluation leaves behind, read back by other software."""

import csv
import json
import math
import shutil
import subprocess

import av
import numpy as np
import pytest
import torch
from rich.console import Console

from tae.evaluation import ClipResult, EvaluationResult
from tae.files import replacing, write_text
from tae.report import print_report, side_by_side, verdict, write_report, write_video


def make_result(model=24.0, trilinear=22.0, spread=0.5, clips=6):
    def clip(i):
        ours = {"psnr": model + spread * i, "ssim": 0.8, "ssim_uniform": 0.79, "outlier_rate": 0.001}
        theirs = {"psnr": trilinear + spread * (clips - i), "ssim": 0.7, "ssim_uniform": 0.69}
        return ClipResult(f"v_Run_g0{i}", 8, 29.97, ours, theirs)

    return EvaluationResult([clip(i) for i in range(clips)])


def picture(t=8, h=48, w=64):
    """Smooth moving colours: what yuv420p keeps."""
    y, x = np.mgrid[0:h, 0:w] / 48
    frames = [np.stack([x + k / t, y, 1 - x], -1).clip(0, 1) for k in range(t)]
    return torch.from_numpy((np.stack(frames) * 255).round().astype(np.uint8))


def write(tmp_path, result, **arguments):
    defaults = {"checkpoint": {"path": "last.ckpt", "sha256": "ab" * 32}, "config": {"seed": 1}, "skipped": []}
    return write_report(tmp_path, result, ["best"], **(defaults | arguments))


def no_constants(name):
    raise AssertionError(f"{name} is not JSON")


def test_metrics_json_holds_the_schema(tmp_path):
    skipped = [{"key": "v_Bad_g01", "reason": "cannot decode"}]
    document = write(tmp_path, make_result(), skipped=skipped, training={"steps": 3, "seconds_per_step": math.nan})
    read = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=no_constants)
    assert read == document
    assert read["protocol"] == "tae-eval-1"
    assert (read["num_clips"], read["num_frames"]) == (6, 48)
    assert read["metrics"]["psnr"]["mean"] == pytest.approx(25.25)
    assert read["baselines"]["trilinear"]["ssim"]["ci95"] == [pytest.approx(0.7), pytest.approx(0.7)]
    assert read["metrics"]["lpips"]["mean"] is None
    assert "weights" in read["metrics"]["lpips"]["reason"]
    assert read["skipped"] == skipped
    assert read["training"] == {"steps": 3, "seconds_per_step": None}
    assert {"torch", "python", "device", "git_commit"} <= set(read["environment"])
    assert set(read) >= {"checkpoint", "config"}


def test_an_evaluation_alone_has_no_training(tmp_path):
    assert "training" not in write(tmp_path, make_result())


def test_per_clip_csv_has_every_clip(tmp_path):
    result = make_result()
    write(tmp_path, result)
    with (tmp_path / "per_clip.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [clip.key for clip in result.clips]
    assert float(rows[2]["trilinear_psnr"]) == result.clips[2].trilinear["psnr"]


def test_report_md_tells_and_links(tmp_path):
    write(tmp_path, make_result(), skipped=[{"key": "v_Bad_g01", "reason": "cannot decode"}])
    text = (tmp_path / "report.md").read_text()
    for expected in ("25.25 [", "(videos/best.mp4)", "v_Bad_g01", "last.ckpt", verdict(make_result())):
        assert expected in text
    assert "videos/worst.mp4" not in text, "no link to a video that was not written"
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("model", "spread", "words"),
    [(30.0, 0.5, "above it by"), (10.0, 0.5, "BELOW it by 12.5 dB in PSNR"), (22.0, 1.0, "not clearly different")],
)
def test_the_verdict_is_honest(model, spread, words):
    assert words in verdict(make_result(model=model, trilinear=22.0, spread=spread))


def test_the_table_on_the_terminal(tmp_path):
    console = Console(record=True, width=120)
    print_report(make_result(), tmp_path, console)
    text = console.export_text()
    assert "trilinear" in text
    assert "25.25" in text
    assert "above it" in text


def read_video(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = [frame.to_ndarray(format="rgb24", src_colorspace="itu709") for frame in container.decode(stream)]
        return stream, np.stack(frames)


@pytest.mark.parametrize(("height", "width", "fps"), [(48, 64, 29.97), (47, 63, 25.0), (48, 64, 30000 / 1001)])
def test_videos_come_back_as_they_were(tmp_path, height, width, fps):
    frames = picture(8, height, width)
    write_video(tmp_path / "deep" / "clip.mp4", frames, fps)
    stream, decoded = read_video(tmp_path / "deep" / "clip.mp4")
    assert decoded.shape == (8, height + height % 2, width + width % 2, 3)
    assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
    assert float(stream.average_rate) == pytest.approx(fps, rel=1e-3)
    error = decoded[:, :height, :width].astype(float) - frames.numpy()
    # Smooth colours lose about a level to yuv420p and crf 14. The wrong matrix (BT.601) shifts greens by 10 and more.
    assert np.abs(error).mean() < 2.5


def test_the_index_is_at_the_front(tmp_path):
    """A browser starts to play before the whole file has come."""
    write_video(tmp_path / "clip.mp4", picture(), 25)
    content = (tmp_path / "clip.mp4").read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")


def test_one_frame_is_a_video_too(tmp_path):
    write_video(tmp_path / "image.mp4", picture(t=1), 25)
    assert len(read_video(tmp_path / "image.mp4")[1]) == 1


def test_side_by_side_enlarges_small_clips():
    left, right = picture(2, 64, 64), 255 - picture(2, 64, 64)
    both = side_by_side(left, right)
    assert both.shape == (2, 256, 516, 3)
    assert torch.equal(both[:, ::4, :256:4], left)
    assert torch.equal(both[:, ::4, 260::4], right)
    assert (both[:, :, 256:260] == 255).all()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.md"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError), replacing(path) as partial:
        partial.write_text("half\ud800", encoding="utf-8")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
def test_ffprobe_sees_bt709(tmp_path):
    write_video(tmp_path / "clip.mp4", picture(), 25)
    command = ["ffprobe", "-v", "error", "-show_entries", "stream=color_space", "-of", "csv=p=0", tmp_path / "clip.mp4"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "bt709"
