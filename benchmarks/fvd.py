"""What FVD sees: real clips against damaged copies of themselves, as numbers and as a picture.

    python -m benchmarks.fvd --videos clips/ucf101 clips/video --clips 256 --picture docs/fvd.png

The clips are the 16 central frames of each file, from all folders in turns. Every damage is done to all of them. `floor` is
the FVD of one half of the originals against the other, and so twice as few clips: what is no damage at all.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from benchmarks.common import RESULTS, publish
from data.decode import open_video
from data.sampling.windows import central_window
from tae.metrics.distribution import FRAMES, RFVD
from tae.runtime.errors import UserError
from tae.runtime.paths import list_files

SUFFIXES = {".avi", ".mkv", ".mov", ".mp4", ".webm"}
ORDER = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(0))


def blur(sigma: float) -> Callable[[Tensor], Tensor]:
    """Gaussian blur of each frame, (t, h, w, 3) uint8."""
    size = 2 * int(3 * sigma) + 1
    return lambda frames: gaussian_blur(frames.movedim(-1, 1), [size, size], [sigma, sigma]).movedim(1, -1).contiguous()


DAMAGES: dict[str, Callable[[Tensor], Tensor]] = {
    "blur, sigma 1": blur(1),
    "blur, sigma 3": blur(3),
    "frames shuffled": lambda frames: frames[ORDER],
    "frozen at the first frame": lambda frames: frames[:1].expand_as(frames),
}


def read_clip(path: Path) -> Tensor | None:
    """(16, h, w, 3) uint8: the central frames of a file, None where it has fewer or cannot be read."""
    try:
        with open_video(path.read_bytes()) as video:
            if len(video) < FRAMES:
                return None
            indices = central_window(len(video), FRAMES, 1)
            return torch.from_numpy(np.stack([image.copy() for _, image in video.each_frame(indices)]))
    except UserError:
        return None


def read_clips(folders: Sequence[Path]) -> Iterator[Tensor]:
    """A clip of each file, from the folders in turns, files in the order of their paths."""
    listed = [
        [
            folder / entry.path
            for entry in list_files(folder)
            if not entry.reason and Path(entry.path).suffix in SUFFIXES
        ]
        for folder in folders
    ]
    for turn in zip_longest(*listed):
        yield from (clip for path in turn if path is not None and (clip := read_clip(path)) is not None)


@torch.no_grad()
def measure(clips: Sequence[Tensor], metric: RFVD) -> list[dict[str, Any]]:
    """A row for each damage, with the floor first."""
    kept: dict[str, list[Any]] = {name: [] for name in DAMAGES}
    for number, clip in enumerate(clips, 1):
        for name, pair in zip(
            DAMAGES, metric.of_each(clip, [damage(clip) for damage in DAMAGES.values()]), strict=True
        ):
            kept[name].append(pair)
        print(f"{number} of {len(clips)} clips", flush=True)
    found = {name: metric.compute(pairs) for name, pairs in kept.items()}
    floor = next(iter(found.values()))["floor"]
    rows = [{"copy": "one half against the other", "FVD": floor, "low": None, "high": None}]
    for name, value in sorted(found.items(), key=lambda item: item[1]["mean"]):
        rows.append({"copy": name, "FVD": value["mean"], "low": value["ci95"][0], "high": value["ci95"][1]})
    return rows


def draw(rows: Sequence[dict[str, Any]], clips: int, path: Path) -> None:
    """Bars with their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), layout="constrained")
    axes = figure.add_subplot()
    names, values = [row["copy"] for row in rows], [row["FVD"] for row in rows]
    reach = [
        [max(row["FVD"] - row["low"], 0), max(row["high"] - row["FVD"], 0)] if row["low"] else [0, 0] for row in rows
    ]
    colours = ["0.6"] + ["tab:blue"] * (len(rows) - 1)
    bars = axes.barh(names, values, xerr=np.transpose(reach), color=colours, ecolor="0.2", capsize=3)
    axes.bar_label(bars, labels=[f"{value:,.0f}" for value in values], padding=6)
    axes.invert_yaxis()
    axes.set_xlabel(f"FVD (videogpt) of {clips} real clips against damaged copies of themselves")
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, nargs="+", required=True, help="folders of video files")
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    clips = [clip.to(arguments.device) for clip in islice(read_clips(arguments.videos), arguments.clips)]
    rows = measure(clips, RFVD(fewest_clips=min(arguments.clips, len(clips))))
    settings = {"clips": len(clips), "frames": FRAMES, "sources": ", ".join(path.name for path in arguments.videos)}
    if arguments.picture is not None:
        draw(rows, len(clips), arguments.picture)
    publish("fvd", arguments.device, settings, rows, arguments.output)


if __name__ == "__main__":
    main()
