"""How far models are above the best linear codec of its rate: principal components of 8x8x8 blocks.

    python -m benchmarks.linear_codec --ckpt tiny --size 32 128 --train 'datasets/tiny/*/train/*.tar' \\
        --test 'datasets/tiny/ucf101/test/*.tar'

Each block of 8x8x8x3 values becomes its coefficients on the first 16 principal components of the training clips' blocks,
as many numbers as the model's latent has for the block (`tae.metrics.linear_codec`). All codecs see the same test clips, by
the protocol of `tae.evaluation.protocol`, and are measured together. `--ckpt` takes several, also
`diffusers:CLASS:FOLDER`; the first one's latents set the rate.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, TypeAlias

import torch
from torch import Tensor

from benchmarks.common import RESULTS, publish
from data.datamodule import ClipDataModule
from tae.evaluation.results import measured, of_the_set
from tae.metrics.baseline import trilinear_baseline
from tae.metrics.linear_codec import BLOCK, BlockSums, LinearCodec
from tae.metrics.metric import Candidate, Measured, Measurement, Metric
from tae.metrics.registry import METRICS, MORE_METRICS, SLOW_METRICS
from tae.model.frame_conversion import clip_to_frames, frames_to_clip
from tae.model.pretrained import load_autoencoder

Codec: TypeAlias = Callable[[Tensor], Tensor]  # clips (b, 3, t, h, w) in [-1, 1], there and back
Shards: TypeAlias = str | Sequence[str]


def means(clips: list[Measured], metrics: Mapping[str, Metric]) -> dict[str, float]:
    """Each metric over all clips, which are of one length."""
    found = {name: fmean(clip.values[name] for clip in clips) for name in clips[0].values}
    sets = {name: of_the_set(metrics[name], [clip.kept[name] for clip in clips]) for name in clips[0].kept}
    return found | {name: value["mean"] for name, value in measured(sets).items()}


def choose_metrics(choice: str) -> dict[str, Metric]:
    """Those of conf/metrics/CHOICE.yaml that do without more than the reconstruction: what latents need, codecs lack."""
    chosen = METRICS if choice == "tae-eval-1" else METRICS | MORE_METRICS
    if choice == "fast":
        chosen = {name: metric for name, metric in chosen.items() if name in METRICS or name not in SLOW_METRICS}
    return {name: metric for name, metric in chosen.items() if not {"latents", "images"} & set(metric.needs)}


def open_clips(train: Shards, test: Shards, frames: int, pixels: int, output: Path) -> ClipDataModule:
    """Clips of shards to fit on and to measure on, one by one."""
    data = ClipDataModule(
        {"train": train, "test": test}, frames, 1, pixels, 1, 0, "skip", 0.01, 64, 0, output
    )  # fmt: skip
    data.setup()
    return data


def reconstruct(model: Any, clip: Tensor) -> Tensor:
    return model(clip, sample_posterior=False).reconstruction


def fit(data: ClipDataModule, clips: int, numbers: int) -> LinearCodec:
    """The codec of the principal components of random windows of the training clips."""
    endless = (frames_to_clip(batch["frames"]) for _ in iter(int, 1) for batch in data.train_dataloader())
    sums = BlockSums()
    for clip in islice(endless, clips):
        sums.add(clip)
    return LinearCodec(sums, numbers)


@torch.no_grad()
def measure(
    codecs: Mapping[str, Codec], data: ClipDataModule, metrics: Mapping[str, Metric], time_factor: int
) -> list[dict[str, Any]]:
    """A row for each codec: its metrics over all test clips."""
    test = data.test_dataloader()
    measurement = Measurement(metrics, len(test.clips))
    found: dict[str, list[Measured]] = {name: [] for name in codecs}
    for batch in test:
        clip = frames_to_clip(batch["frames"])
        context = {"fps": batch["fps"], "time_factor": [time_factor] * len(clip)}
        candidates = [Candidate(clip_to_frames(codec(clip)), context) for codec in codecs.values()]
        for name, clips in zip(found, measurement.of_each(batch["frames"], candidates), strict=True):
            found[name] += clips
    for name, reason in measurement.reasons.items():
        print(f"{name}: not measured, {reason}")
    return [{"codec": name, **means(clips, measurement.metrics), "clips": len(clips)} for name, clips in found.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", nargs="+", default=["tiny"])
    parser.add_argument("--train", nargs="+", required=True, help="shards to fit the linear codec on")
    parser.add_argument("--test", nargs="+", required=True, help="shards to measure on")
    parser.add_argument("--size", type=int, nargs=2, default=(32, 128), metavar=("FRAMES", "PIXELS"))
    parser.add_argument("--metrics", choices=["tae-eval-1", "fast", "full"], default="tae-eval-1")
    parser.add_argument("--fit-clips", type=int, default=512, help="random windows to fit on")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if any(side % BLOCK for side in arguments.size):
        parser.error(f"--size {arguments.size}: multiples of {BLOCK} are needed")
    data = open_clips(arguments.train, arguments.test, *arguments.size, arguments.output)
    models = {name: load_autoencoder(name).model for name in arguments.ckpt}
    first: Any = next(iter(models.values()))
    codecs: dict[str, Codec] = {
        "trilinear": lambda clip: trilinear_baseline(clip, first.time_factor, first.space_factor),
        "linear": fit(data, arguments.fit_clips, first.latent_channels),
    }
    codecs |= {name: partial(reconstruct, model) for name, model in models.items()}
    rows = measure(codecs, data, choose_metrics(arguments.metrics), first.time_factor)
    publish("linear_codec", "cpu", {k: v for k, v in vars(arguments).items() if k != "output"}, rows, arguments.output)


if __name__ == "__main__":
    main()
