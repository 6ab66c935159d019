"""Seconds to decode a random window of a long video, against the same window of its re-encoded shots.

    python -m benchmarks.shots --videos film_1080p.mp4 --short-sides 0 512 256

Both are read as training reads them: a file in memory is opened and a window decoded. A short side of 0 keeps the size.
"""

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, interleaved, publish, spread
from data.decode import read_frames
from data.ingest.check import check_video
from data.ingest.shots import Encoding, encode_shots, find_shots


def decode_windows(clips: list[tuple[bytes, int]], num_frames: int, windows: int) -> None:
    """The same random places at every call: a clip by its length, and any start in it."""
    rng = np.random.default_rng(0)
    weights = np.array([frames for _, frames in clips]) / sum(frames for _, frames in clips)
    for _ in range(windows):
        video, frames = clips[rng.choice(len(clips), p=weights)]
        start = int(rng.integers(max(frames - num_frames, 0) + 1))
        read_frames(video, range(start, min(start + num_frames, frames)))


def reencoded(video: bytes, short_side: int, arguments: argparse.Namespace) -> list[tuple[bytes, int]]:
    encoding = Encoding(True, 27.0, arguments.num_frames, short_side or None, arguments.gop, arguments.crf)
    shots, _ = find_shots(video, encoding)
    clips = list(encode_shots(video, shots, encoding))
    assert not any(isinstance(check_video(clip), str) for clip in clips)
    return [(clip, end - start) for clip, (start, end) in zip(clips, shots, strict=True)]


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for path in arguments.videos:
        video = path.read_bytes()
        facts = check_video(video)
        if isinstance(facts, str):
            raise SystemExit(f"{path}: {facts}")
        ways = {"original": [(video, facts.num_frames)]}
        ways |= {
            f"short side {side or facts.height}": reencoded(video, side, arguments) for side in arguments.short_sides
        }
        calls: dict[str, Callable[[], None]] = {
            name: partial(decode_windows, clips, arguments.num_frames, arguments.windows)
            for name, clips in ways.items()
        }
        times = interleaved(calls, "cpu", warmup=1, repeats=arguments.repeats)
        original = spread(times["original"])["median"]
        for name, seconds in times.items():
            found = spread(seconds)
            rows.append(
                {
                    "video": path.stem,
                    "file": name,
                    "clips": len(ways[name]),
                    "MB": sum(len(clip) for clip, _ in ways[name]) / 1e6,
                    "s/window": found["median"] / arguments.windows,
                    "p25": found["p25"] / arguments.windows,
                    "p75": found["p75"] / arguments.windows,
                    "times the original": original / found["median"],
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, nargs="+", required=True)
    parser.add_argument("--short-sides", type=int, nargs="+", default=(0, 512, 256))
    parser.add_argument("--num-frames", type=int, default=32)
    parser.add_argument("--gop", type=int, default=8)
    parser.add_argument("--crf", type=int, default=18)
    parser.add_argument("--windows", type=int, default=8, help="in each repeat")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.load_before = round(os.getloadavg()[0], 1)
    rows = run(arguments)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output", "videos")}
    publish("shots", "cpu", settings, rows, arguments.output)


if __name__ == "__main__":
    main()
