"""Latents read back: windows, samples, scaling, and folders that are not whole."""

import json
import runpy
import sys
from collections.abc import Iterator
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from torch.utils.data import DataLoader

from tae import UserError
from tae.latents.dataset import LatentDataset
from tae.latents.file import read_window
from tae.latents.sampler import SizeBatchSampler
from tae.latents.stats import LatentStats, Scaling
from tae.latents.writer import LatentFile, LatentShard, finish

WHOLE_CLIPS = pytest.mark.filterwarnings("ignore:.*have 3 sizes")
LENGTHS = {"a": 5, "b": 2, "c": 9}  # latent frames


def moments_of(key: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation (1, 3, t', 2, 4) of a made-up posterior."""
    generator = torch.Generator().manual_seed(ord(key))
    shape = (1, 3, LENGTHS[key], 2, 4)
    return torch.randn(shape, generator=generator) * 2 + 1, torch.rand(shape, generator=generator)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / ".finished").mkdir()
    for number, keys in enumerate(("ab", "c")):
        shard = LatentShard(tmp_path, number, torch.float32)
        for key in keys:
            mean, std = moments_of(key)
            for piece in zip(mean.split(4, 2), std.split(4, 2), strict=True):
                shard.append(key, *piece)
            shard.end_clip(key, key, {"num_frames": 8 * LENGTHS[key], "label": f"class {key}"})
        shard.finish()
    finish(tmp_path, {}, 2, {"path": "p", "sha256": None}, [])
    return tmp_path


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_file_is_a_safetensors_file(dtype: torch.dtype) -> None:
    mean, std = moments_of("c")
    buffer = BytesIO(b"before")
    buffer.seek(0, 2)
    with LatentFile("a clip", dtype) as file:
        for piece in zip(mean.split(2, 2), std.split(2, 2), strict=True):
            file.append(*piece)
        file.write_to(buffer, num_frames=72)
    read = load(buffer.getvalue()[len(b"before") :])
    assert torch.equal(read["mean"], mean[0].movedim(1, 0).to(dtype))
    assert torch.equal(read["std"], std[0].movedim(1, 0).to(dtype))
    buffer.seek(len(b"before"))
    assert torch.equal(read_window(buffer, "std", start=3, length=4), read["std"][3:7])


@WHOLE_CLIPS
def test_modes_are_the_scaled_means(folder: Path) -> None:
    dataset = LatentDataset(folder, sample=False)
    assert [item["key"] for item in dataset] == ["a", "b", "c"]
    for item in dataset:
        mean = moments_of(item["key"])[0][0]
        torch.testing.assert_close(item["latents"], (mean - dataset.stats.shift) * dataset.stats.scale)
        torch.testing.assert_close(dataset.scaling.undo(item["latents"]), mean)
        assert item["label"] == f"class {item['key']}"


@WHOLE_CLIPS
def test_samples_have_the_posteriors_distribution(folder: Path) -> None:
    dataset = LatentDataset(folder)
    mean, std = (moment[0] for moment in moments_of("a"))
    drawn = torch.stack([dataset.scaling.undo(dataset[0]["latents"]) for _ in range(4000)])
    assert ((drawn.mean(0) - mean).abs() < 6 * std / 4000**0.5 + 1e-5).all()
    torch.testing.assert_close(drawn.std(0), std, rtol=0.08, atol=1e-5)  # 7 standard errors of a deviation


def test_windows_come_from_everywhere_and_batch(folder: Path) -> None:
    with pytest.warns(UserWarning, match="1 of 3 clips have fewer than 4 latent frames"):
        dataset = LatentDataset(folder, num_frames=4, sample=False)
    mean = moments_of("c")[0][0]
    starts = set()
    for _ in range(200):
        window = dataset.scaling.undo(dataset[1]["latents"])
        (start,) = (i for i in range(6) if torch.allclose(window, mean[:, i : i + 4], atol=1e-5))
        starts.add(start)
    assert starts == set(range(6))
    (batch,) = DataLoader(dataset, batch_size=2)
    assert batch["latents"].shape == (2, 3, 4, 2, 4)


@WHOLE_CLIPS
def test_each_channel_can_have_its_own_scale(folder: Path) -> None:
    dataset = LatentDataset(folder, sample=False, per_channel=True)
    values = torch.cat([item["latents"].flatten(1) for item in dataset], 1)
    torch.testing.assert_close(values.mean(1), torch.zeros(3), atol=1e-5, rtol=0)
    noise = torch.tensor(dataset.stats.posterior_std) / torch.tensor(dataset.stats.std)
    torch.testing.assert_close(values.var(1, correction=0) + noise**2, torch.ones(3))
    latents = torch.randn(2, 3, 4, 2, 4)  # a batch
    torch.testing.assert_close(dataset.scaling.undo(dataset.scaling.apply(latents)), latents)


def test_stats_survive_their_file(folder: Path) -> None:
    stats = LatentStats.read(folder)
    assert json.loads((folder / "latent_stats.json").read_text()) == {"version": 1} | json.loads(
        json.dumps(asdict(stats))
    )
    assert Scaling.from_stats(stats, per_channel=False).scale.item() == pytest.approx(stats.scale)


def test_what_is_not_whole_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="no clip has 10 latent frames, the longest has 9"):
        LatentDataset(folder, num_frames=10)
    shard = folder / "shard-000001.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(UserError, match="another size"):
        LatentDataset(folder)
    shard.unlink()
    with pytest.raises(UserError, match="not complete"):
        LatentDataset(folder)
    (folder / "latent_stats.json").unlink()
    with pytest.raises(UserError, match="has finished"):
        LatentDataset(folder)


def test_the_example_refuses_latents_of_another_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Before it trains, and in a sentence."""
    script = Path(__file__).parents[3] / "examples" / "flow_matching.py"
    monkeypatch.setattr(
        sys, "argv", [script.name, "--latents", str(folder), "--steps=4", f"--output={folder / 'a.mp4'}"]
    )
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(script), run_name="__main__")
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert "were made by p, which is not --ckpt tiny" in printed.err
    assert "step" not in printed.out


def test_clips_of_several_sizes_are_told_and_batched_by_size(folder: Path) -> None:
    """The clips have 5, 2 and 9 latent frames."""
    with pytest.warns(UserWarning, match=r"3 items .* have 3 sizes .*SizeBatchSampler"):
        dataset = LatentDataset(folder, sample=False)
    dataset.places = dataset.places * 4
    sampler = SizeBatchSampler(dataset, 3)
    batches = list(DataLoader(dataset, batch_sampler=sampler))
    assert len(batches) == len(sampler) == 6  # of each size three and one
    assert sorted(len(batch["key"]) for batch in batches) == [1, 1, 1, 3, 3, 3]
    assert all(len(set(batch["key"])) == 1 for batch in batches)
    first = list(sampler)
    assert sorted(index for batch in first for index in batch) == list(range(12))
    assert first == list(sampler)
    sampler.set_epoch(1)
    assert first != list(sampler)
    parts = [list(SizeBatchSampler(dataset, 3, rank=rank, world_size=4)) for rank in range(4)]
    assert [len(part) for part in parts] == [1] * 4
    assert all(batch in first for part in parts for batch in part)
