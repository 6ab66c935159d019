"""Videos to shards of latents: what is written, once and only once, whatever stops or splits the work."""

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load

from data.shards.writer import ShardWriter
from tae import TemporalAutoencoder
from tae.encode import main
from tae.latents.writer import LatentShard
from tae.model.frame_conversion import frames_to_clip
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.errors import UserError
from tests.references.video import decode_in_order, make_video

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five videos of different lengths and sizes in two class folders, and two files that are none."""
    folder = tmp_path_factory.mktemp("videos")
    for i, frames in enumerate((1, 9, 40, 8, 17)):
        path = folder / ("walk" if i % 2 else "run") / f"clip {i}.mp4"
        path.parent.mkdir(exist_ok=True)
        make_video(path, [24 * k for k in range(frames)], size=(32 + 4 * i, 48))
    (folder / "broken.mp4").write_bytes(b"not a video")
    make_video(folder / "tiny.mkv", [0], size=(6, 16), codec="ffv1")
    return folder


def config(**values: Any) -> DictConfig:
    fixed = {"trainer.accelerator": "cpu", "num_workers": 0}
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose("encode", overrides=[f"{key}={value}" for key, value in (fixed | values).items()])


def samples_of(folder: Path) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """Every sample as WebDataset's convention has it, read with tarfile and safetensors alone."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                assert extension not in found.setdefault(key, {}), f"{key} is there twice"
                found[key][extension] = tar.extractfile(member).read()
    return {key: (load(sample["safetensors"]), json.loads(sample["json"])) for key, sample in found.items()}


def rejected_of(folder: Path) -> dict[str, str]:
    with (folder / "rejected.csv").open(newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def expected_posterior(checkpoint: Path, video: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation (t', c, h', w') by the model itself on tiles of 32 frames."""
    model = TemporalAutoencoder.from_pretrained(checkpoint)
    clip = frames_to_clip(torch.from_numpy(np.stack(decode_in_order(video.read_bytes())))[None])
    with torch.no_grad():
        posteriors = [model.encode(tile) for tile in clip.split(32, dim=2)]
    mean = torch.cat([p.mean for p in posteriors], 2)[0].movedim(1, 0)
    return mean, torch.cat([(0.5 * p.logvar).exp() for p in posteriors], 2)[0].movedim(1, 0)


def test_every_video_is_encoded_or_listed(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    stats = main(config(ckpt=checkpoint, source=videos, output=tmp_path, clips_per_shard=2, dtype="fp32"))
    samples, rejected = samples_of(tmp_path), rejected_of(tmp_path)
    assert stats.num_clips == len(samples) == 5
    report = json.loads((tmp_path / "latents_report.json").read_text())
    assert report["clips"] == 5
    assert report["mean"] == pytest.approx(stats.mean, abs=1e-6)
    assert report["posterior_std"] == pytest.approx(stats.posterior_std, rel=1e-6)
    assert report["equivariance"] is report["spectrum"]["distance"] is None, "the frames are not there any more"
    assert set(rejected) == {"broken.mp4", "tiny.mkv"}
    assert "frames of 6x16 are too small" in rejected["tiny.mkv"]
    for tensors, metadata in samples.values():
        mean, std = expected_posterior(checkpoint, videos / metadata["source"])
        # The colours of one decoder in two settings differ by at most a level of 127.5; a frame off would be far more.
        torch.testing.assert_close(tensors["mean"], mean, atol=0.05, rtol=0)
        torch.testing.assert_close(tensors["std"], std, atol=0.05, rtol=0)
        assert metadata["latent_shape"] == list(mean.shape)
        assert metadata["label"] == Path(metadata["source"]).parent.name
        assert metadata["fps"] == 25.0
    lengths = {Path(metadata["source"]).stem: metadata["num_frames"] for _, metadata in samples.values()}
    assert lengths == {"clip 0": 1, "clip 1": 9, "clip 2": 40, "clip 3": 8, "clip 4": 17}
    index = json.loads((tmp_path / "index.json").read_text())
    assert [frames for shard in index["shards"] for frames in shard["frames"].values()] == [
        metadata["num_frames"] for _, metadata in samples.values()
    ]


def test_statistics_are_those_of_the_samples(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    stats = main(config(ckpt=checkpoint, source=videos, output=tmp_path))
    read = json.loads((tmp_path / "latent_stats.json").read_text())
    assert (read["scale"], tuple(read["mean"])) == (stats.scale, stats.mean)
    clips = [tensors for tensors, _ in samples_of(tmp_path).values()]
    mean, std = (
        np.concatenate([clip[name].double().movedim(1, 0).flatten(1).numpy() for clip in clips], 1)
        for name in ("mean", "std")
    )
    variance = mean.var(1) + (std**2).mean(1)
    np.testing.assert_allclose(stats.mean, mean.mean(1), rtol=1e-9)
    np.testing.assert_allclose(stats.std, np.sqrt(variance), rtol=1e-9)
    np.testing.assert_allclose(stats.posterior_std, np.sqrt((std**2).mean(1)), rtol=1e-9)
    noise = np.random.default_rng(0).standard_normal((2000, *mean.shape))
    scaled = ((mean + std * noise) - stats.shift) * stats.scale
    assert abs(scaled.mean()) < 0.01  # 2000 draws of thousands of values
    assert abs(scaled.var() - 1) < 0.01
    outliers = positions = 0
    for clip in clips:
        for frame in clip["mean"].double().numpy():  # (c, h', w')
            deviation = frame - frame.mean((1, 2), keepdims=True)
            outliers += int((np.sqrt((deviation**2).sum(0)) > 3 * np.sqrt(frame.var((1, 2)).sum())).sum())
            positions += frame[0].size
    assert stats.num_positions == positions
    assert stats.outlier_rate == pytest.approx(outliers / positions, abs=1e-9)


def test_resolution_and_stride(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    main(config(ckpt=checkpoint, source=videos, output=tmp_path, resolution=24, frame_stride=2, dtype="bf16"))
    samples = samples_of(tmp_path)
    assert len(samples) == 6  # the tiny one is enlarged
    assert {tensors["mean"].dtype for tensors, _ in samples.values()} == {torch.bfloat16}
    assert {tuple(tensors["mean"].shape[2:]) for tensors, _ in samples.values()} == {(3, 3)}
    (longest,) = (metadata for _, metadata in samples.values() if metadata["source"] == "run/clip 2.mp4")
    assert (longest["num_frames"], longest["fps"], longest["latent_shape"][0]) == (20, 12.5, 3)


def test_a_stopped_run_goes_on(checkpoint: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was finished is kept as it is, and the result has the bytes of a run that was never stopped."""
    settings = {"ckpt": checkpoint, "source": videos, "clips_per_shard": 2}
    main(config(**settings, output=tmp_path / "whole"))
    ended, end_clip = [], LatentShard.end_clip

    def stop_at_the_fourth(self: LatentShard, **clip: Any) -> None:
        ended.append(clip["name"])
        if len(ended) == 4:
            raise RuntimeError("the machine stops")
        end_clip(self, **clip)

    with monkeypatch.context() as patch:
        patch.setattr(LatentShard, "end_clip", stop_at_the_fourth)
        with pytest.raises(RuntimeError, match="the machine stops"):
            main(config(**settings, output=tmp_path / "stopped"))
    first = tmp_path / "stopped" / "shard-000000.tar"
    assert not (tmp_path / "stopped" / "latent_stats.json").exists()
    written = first.stat().st_mtime_ns
    for draft in (".finished/.000000.json.4711.tmp", ".index.json.4711.tmp"):  # as a killed process leaves them
        (tmp_path / "stopped" / draft).touch()
    main(config(**settings, output=tmp_path / "stopped"))
    assert first.stat().st_mtime_ns == written
    for path in (tmp_path / "whole").glob("[!.]*"):
        assert path.read_bytes() == (tmp_path / "stopped" / path.name).read_bytes(), path.name
    assert not [*(tmp_path / "stopped").glob(".*.partial"), *(tmp_path / "stopped").rglob(".*.tmp")]
    with pytest.raises(UserError, match=r"clips_per_shard was 2 and is 3"):
        main(config(**settings | {"clips_per_shard": 3}, output=tmp_path / "stopped"))


@pytest.mark.slow
def test_a_signal_ends_it_and_keeps_finished_shards(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    """The signal comes with the second shard begun; a process of its own, since it ends by the signal."""
    code = """
import os, signal
from pathlib import Path
from tae import encode
from tae.latents.writer import LatentShard
append = LatentShard.append
def append_and_signal(self, *arguments):
    append(self, *arguments)
    if list(Path(os.environ["OUTPUT"]).glob("shard-*.tar")):
        os.kill(os.getpid(), signal.SIGTERM)
LatentShard.append = append_and_signal
encode.main()
"""
    output = tmp_path / "out"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "OUTPUT": str(output)}
    settings = {"ckpt": checkpoint, "source": videos / "run", "output": output, "clips_per_shard": 1}
    arguments = [f"{key}={value}" for key, value in settings.items()] + ["trainer.accelerator=cpu", "num_workers=0"]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == -signal.SIGTERM, done.stderr
    assert "the same command resumes" in done.stderr
    assert {path.name for path in output.iterdir()} == {".finished", "shard-000000.tar"}
    written = (output / "shard-000000.tar").stat().st_mtime_ns
    assert main(config(**settings)).num_clips == 3
    assert (output / "shard-000000.tar").stat().st_mtime_ns == written


def test_other_content_under_the_same_names_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """Or the latents of the first source would stay, and count as those of the second."""
    for name, frames in (("a", 9), ("b", 17)):
        (tmp_path / name).mkdir()
        video = make_video(tmp_path / name / "clip.mp4", [24 * k for k in range(frames)])
        with ShardWriter(tmp_path / f"{name}-shards" / "in", "train", {}, shard_bytes=10**6) as writer:
            writer.write("clip", "mp4", video.read_bytes(), {"num_frames": frames, "fps": 25.0})
    main(config(ckpt=checkpoint, source=tmp_path / "a", output=tmp_path / "files"))
    with pytest.raises(UserError, match="list of videos was"):
        main(config(ckpt=checkpoint, source=tmp_path / "b", output=tmp_path / "files"))
    source = tmp_path / "source"
    (tmp_path / "a-shards" / "in").rename(source)
    main(config(ckpt=checkpoint, source=source, output=tmp_path / "shards"))
    source.rename(tmp_path / "before")
    (tmp_path / "b-shards" / "in").rename(source)
    with pytest.raises(UserError, match="list of videos was"):
        main(config(ckpt=checkpoint, source=source, output=tmp_path / "shards"))


def test_shards_and_lists(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "in", "train", {}, shard_bytes=10**6) as writer:
        for i, path in enumerate(sorted((videos / "run").iterdir())):
            metadata = {"num_frames": 1, "fps": 25.0, "label": "run", "group": f"g{i}"}
            writer.write(f"c{i}", "mp4", path.read_bytes(), metadata)
        writer.write("cut", "mp4", b"\0" * 100, {"num_frames": 9, "fps": 25.0})
    index = json.loads((tmp_path / "in" / "index.json").read_text())
    del index["shards"][0]["offsets"], index["shards"][0]["fps"]
    index["shards"][0] |= {"samples": 5, "frames": index["shards"][0]["frames"] | {"lost": 9}}
    (tmp_path / "in" / "index.json").write_text(json.dumps(index))
    main(config(ckpt=checkpoint, source=tmp_path / "in", output=tmp_path / "a"))
    samples = samples_of(tmp_path / "a")
    assert [samples[f"c{i}"][1]["num_frames"] for i in range(3)] == [1, 40, 17]  # counted, not copied
    assert samples["c1"][1]["group"] == "g1"
    shard = tmp_path / "in" / "shard-000000.tar"
    assert list(rejected_of(tmp_path / "a")) == [f"{shard}: cut", f"{shard}: lost"]
    assert "not in the shard" in rejected_of(tmp_path / "a")[f"{shard}: lost"]
    listing = tmp_path / "list.txt"
    listing.write_text(f"{videos}/run/clip 2.mp4\n\nmissing.mp4\n")
    main(config(ckpt=checkpoint, source=listing, output=tmp_path / "b"))
    assert list(samples_of(tmp_path / "b")) == ["clip_2"]
    assert torch.equal(samples_of(tmp_path / "b")["clip_2"][0]["mean"], samples["c1"][0]["mean"])
    assert rejected_of(tmp_path / "b") == {str(tmp_path / "missing.mp4"): "no such file"}


@pytest.mark.parametrize(("weight", "message"), [(float("nan"), "NaN or infinite"), (1e6, "beyond the range")])
def test_latents_that_cannot_be_stored_are_refused(
    weight: float, message: str, checkpoint: Path, videos: Path, tmp_path: Path
) -> None:
    """NaN, as half precision may give, and what overflows only in being rounded to fp16; nothing is left of the shard."""
    model = TemporalAutoencoder.from_pretrained(checkpoint)
    with torch.no_grad():
        model.encoder.conv_out.spatial.bias[0] = weight
    model.save_pretrained(tmp_path / "model")
    settings = {"ckpt": tmp_path / "model", "source": videos / "run"}
    with pytest.raises(UserError, match=f"clip 0.mp4: its latents .*{message}"):
        main(config(**settings, output=tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".finished"]
    if message == "beyond the range":
        assert main(config(**settings, output=tmp_path / "wide", dtype="fp32")).num_clips == 3


def test_short_tiles_are_not_refused_for_an_overlap_that_encoding_does_not_use(
    checkpoint: Path, videos: Path, tmp_path: Path
) -> None:
    settings = {"ckpt": checkpoint, "source": videos / "run", "output": tmp_path, "tiling.tile_pixel_frames": 16}
    assert main(config(**settings)).num_clips == 3
    with pytest.raises(UserError, match="tiling was"):
        main(config(**settings | {"tiling.tile_pixel_frames": 8}))


def test_entries_with_nan_do_not_become_statistics(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    """Such as a folder may hold that was begun before they were refused."""
    settings = {"ckpt": checkpoint, "source": videos / "run", "output": tmp_path / "out"}
    main(config(**settings))
    entry = tmp_path / "out" / ".finished" / "000000.json"
    content = json.loads(entry.read_text())
    content["moments"]["mean"][0] = float("nan")
    entry.write_text(json.dumps(content))
    with pytest.raises(UserError, match="not finite"):
        main(config(**settings))


@pytest.mark.slow
def test_two_processes_and_their_workers_give_the_bytes_of_one(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    for devices, workers in ((1, 0), (2, 2)):
        arguments = [f"ckpt={checkpoint}", f"source={videos}", f"output={tmp_path}/{devices}", "clips_per_shard=1"]
        arguments += ["trainer.accelerator=cpu", f"trainer.devices={devices}", f"num_workers={workers}"]
        command = [sys.executable, "-m", "tae.encode", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "1").glob("[!.]*")}
    assert len(names) == 5 + 3
    for name in names:
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"dtype": "int8"}, "dtype=int8 is not allowed"),
        ({"clips_per_shard": 0}, "clips_per_shard=0"),
        ({"resolution": 4}, "resolution=4"),
        ({"source": "/nowhere"}, "source=/nowhere does not exist"),
        ({"source": "/nowhere/*.tar"}, "matches no shard"),
        ({"tiling.tile_pixel_frames": 12}, "multiples of 8"),
    ],
)
def test_mistakes_are_named(checkpoint: Path, videos: Path, tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(config(**{"ckpt": checkpoint, "source": videos, "output": tmp_path / "out"} | wrong))
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_things_is_left_alone(checkpoint: Path, videos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something else"):
        main(config(ckpt=checkpoint, source=videos, output=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
