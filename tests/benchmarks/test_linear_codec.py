import numpy as np
import torch

from benchmarks.linear_codec import LinearCodec, from_blocks, to_blocks


def test_blocks_are_the_clip_cut_up() -> None:
    clip = torch.arange(2 * 3 * 8 * 16 * 24).reshape(2, 3, 8, 16, 24)
    blocks = to_blocks(clip)
    assert blocks.shape == (2 * 1 * 2 * 3, 1536)
    assert torch.equal(blocks[4], clip[0, :, :8, 8:16, 8:16].flatten())  # row 1, column 1 of the first clip
    assert torch.equal(from_blocks(blocks, clip.shape), clip)


def test_it_is_the_best_of_its_rank() -> None:
    """The error is what a singular value decomposition leaves over: no linear code of that many numbers has less."""
    generator = torch.Generator().manual_seed(0)
    clip = torch.rand(1, 3, 16, 32, 32, generator=generator)
    blocks = to_blocks(clip).double().numpy()
    singular = np.linalg.svd(blocks - blocks.mean(0), compute_uv=False)
    for numbers in (1, 5, 20):
        error = (LinearCodec([clip], numbers)(clip) - clip).square().sum().item()
        np.testing.assert_allclose(error, (singular[numbers:] ** 2).sum(), rtol=1e-4)  # the clip is float32
