"""How far a model is above the best linear codec of its rate: principal components of 8x8x8 blocks.

    python -m benchmarks.linear_codec --ckpt tiny --size 32 128 --train 'datasets/tiny/*/train/*.tar' \\
        --test 'datasets/tiny/ucf101/test/*.tar'

Each block of 8x8x8x3 values becomes its coefficients on the first 16 principal components of the training clips' blocks,
as many numbers as the model's latent has for the block. No linear codec that treats blocks one by one has a smaller mean
squared error on the clips it is fitted on. All codecs see the same test clips, by the protocol of `tae.evaluation.protocol`.
"""

import argparse
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor

from benchmarks.common import RESULTS, publish
from data.datamodule import ClipDataModule
from tae.metrics.baseline import trilinear_baseline
from tae.metrics.metric import Measured, Measurement
from tae.metrics.registry import METRICS
from tae.model.frame_conversion import clip_to_frames, frames_to_clip
from tae.model.pretrained import load_model

BLOCK = 8  # frames, rows and columns


def to_blocks(clip: Tensor) -> Tensor:
    """(b, 3, t, h, w), all sides multiples of 8, to (blocks, 1536)."""
    blocks = clip.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK).unfold(4, BLOCK, BLOCK)
    return blocks.permute(0, 2, 3, 4, 1, 5, 6, 7).reshape(-1, 3 * BLOCK**3)


def from_blocks(blocks: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of `to_blocks`; `shape` is the clip's."""
    batch, channels, *extent = shape
    grid = [side // BLOCK for side in extent]
    parts = blocks.reshape(batch, *grid, channels, BLOCK, BLOCK, BLOCK)
    return parts.permute(0, 4, 1, 5, 2, 6, 3, 7).reshape(shape)


class LinearCodec:
    """Principal components of the blocks of some clips.

    Args:
        clips: (b, 3, t, h, w) each.
        numbers: components kept for each block.
    """

    def __init__(self, clips: Iterable[Tensor], numbers: int) -> None:
        size = 3 * BLOCK**3
        count, total, products = 0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        for clip in clips:
            blocks = to_blocks(clip).double()
            count, total, products = count + len(blocks), total + blocks.sum(0), products + blocks.T @ blocks
        self.mean = total / count
        _, vectors = torch.linalg.eigh(products / count - torch.outer(self.mean, self.mean))
        self.components = vectors[:, -numbers:]  # eigh sorts upwards

    def __call__(self, clip: Tensor) -> Tensor:
        centred = to_blocks(clip).double() - self.mean
        return from_blocks(centred @ self.components @ self.components.T + self.mean, clip.shape).to(clip.dtype)


def means(clips: list[Measured]) -> dict[str, float]:
    """Each metric's mean over all clips, which are of one length."""
    return {name: fmean(clip.values[name] for clip in clips) for name in clips[0].values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="tiny")
    parser.add_argument("--train", nargs="+", required=True, help="shards to fit the linear codec on")
    parser.add_argument("--test", nargs="+", required=True, help="shards to measure on")
    parser.add_argument("--size", type=int, nargs=2, default=(32, 128), metavar=("FRAMES", "PIXELS"))
    parser.add_argument("--fit-clips", type=int, default=512, help="random windows to fit on")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if any(side % BLOCK for side in arguments.size):
        parser.error(f"--size {arguments.size}: multiples of {BLOCK} are needed")
    data = ClipDataModule(
        {"train": arguments.train, "test": arguments.test}, *arguments.size[:1], 1, arguments.size[1], 1, 0, "skip", 0.01,
        64, 0, arguments.output,
    )  # fmt: skip
    data.setup()
    model = load_model(arguments.ckpt).model
    endless = (frames_to_clip(batch["frames"]) for _ in iter(int, 1) for batch in data.train_dataloader())
    linear = LinearCodec(islice(endless, arguments.fit_clips), model.latent_channels)
    codecs = {
        "trilinear": lambda clip: trilinear_baseline(clip, model.time_factor, model.space_factor),
        "linear": linear,
        "model": lambda clip: model(clip, sample_posterior=False).reconstruction,
    }
    measure = Measurement(METRICS)
    found: dict[str, list[Measured]] = {name: [] for name in codecs}
    with torch.no_grad():
        for batch in data.test_dataloader():
            clip = frames_to_clip(batch["frames"])
            for name, codec in codecs.items():
                frames = clip_to_frames(codec(clip))
                found[name] += measure(batch["frames"], frames)
    rows = [{"codec": name, **means(clips), "clips": len(clips)} for name, clips in found.items()]
    publish("linear_codec", "cpu", {k: v for k, v in vars(arguments).items() if k != "output"}, rows, arguments.output)


if __name__ == "__main__":
    main()
