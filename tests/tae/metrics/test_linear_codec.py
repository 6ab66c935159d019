"""Principal components of blocks against a decomposition of the blocks themselves."""

import itertools

import numpy as np
import pytest
import torch

from tae.evaluation.floor import COMPONENTS, evenly_spaced, linear_codec_curve
from tae.metrics.frame import psnr
from tae.metrics.linear_codec import BLOCK_VALUES, BlockSums, LinearCodec, from_blocks, to_blocks
from tae.model.frame_conversion import clip_to_frames, frames_to_clip


def smooth_clip(seed: int, frames: int = 16, size: int = 24) -> torch.Tensor:
    """(1, 3, t, h, w) of waves, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    phase = torch.rand(3, 3, generator=generator) * 6
    axes = [torch.arange(n) / 8 for n in (frames, size, size)]
    waves = [torch.sin(axis + phase[:, i : i + 1]) for i, axis in enumerate(axes)]
    clip = waves[0][:, :, None, None] * waves[1][:, None, :, None] * waves[2][:, None, None, :]
    return (0.7 * clip + 0.05 * torch.randn(clip.shape, generator=generator))[None]


@pytest.mark.parametrize("size", [(8, 8, 8), (16, 24, 8), (9, 17, 30), (1, 8, 8)])
def test_blocks_come_back(size: tuple[int, int, int]) -> None:
    clip = torch.randn(2, 3, *size)
    assert to_blocks(clip).shape[1] == BLOCK_VALUES
    assert torch.equal(from_blocks(to_blocks(clip), clip.shape), clip)


def test_blocks_are_the_clip_cut_up() -> None:
    clip = torch.arange(2 * 3 * 8 * 16 * 24).reshape(2, 3, 8, 16, 24)
    assert torch.equal(to_blocks(clip)[4], clip[0, :, :8, 8:16, 8:16].flatten()), "row 1, column 1 of the first clip"


def test_the_error_is_what_the_remaining_components_hold() -> None:
    """By the singular values of the blocks, which no other linear codec of as many numbers can better."""
    clips, sums = [smooth_clip(seed) for seed in range(3)], BlockSums()
    for clip in clips:
        sums.add(clip)
    blocks = torch.cat([to_blocks(clip) for clip in clips]).double().numpy()
    values = np.linalg.svd(blocks - blocks.mean(0), compute_uv=False) ** 2
    codec = LinearCodec(sums, 8)
    for numbers in (1, 3, 8):
        error = sum((codec(clip, numbers) - clip).double().square().sum().item() for clip in clips)
        # Coded in float32: 1e-6 of the whole energy. One component more or less changes the error by 1 % and more.
        assert error == pytest.approx(values[numbers:].sum(), rel=1e-4)


def test_each_half_is_coded_by_the_other() -> None:
    frames = {f"c{i}": clip_to_frames(smooth_clip(i))[0] for i in range(5)}
    batches = [{"frames": value[None], "keys": [key], "fps": [25.0]} for key, value in frames.items()]
    curve = linear_codec_curve(batches, list(frames), torch.device("cpu"))
    sums = [BlockSums(), BlockSums()]
    for place, value in enumerate(frames.values()):
        sums[place % 2].add(frames_to_clip(value[None]))
    expected = [
        psnr(value, clip_to_frames(LinearCodec(sums[1 - place % 2], 4)(frames_to_clip(value[None])))[0]).mean().item()
        for place, value in enumerate(frames.values())
    ]
    assert curve is not None
    assert curve["psnr"][COMPONENTS.index(4)] == pytest.approx(np.mean(expected), abs=1e-3)
    assert curve["rate"][COMPONENTS.index(16)] == 16 / 1536
    assert all(low <= high + 0.01 for low, high in itertools.pairwise(curve["psnr"])), "more numbers, more dB"
    assert linear_codec_curve(batches[:1], ["c0"], torch.device("cpu")) is None


def test_at_most_sixteen_clips_are_taken_from_all_over_the_set() -> None:
    assert evenly_spaced([f"{i:03}" for i in range(100)])[:3] == ["000", "007", "014"]
    assert len(evenly_spaced([str(i) for i in range(100)])) == 15
    assert evenly_spaced(["a", "b"]) == ["a", "b"]
