"""Clips a second from shards to a batch that is ready for the device, against decoding alone and other ways to load.

    python -m benchmarks.loader --videos UCF-101/ --resolutions 240 256
    python -m benchmarks.loader --videos film_1080p.mp4 --resolutions 1080 256
    python -m benchmarks.loader --shards 'datasets/ucf101/train/shard-*.tar' --workers 0 1 2 4 8

Every way reads the same windows of the same files, `--passes` times for each worker:

- bare decoder: decord's get_batch of the window, the file in memory; nothing is converted, copied, cut or handed on
- loader: what training uses, from tar files to uint8 batches
- loose files: one file for each clip in a map-style dataset, decoded, resized and cropped like the loader's
- float on CPU: loose files; the window as float32, resized as float32, handed on as float32

The bare decoder does not resize. Where the resolution is the short side of the files nothing else does either: there a
ratio to it is the loader's own cost. Starting workers is not timed, reading is from a warm page cache.

decord decodes in a thread of its own, so one worker uses more than one processor, and on few processors a second worker
cannot bring as much as the first. What a worker with a processor of its own brings is measured with
`--one-processor-each`.
"""

import argparse
import itertools
import math
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.common import RESULTS, publish, spread
from data.datamodule import ClipDataModule
from data.decode import as_path, read_frames
from data.ingest.pipeline import prepare
from data.loading.faults import FaultPolicy
from data.loading.loader import BATCHES_AHEAD, ClipLoader
from data.loading.samples import read_samples
from data.processes.pool import Engine
from data.processes.workers import worker_context
from data.sampling.transforms import Crop, scaled_size
from data.sampling.types import Clip, Sampling, Window
from data.sampling.windows import central_window


@dataclass(frozen=True)
class Corpus:
    """The clips of a measurement, in every form that some way of loading starts from."""

    clips: list[Clip]
    videos: list[bytes]
    paths: list[Path]
    window: Window
    batch_size: int

    def indices(self, number: int) -> list[int]:
        return central_window(self.clips[number].frames, self.window.num_frames, self.window.strides[0])


class Bare(Dataset):
    """Decodes and forgets."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus

    def decode(self, number: int) -> Any:
        import decord  # here, as in data.decode: not in the process that workers are forked from

        with as_path(self.corpus.videos[number]) as path:
            return decord.VideoReader(path, num_threads=1).get_batch(self.corpus.indices(number))

    def __getitem__(self, number: int) -> int:
        self.decode(number)
        return number


class Loose(Dataset):
    """The loader's own decoding and cropping, of a file for each clip."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = replace(corpus, videos=[])  # a worker need not be sent what it is to read

    def __getitem__(self, number: int) -> Tensor:
        frames = read_frames(self.corpus.paths[number].read_bytes(), self.corpus.indices(number))
        square = Crop(*frames.shape[1:3], self.corpus.window.size[0])
        return torch.from_numpy(np.stack([square(image) for image in frames]))


class Float(Loose):
    """float32 (3, t, size, size) in [-1, 1], as most repositories of video models load their clips."""

    def __getitem__(self, number: int) -> Tensor:
        import decord

        frames = decord.VideoReader(str(self.corpus.paths[number]), num_threads=1).get_batch(
            self.corpus.indices(number)
        )
        clip = torch.from_numpy(frames.asnumpy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        size = self.corpus.window.size[0]
        if min(clip.shape[2:]) != size:
            clip = F.interpolate(clip, scaled_size(*clip.shape[2:], size), mode="bicubic", antialias=True)
        return centre_crop(clip.movedim(1, -1), size).permute(3, 0, 1, 2).contiguous()


def map_style(dataset: Dataset, corpus: Corpus, workers: int, passes: int) -> DataLoader:
    parallel: dict[str, Any] = {}
    if workers:
        parallel = {"multiprocessing_context": worker_context(), "prefetch_factor": BATCHES_AHEAD}
    numbers = list(range(len(corpus.clips))) * passes
    pinned = torch.cuda.is_available() and not isinstance(dataset, Bare)
    return DataLoader(
        dataset, corpus.batch_size, sampler=numbers, num_workers=workers, pin_memory=pinned, worker_init_fn=one_thread,
        **parallel,
    )  # fmt: skip


def one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def clip_loader(corpus: Corpus, workers: int, passes: int) -> ClipLoader:
    """The loader in its evaluation mode, whose windows are known; training adds a shuffle of file contents."""
    return ClipLoader(
        name="test",
        clips=corpus.clips * passes,
        sampling=Sampling(corpus.window, corpus.batch_size),
        faults=FaultPolicy(0.0, Path(os.devnull)),
        num_workers=workers,
    )


METHODS: dict[str, Callable[[Corpus, int, int], Iterable[Any]]] = {
    "bare decoder": lambda corpus, *rest: map_style(Bare(corpus), corpus, *rest),
    "loader": clip_loader,
    "loose files": lambda corpus, *rest: map_style(Loose(corpus), corpus, *rest),
    "float on CPU": lambda corpus, *rest: map_style(Float(corpus), corpus, *rest),
}


def clips_per_second(
    method: str, corpus: Corpus, workers: int, passes: int, processors: Collection[int] | None = None
) -> float:
    """Rate between two moments at which all workers are busy: not the first batches, and not the last ones."""
    passes *= max(workers, 1)
    batches = math.ceil(len(corpus.clips) / corpus.batch_size) * passes
    margin = workers + 1
    if batches <= 2 * margin:
        raise SystemExit(f"{batches} batches are too few for {workers} workers: give more clips or more --passes.")
    running = iter(METHODS[method](corpus, workers, passes))
    for _ in itertools.islice(running, margin):
        pass
    with confined(processors) if processors else nullcontext():
        start, count = time.perf_counter(), 0
        for batch in itertools.islice(running, batches - 2 * margin):
            count += len(batch["keys"] if isinstance(batch, dict) else batch)
        rate = count / (time.perf_counter() - start)
    for _ in running:  # let the workers end by themselves
        pass
    return rate


@contextmanager
def confined(processors: Collection[int]) -> Iterator[None]:
    """Within the context this process and its workers, with all their threads, run on these processors alone."""
    before = os.sched_getaffinity(0)
    set_affinity(processors)
    try:
        yield
    finally:
        set_affinity(before)


def set_affinity(processors: Collection[int]) -> None:
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        for thread in process.threads():
            with suppress(ProcessLookupError):  # it ended meanwhile
                os.sched_setaffinity(thread.id, processors)


def processors_for(workers: int) -> list[int]:
    """As many processors as there are workers; one where this process decodes itself."""
    usable = sorted(os.sched_getaffinity(0))
    if workers > len(usable):
        raise SystemExit(f"--one-processor-each: {workers} workers, but {len(usable)} processors can be used.")
    return usable[: max(workers, 1)]


def largest_difference(method: str, corpus: Corpus) -> float | None:
    """From the bare decoder's frames, resized by Pillow and cropped; in steps of 255, over one pass."""
    if method == "bare decoder":
        return None
    worst, numbers = 0, iter(range(len(corpus.clips)))
    for batch in METHODS[method](corpus, 0, 1):
        for frames in batch["frames"] if isinstance(batch, dict) else batch:
            found = frames if frames.dtype == torch.uint8 else to_uint8(frames)
            worst = max(worst, int((found.int() - reference(corpus, next(numbers)).int()).abs().max()))
    return worst


def centre_crop(frames: Tensor, size: int) -> Tensor:
    """The middle (t, size, size, 3) of (t, h, w, 3)."""
    top, left = ((side - size) // 2 for side in frames.shape[1:3])
    return frames[:, top : top + size, left : left + size]


def to_uint8(clip: Tensor) -> Tensor:
    return ((clip + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0)


def reference(corpus: Corpus, number: int) -> Tensor:
    frames, size = Bare(corpus).decode(number).asnumpy(), corpus.window.size[0]
    height, width = scaled_size(*frames.shape[1:3], size)
    images = [np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)) for image in frames]
    return centre_crop(torch.from_numpy(np.stack(images)), size)


def prepare_shards(videos: Sequence[Path], folder: Path) -> str:
    """Shards of these files and of all files below these folders."""
    (folder / "source").mkdir()
    files = [path for given in videos for path in ([given] if given.is_file() else sorted(given.rglob("*.*")))]
    for number, path in enumerate(files):
        (folder / "source" / f"{number:06d}_{path.name}").symlink_to(path.resolve())
    prepare(
        "folder", folder / "source", folder / "shards", split="none", splits_dir=None, test=0.0, val=0.0, seed=0,
        timeout=300, shard_mb=256, encoding=None, engine=Engine(),
    )  # fmt: skip
    return str(folder / "shards" / "train" / "shard-*.tar")


def find_corpus(patterns: Sequence[str], arguments: argparse.Namespace, folder: Path) -> Corpus:
    """The first clips of the shards that are long enough and can be read from the middle."""
    module = ClipDataModule(
        {"test": patterns}, arguments.num_frames, frame_stride=1, resolution=8, batch_size=arguments.batch,
        num_workers=0, short_clip="skip", max_skipped=0.0, shuffle_buffer=1, seed=0, output_dir=folder,
    )  # fmt: skip
    module.setup("test")
    samples = (sample for sample in read_samples(module.clips["test"]) if sample.seekable and not sample.fault)
    chosen = list(itertools.islice(samples, arguments.clips))
    paths = [folder / sample.clip.key for sample in chosen]
    for path, sample in zip(paths, chosen, strict=True):
        path.write_bytes(sample.video)
    clips = [sample.clip for sample in chosen]
    return Corpus(clips, [sample.video for sample in chosen], paths, module.stream.window, arguments.batch)


def run(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Measure; one row for each way, resolution and number of workers."""
    patterns = arguments.shards or [prepare_shards(arguments.videos, folder)]
    corpus = find_corpus(patterns, arguments, folder)
    arguments.clips = len(corpus.clips)
    sized = {size: replace(corpus, window=replace(corpus.window, resolution=size)) for size in arguments.resolutions}
    cases = [("bare decoder", None, workers) for workers in arguments.workers]
    cases += [
        (method, size, workers) for size in sized for method in arguments.methods for workers in arguments.workers
    ]
    rates: dict[tuple[str, int | None, int], list[float]] = {case: [] for case in cases}
    for _ in range(arguments.repeats):
        for (method, size, workers), found in rates.items():
            processors = processors_for(workers) if arguments.one_processor_each else None
            sized_corpus = sized[size] if size else corpus
            found.append(clips_per_second(method, sized_corpus, workers, arguments.passes, processors))
    differences = {(method, size): largest_difference(method, sized[size]) for method, size, _ in cases if size}
    return [row(case, rates, differences.get(case[:2])) for case in cases]


def row(case: tuple[str, int | None, int], rates: dict[Any, list[float]], difference: float | None) -> dict[str, Any]:
    method, size, workers = case
    found = spread(rates[case])
    bare, single = rates.get(("bare decoder", None, workers)), rates.get((method, size, 1))
    return {
        "way": method,
        "resolution": size,
        "workers": workers,
        "clips/s": found["median"],
        "p25": found["p25"],
        "p75": found["p75"],
        "of bare decoder": found["median"] / spread(bare)["median"] if bare else None,
        "times one worker": found["median"] / spread(single)["median"] if single else None,
        "largest difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--shards", nargs="+", help="patterns, as for data.shards.*")
    source.add_argument("--videos", nargs="+", type=Path, help="files and folders, from which shards are made first")
    others = [name for name in METHODS if name != "bare decoder"]
    parser.add_argument("--methods", nargs="+", choices=others, default=others)
    parser.add_argument("--resolutions", type=int, nargs="+", default=(240, 256))
    parser.add_argument("--workers", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument(
        "--one-processor-each", action="store_true", help="confine N workers and this process to N processors (Linux)"
    )
    parser.add_argument("--num-frames", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--clips", type=int, default=64, help="at most")
    parser.add_argument("--passes", type=int, default=1, help="over the clips, for each worker and repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # in every process: parallel over clips, not inside one
    arguments.load_before = round(os.getloadavg()[0], 1)  # other work on the same processors spoils every rate
    with tempfile.TemporaryDirectory() as folder:
        rows = run(arguments, Path(folder))
    settings = {name: value for name, value in vars(arguments).items() if name not in ("output", "shards", "videos")}
    publish("loader", "cpu", settings, rows, arguments.output)


if __name__ == "__main__":
    main()
