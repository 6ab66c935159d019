"""Readers of video files by index (`data.decode`): how long a window takes, and how often it is another one.

    python -m benchmarks.decoders --videos UCF-101/ films/

Each reader opens the file in memory and decodes one window, as training does, at `--windows` random places of each
file; every reader gets the same windows. Processor time counts all threads, and other work on the machine does not
spoil it. A window is wrong where a frame is not the one of a decode from front to back (by PyAV), but another one.

A process for each reader: decord and torchcodec in one process crash, since each brings its own FFmpeg. A reader that is not
installed is left out.
"""

import argparse
import random
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import torch

from benchmarks.common import RESULTS, publish
from data.decode import VIDEO_READERS, DecodeError, as_path, read_frames
from tae.runtime.errors import UserError
from tae.video.reader import VideoReader

DIFFERENT = 8.0  # mean of 255: other decoders' frames differ by up to 2.5, neighbouring frames of still video by less


def windows_of(path: Path, arguments: argparse.Namespace) -> list[range]:
    """Random windows of a file, the same ones for every reader."""
    with VideoReader(path, interlaced="keep", threads="NONE") as reader:
        frames = sum(1 for _ in reader.frames())
    last = max(frames - arguments.num_frames, 0)
    places = random.Random(path.name)
    starts = [places.randint(0, last) for _ in range(arguments.windows)]
    return [range(start, min(start + arguments.num_frames, frames)) for start in starts]


def thumbnails(path: Path) -> list[np.ndarray]:
    """Of every frame, decoded from front to back."""
    with as_path(path.read_bytes()) as video, VideoReader(video, interlaced="keep", threads="NONE") as reader:
        return [small(frame.rgb) for frame in reader.frames()]


def small(image: np.ndarray) -> np.ndarray:
    return image[:: max(image.shape[0] // 32, 1), :: max(image.shape[1] // 32, 1)].astype(np.int16)


def is_right(frames: np.ndarray, window: range, expected: list[np.ndarray]) -> bool:
    """Whether each frame is as near to its own as to any other one."""
    for index, frame in zip(window, frames, strict=True):
        found = small(frame)
        if found.shape != expected[index].shape:
            return False
        distances = [float(np.abs(found - other).mean()) for other in expected]
        if distances[index] > min(min(distances) + 0.5, DIFFERENT):
            return False
    return True


def measure(reader: str, files: list[tuple[Path, list[range]]]) -> dict[str, Any]:
    """One reader over all windows; runs in a process of its own."""
    torch.set_num_threads(1)
    wall, processor, wrong, failed = [], [], 0, 0
    warm_up(reader, files)
    for path, windows in files:
        video, expected = path.read_bytes(), thumbnails(path)
        for window in windows:
            start, start_cpu = time.perf_counter(), time.process_time()
            try:
                frames = read_frames(video, window, reader=reader)
            except DecodeError:
                failed += 1
                continue
            wall.append(time.perf_counter() - start)
            processor.append(time.process_time() - start_cpu)
            wrong += not is_right(frames, window, expected)
    if not wall:
        raise UserError(f"{reader} read none of the windows")
    return {
        "reader": reader,
        "windows": len(wall),
        "ms (median)": 1000 * median(wall),
        "processor ms (mean)": 1000 * mean(processor),
        "wrong windows": wrong,
        "failed": failed,
    }


def warm_up(reader: str, files: list[tuple[Path, list[range]]]) -> None:
    """Load the libraries, which is not timed.

    Raises:
        UserError: the reader is not installed.
    """
    path, windows = files[0]
    try:
        read_frames(path.read_bytes(), windows[0], reader=reader)
    except DecodeError as error:
        if "cannot be loaded" in str(error):
            raise UserError(str(error)) from error


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    given = [[path] if path.is_file() else sorted(path.rglob("*.*")) for path in arguments.videos]
    files = [(path, windows_of(path, arguments)) for paths in given for path in paths]
    rows = []
    for reader in arguments.readers:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            try:
                rows.append(process.submit(measure, reader, files).result())
            except UserError as error:
                print(f"left out: {error}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", nargs="+", type=Path, required=True, help="files and folders")
    parser.add_argument("--readers", nargs="+", choices=list(VIDEO_READERS), default=list(VIDEO_READERS))
    parser.add_argument("--num-frames", type=int, default=32)
    parser.add_argument("--windows", type=int, default=3, help="of each file")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = run(arguments)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output", "videos")}
    settings["files"] = sum(1 if path.is_file() else len(list(path.rglob("*.*"))) for path in arguments.videos)
    publish("decoders", "cpu", settings, rows, arguments.output)


if __name__ == "__main__":
    main()
