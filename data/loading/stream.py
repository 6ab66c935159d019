"""The stream from shards to batches: who reads which clip in which order, and where it stands.

The order is a pure function of (seed, epoch, layout), where the layout is the number of consumers (processes times
workers). In each epoch the shards are shuffled, their samples are put in one row, and the row is cut into as many
contiguous parts as there are consumers, equal to within one clip. A consumer reads the shards of its part from front
to back through a shuffle buffer. All of this is known from the number of clips in each shard; clips become objects as
they are read. Planning by samples and not by shards makes every layout work: fewer shards than
workers, unequal shards, a single clip. With `interleave` the row is cut into lanes that are read in turns, so that a part
holds clips of many shards: for shards in which neighbours are alike.

A position is (epoch, clips taken in it), which is enough to resume exactly there: shuffling works on numbers, so the
taken ones are found again without reading them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from data.decode import DecodeError, choose_reader, open_video
from data.loading.samples import Sample, read_ahead, read_in_turns, read_samples
from data.processes.shared_memory import BatchWriter
from data.processes.watchdog import Heartbeats
from data.sampling.order import EpochOrder, Layout, shuffled
from data.sampling.table import ClipTable
from data.sampling.transforms import Crop
from data.sampling.types import Clip, Sampling, Window
from data.sampling.windows import evaluation_window, random_window, starts_at_rate, window_at_rate
from data.storage.remote import Access

PLANNED_AT_ONCE = 4096  # places of an epoch's row
FAULTS_AT_ONCE = 100  # reported without a batch when no clip decodes, so that the main process can judge them


@dataclass(frozen=True)
class WorkerItem:
    """What a worker hands to the main process: a batch (or none) and where the worker stands after it.

    The frames are a tensor or, out of a worker process, the number of the piece of memory that holds them.
    """

    frames: Tensor | int | None
    keys: list[str]
    fps: list[float]
    labels: list[str]
    metadata: dict[str, list[Any]]
    faults: list[dict[str, str]]
    worker: int
    position: tuple[int, int]


class ClipStream(IterableDataset):
    """Batches of decoded clips for one process; iterate through `data.loading.loader.ClipLoader`.

    Args:
        clips: all usable clips of the split, the same in every process; a `ClipTable` for training.
        sampling: how they are drawn.
        layout: which part of them is this process's.
        starts: the position (epoch, clips taken in it) that each worker starts from.
        first_worker: which worker's turn it is, so that a resumed run takes the workers in the same order.
        access: how shards are read.
        poisoned: reasons not to decode some clips at all, by the clips' numbers.
        writers: for each worker process the memory that its batches go into; none where the stream is read in the
            training process itself.
        heartbeats: where worker processes show what they decode.
    """

    def __init__(
        self,
        *,
        clips: Sequence[Clip],
        sampling: Sampling,
        layout: Layout,
        starts: Sequence[tuple[int, int]],
        first_worker: int = 0,
        access: Access | None = None,
        poisoned: Mapping[int, str] | None = None,
        writers: Sequence[BatchWriter] = (),
        heartbeats: Heartbeats | None = None,
    ) -> None:
        self.clips = clips
        self.sampling = sampling
        self.layout = layout
        self.starts = starts
        self.first_worker = first_worker
        self.access = access or Access()
        self.poisoned = poisoned or {}
        self.writers = writers
        self.heartbeats = heartbeats
        self.rounds = -(-layout.consumers // len(clips)) if sampling.shuffle_buffer is not None else 1

    def __iter__(self) -> Iterator[WorkerItem]:
        info = get_worker_info()
        worker = ((info.id if info else 0) + self.first_worker) % self.layout.num_workers
        return self._train(worker) if self.sampling.shuffle_buffer is not None else self._evaluate(worker)

    def _train(self, worker: int) -> Iterator[WorkerItem]:
        """Endless: one epoch's part after the other. An epoch without a whole batch still reports where it stands."""
        epoch, taken = self.starts[worker]
        batch = self._new_batch(worker)
        while True:
            reported = taken > 0  # a position inside an epoch stems from an item
            for sample in self._epoch(worker, epoch, taken):
                taken += 1
                if item := batch.add(self._decode(sample, epoch, batch.place()), (epoch, taken)):
                    reported = True
                    yield item
            epoch, taken = epoch + 1, 0
            if not reported and not batch.clips:
                yield batch.flush((epoch, 0))

    def _evaluate(self, worker: int) -> Iterator[WorkerItem]:
        part = self.layout.part(len(self.clips), worker)
        _, start = self.starts[worker]
        batch = self._new_batch(worker)
        rest = read_ahead(read_samples((self.clips[i] for i in part[start:]), self.access))
        for taken, sample in enumerate(rest, start + 1):
            if item := batch.add(self._decode(sample, None, batch.place()), (0, taken)):
                yield item
        if batch.clips or batch.faults:
            yield batch.flush((0, len(part)))

    def _new_batch(self, worker: int) -> "_Batch":
        return _Batch(self.sampling, worker, self.writers[worker] if self.writers else None)

    def _epoch(self, worker: int, epoch: int, taken: int) -> Iterator[Sample]:
        """This worker's samples of an epoch from the `taken`-th on; the ones before it are not read."""
        sampling = self.sampling
        assert sampling.shuffle_buffer is not None
        assert isinstance(self.clips, ClipTable)
        order = EpochOrder(self.clips.counts, sampling.seed, epoch, self.rounds, sampling.interleave)
        part = self.layout.part(len(order), worker)
        places = shuffled(range(len(part)), sampling.shuffle_buffer, (sampling.seed, epoch, self.layout.rank, worker))
        done = np.zeros(len(part), bool)
        for place in islice(places, taken):
            done[place] = True
        waiting = (place for place in range(len(part)) if not done[place])
        samples = read_ahead(read_in_turns(plan_part(self.clips, order, part, done), self.access))
        held: dict[int, Sample] = {}  # the shuffle buffer: what was read before its turn
        for place in places:
            while place not in held:
                held[next(waiting)] = next(samples)
            yield held.pop(place)

    def _decode(self, sample: Sample, epoch: int | None, place: Tensor) -> "DecodedClip":
        """A clip's window, cropped, into `place`: random in training (see `_seed`), one fixed place in evaluation."""
        clip, window = sample.clip, self.sampling.window
        if fault := sample.fault or self.poisoned.get(clip.number):
            return DecodedClip(clip, fault=fault)
        rng = None if epoch is None else np.random.default_rng(self._seed(epoch, clip))
        info = get_worker_info()
        shown = self.heartbeats.decoding(info.id, clip.number) if self.heartbeats and info else nullcontext()
        try:
            with shown, open_video(sample.video, choose_reader(window.decoder, sample.reader)) as video:
                times, first = video.times, 0
                if sample.first_frame is not None:
                    first = sample.first_frame
                    times = partial(times_of_part, video.times, range(first, first + clip.frames))
                indices, fps = take_window(window, clip.frames, sample.fps, times, rng)
                crop = Crop(*video.size, window.size, rng, window.augmentation, window.interpolation)
                rows = place.numpy()
                for number, image in video.each_frame([first + index for index in indices], sample.seekable):
                    rows[~number if crop.backwards else number] = crop(image)
        except DecodeError as error:
            return DecodedClip(clip, fault=str(error))
        metadata = tuple(sample.metadata.get(name) for name in self.sampling.metadata)
        return DecodedClip(clip, fps, label=sample.label, metadata=metadata)

    def _seed(self, epoch: int, clip: Clip) -> tuple[int, ...]:
        """Of a clip's window, crop and augmentation; another one each time that it is taken in an epoch."""
        seed = (self.sampling.seed, epoch, clip.number)
        return (*seed, clip.turn) if clip.turn else seed


def take_window(
    window: Window,
    frames: int,
    rate: float,
    find_times: Callable[[], np.ndarray | None],
    rng: np.random.Generator | None,
) -> tuple[list[int], float]:
    """Which frames of a file are taken, and how many a second they are: drawn in training, fixed in evaluation.

    Args:
        frames, rate: of the file; the rate on average.
        find_times: gives the time of each frame, if the file says it.
        rng: draws; None in evaluation.

    Raises:
        DecodeError: the file is slower than asked, or its times end before the window does.
    """
    paces = window.paces(frames, rate)
    if not paces:
        raise DecodeError(f"has {rate:g} frames a second, fewer than data.fps asks for")
    pace = paces[int(rng.integers(len(paces)))] if rng and len(paces) > 1 else paces[0]
    if not window.needs_rate:
        stride = window.strides[pace]
        sizes = (frames, window.num_frames, stride)
        return evaluation_window(window.place, *sizes) if rng is None else random_window(*sizes, rng), rate / stride
    fps = window.fps[pace]
    times = find_times()
    if times is None or len(times) != frames:
        times = np.arange(frames) / rate
    starts = starts_at_rate(times, window.num_frames, fps)
    too_short = times[0] + (window.num_frames - 1) / fps > times[-1] + 1.5 * (times[-1] - times[0]) / max(frames - 1, 1)
    if too_short and window.spans(np.array([rate]))[pace, 0] <= frames:
        raise DecodeError(f"states {rate:g} frames a second, by whose times its {frames} frames are too short")
    if rng is None:
        start = 0 if window.place == "first" else (max(starts, 1) - 1) // 2
    else:
        start = int(rng.integers(max(starts, 1)))
    return window_at_rate(start, times, window.num_frames, fps), fps


def times_of_part(find_times: Callable[[], np.ndarray | None], part: range) -> np.ndarray | None:
    """The times of some frames of a file, if the file says them."""
    times = find_times()
    return None if times is None else times[part.start : part.stop]


def plan_part(clips: ClipTable, order: EpochOrder, part: range, done: np.ndarray) -> Iterator[tuple[int, Clip]]:
    """(lane, clip) of a part of an epoch without those that are done, planned block by block."""
    for start in range(part.start, part.stop, PLANNED_AT_ONCE):
        places = np.arange(start, min(start + PLANNED_AT_ONCE, part.stop))
        planned = order.at(places[~done[places - part.start]])
        rows = zip(planned.lanes.tolist(), planned.numbers.tolist(), planned.turns.tolist(), strict=True)
        yield from ((lane, clips.clip(number, turn)) for lane, number, turn in rows)


@dataclass(frozen=True)
class DecodedClip:
    """That a clip's frames are in their place, with their rate and label, or the reason why they are not."""

    clip: Clip
    fps: float = 0.0
    fault: str = ""
    label: str = ""
    metadata: tuple[Any, ...] = ()


class _Batch:
    """Collects clips, which are decoded into the batch's own memory, and faults, until the batch is full."""

    def __init__(self, sampling: Sampling, worker: int, writer: BatchWriter | None) -> None:
        self.size = sampling.batch_size
        self.window = sampling.window
        self.metadata = sampling.metadata
        self.worker = worker
        self.writer = writer
        self.memory: Tensor | None = None
        self.clips: list[DecodedClip] = []
        self.faults: list[dict[str, str]] = []

    def place(self) -> Tensor:
        """Where the next clip belongs, (t, h, w, 3) uint8; waits for memory where the training process has all."""
        if self.memory is None:
            self.memory = (
                self.writer.memory() if self.writer else torch.empty(self.window.shape(self.size), dtype=torch.uint8)
            )
        return self.memory[len(self.clips)]

    def add(self, clip: DecodedClip, position: tuple[int, int]) -> WorkerItem | None:
        if clip.fault:
            self.faults.append({"key": clip.clip.name, "shard": clip.clip.shard.url, "reason": clip.fault})
        else:
            self.clips.append(clip)
        hopeless = not self.clips and len(self.faults) >= FAULTS_AT_ONCE
        return self.flush(position) if hopeless or len(self.clips) == self.size else None

    def flush(self, position: tuple[int, int]) -> WorkerItem:
        item = WorkerItem(
            frames=self._hand_over() if self.clips else None,
            keys=[clip.clip.name for clip in self.clips],
            fps=[clip.fps for clip in self.clips],
            labels=[clip.label for clip in self.clips],
            metadata={name: [clip.metadata[i] for clip in self.clips] for i, name in enumerate(self.metadata)},
            faults=self.faults,
            worker=self.worker,
            position=position,
        )
        self.clips, self.faults = [], []
        return item

    def _hand_over(self) -> Tensor | int:
        assert self.memory is not None
        frames = self.writer.hand_over() if self.writer else self.memory[: len(self.clips)]
        self.memory = None
        return frames
