"""Batches for the trainer: worker processes, what was skipped, and a position that can be saved and resumed."""

import hashlib
import logging
import math
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader

from data.batch import Batch
from data.loading.faults import FaultCount, FaultPolicy
from data.loading.stream import ClipStream, WorkerItem
from data.processes.shared_memory import BatchReader, BatchWriter, exchange
from data.processes.watchdog import Heartbeats, Watchdog
from data.processes.workers import prepare_worker, worker_context
from data.sampling.order import Layout
from data.sampling.table import ClipTable
from data.sampling.types import Clip, Sampling
from data.storage.remote import Access
from tae.runtime.errors import UserError

FIELDS_SOUGHT_IN = 1_000  # clips
BATCHES_AHEAD = 2  # that a worker has ready before they are asked for
SAVED_POISONED = 64  # of the clips that ended a worker: what is forgotten costs another start of the workers

log = logging.getLogger(__name__)


class ClipLoader:
    """Iterate over a split's batches, each a `data.batch.Batch`.

    Training (`shuffle_buffer` a number): each iteration gives `len()` batches of one endless stream, as many in every
    process; the next goes on where the last one stopped. `state_dict` and `load_state_dict` are found and used by
    Lightning: a resumed run gets the batches that the interrupted one would have got, and decodes no other.

    Evaluation (`shuffle_buffer` None): every clip exactly once over all processes, one fixed window, central crop, the last
    batch of a worker may be smaller.

    Clips that do not decode are left out and appended to `skipped.jsonl`, never replaced; an evaluation also lists them in
    `skipped`.

    A worker process that dies, or takes longer over a clip than it may and is killed for it, costs that clip alone: all
    workers start again where they stood, the clip is left out from then on. That may happen to a share of `max_skipped`
    of the clips. Without worker processes nothing protects from such a clip.

    Args:
        name: of the split, for messages.
        clips: all usable clips of the split, the same in every process, by ascending number; a `ClipTable` for training.
        sampling: how they are drawn.
        faults: what clips that fail may cost.
        num_workers: decoding processes; 0 decodes in this one.
        rank, world_size: number of this process, and how many there are.
        access: how shards are read.

    Raises:
        UserError: while iterating for training, when too many clips fail; also for evaluation, when too many of them
            end a worker.
    """

    def __init__(
        self,
        *,
        name: str,
        clips: Sequence[Clip],
        sampling: Sampling,
        faults: FaultPolicy,
        num_workers: int,
        rank: int = 0,
        world_size: int = 1,
        access: Access | None = None,
    ) -> None:
        self.name = name
        self.clips = clips
        self.sampling = sampling
        self.faults = faults
        self.num_workers = num_workers
        self.access = access or Access()
        self.layout = Layout(rank, world_size, max(num_workers, 1))
        self.skipped: list[dict[str, str]] = []
        self._count = FaultCount(name, faults)
        self._workers_without_batch: set[int] = set()  # in a whole epoch, since the last batch of any
        self._positions = [(0, 0)] * self.layout.num_workers
        self._next_worker = 0
        self._endless: Generator[WorkerItem, None, None] | None = None
        self._poisoned: dict[int, str] = {}  # clips that ended a worker, by number, and how
        self._worker_deaths = 0
        self._unseen = set(sampling.metadata)  # fields that no clip has had so far
        self._looked_at = 0  # clips

    @property
    def training(self) -> bool:
        return self.sampling.shuffle_buffer is not None

    def __len__(self) -> int:
        """Batches of one iteration in this process; at least 1, so that no process leaves a loop that others enter."""
        if self.training:
            return max(1, len(self.clips) // (self.layout.world_size * self.sampling.batch_size))
        parts = (self.layout.part(len(self.clips), worker) for worker in range(self.layout.num_workers))
        return max(1, sum(-(-len(part) // self.sampling.batch_size) for part in parts))

    def __iter__(self) -> Iterator[Batch]:
        return self._train() if self.training else self._evaluate()

    def _train(self) -> Iterator[Batch]:
        for _ in range(len(self)):
            yield self.next_batch()

    def next_batch(self) -> Batch:
        """The next batch of the endless stream of training."""
        if self._endless is None:
            self._endless = self._items()
        while True:
            item = next(self._endless)
            self._note(item)
            self._check_failures()
            if item.frames is not None:
                return _batch(item)

    def close(self) -> None:
        """End the workers that read ahead for training. What is left to Python's cyclic collection ends after seconds."""
        if self._endless is not None:
            self._endless.close()
            self._endless = None

    def _evaluate(self) -> Iterator[Batch]:
        self.skipped, self._count = [], FaultCount(self.name, self.faults)
        self._positions = [(0, 0)] * self.layout.num_workers
        for item in self._items():
            self._note(item)
            if item.frames is not None:
                yield _batch(item)

    def _items(self) -> Generator[WorkerItem, None, None]:
        """The stream's items, each with its frames; where a worker dies, all are started again from where they stand."""
        if not self.num_workers:
            yield from DataLoader(self._stream(), batch_size=None)
            return
        while True:
            heartbeats = Heartbeats(self.num_workers)
            loader, readers = self._workers(heartbeats)
            running = iter(loader)
            watchdog = Watchdog(heartbeats, running._workers, self.faults.decode_timeout)  # type: ignore[attr-defined]
            try:
                for item in running:
                    yield _with_frames(item, readers)
                return
            except Exception as error:
                if not (dead := watchdog.find_dead()):
                    raise
                self._note_deaths(dead, error)
            finally:
                watchdog.stop()
                running._shutdown_workers()  # type: ignore[attr-defined]  # or they would stay beside the next ones

    def _workers(self, heartbeats: Heartbeats) -> tuple[DataLoader, list[BatchReader]]:
        """Worker processes that read the stream from where it stands, and the ends of the memory they write into."""
        context = worker_context()
        shape = self.sampling.window.shape(self.sampling.batch_size)
        ends = [exchange(shape, BATCHES_AHEAD + 1, context) for _ in range(self.num_workers)]
        loader = DataLoader(
            self._stream([writer for writer, _ in ends], heartbeats),
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=BATCHES_AHEAD,
            multiprocessing_context=context,
            worker_init_fn=_prepare_worker,
        )
        return loader, [reader for _, reader in ends]

    def _stream(self, writers: Sequence[BatchWriter] = (), heartbeats: Heartbeats | None = None) -> ClipStream:
        return ClipStream(
            clips=self.clips,
            sampling=self.sampling,
            layout=self.layout,
            starts=self._positions,
            first_worker=self._next_worker,
            access=self.access,
            poisoned=self._poisoned,
            writers=writers,
            heartbeats=heartbeats,
        )

    def _note_deaths(self, dead: list[tuple[int, str]], error: Exception) -> None:
        """Leave out what ended the workers from now on, as long as that does not happen too often."""
        self._worker_deaths += len(dead)
        for number, reason in dead:
            clip = self._by_number(number)
            at = f"at clip {clip.key} of {clip.shard.url}" if clip else "between two clips"
            if clip:
                self._poisoned[number] = f"decoding it ended a worker process: {reason}"
            log.warning("A worker process that reads %s ended %s: %s.", self.name, at, reason)
        allowed = math.ceil(self.faults.max_skipped * len(self.clips))
        if self._worker_deaths > allowed:
            raise UserError(
                f"Worker processes that read {self.name} ended {self._worker_deaths} times, the last one {at}: {reason}. "
                f"data.max_skipped={self.faults.max_skipped} of {len(self.clips)} clips allows {allowed}. Prepare the data "
                "again without what ends them, or allow more; if memory is what lacks, lower data.num_workers, "
                "data.shuffle_buffer or data.batch_size."
            ) from error
        log.warning("All workers resume where they stood (%d of %d times).", self._worker_deaths, allowed)

    def _by_number(self, number: int) -> Clip | None:
        place = bisect_left(self.clips, number, key=lambda clip: clip.number)
        return self.clips[place] if place < len(self.clips) and self.clips[place].number == number else None

    def _note(self, item: WorkerItem) -> None:
        """Remember what an item says beside its batch: the worker's position, counts, and clips that failed."""
        self._count.add(len(item.keys), item.faults)
        self._positions[item.worker] = item.position
        if self.training:
            self._next_worker = (item.worker + 1) % self.layout.num_workers
        self._look_for_fields(item)
        if item.frames is not None:
            self._workers_without_batch.clear()
        elif item.position[1] == 0:
            self._workers_without_batch.add(item.worker)
        if not self.training:  # whose list would grow for ever, and is in the file
            self.skipped += item.faults

    def _look_for_fields(self, item: WorkerItem) -> None:
        """Say once which fields of the metadata are in none of the first clips: a typo gives None for ever."""
        if not self._unseen or self._looked_at >= FIELDS_SOUGHT_IN:
            return
        self._unseen -= {name for name, values in item.metadata.items() if any(value is not None for value in values)}
        self._looked_at += len(item.keys)
        if self._unseen and self._looked_at >= min(FIELDS_SOUGHT_IN, len(self.clips)) and not self.layout.rank:
            names, self._looked_at = ", ".join(sorted(self._unseen)), FIELDS_SOUGHT_IN
            log.warning(
                "data.metadata=[%s]: none of the first clips of %s has it; batches have None.", names, self.name
            )

    def _check_failures(self) -> None:
        """Stop a training that would go on with too little of its data."""
        if len(self._workers_without_batch) == self.layout.num_workers:
            raise UserError(
                f"No clip of {self.name} could be decoded in a whole epoch ({self._count.failed} failed). "
                f"The reasons are in {self.faults.file}."
            )
        self._count.check()

    def state_dict(self) -> dict[str, Any]:
        """Where every process stands after the batches that were handed out. All processes must call it together."""
        mine = {"positions": list(self._positions), "next_worker": self._next_worker}
        mine |= {"faults": self._count.state_dict(), "poisoned": list(self._poisoned.items())[-SAVED_POISONED:]}
        ranks = [mine]
        if dist.is_available() and dist.is_initialized() and self.layout.world_size > 1:
            ranks = [{} for _ in range(self.layout.world_size)]
            dist.all_gather_object(ranks, mine)
        return {"layout": self._layout_summary(), "content": self._content_summary(), "ranks": ranks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state` was taken; says what differs without changing the order: shards' content, windows.

        Raises:
            UserError: the order would be another one now: another number of processes or workers, other data, or
                another seed, batch size or shuffle buffer.
        """
        now = self._layout_summary()
        if "streams" in state:  # of a mixture
            now, state = {"data.sources": None}, {"layout": {"data.sources": state["layout"]["data.sources"]}}
        elif "list of clips" in state["layout"]:  # of a checkpoint of version 0.2, which lists every clip
            del now["list of shards"]
            now["list of clips"] = _hash(f"{_name(c.shard.url)} {c.key} {c.frames}" for c in self.clips)
        refuse_changes(f"The order of the {self.name} clips", state["layout"], now)
        content = self._content_summary()
        if (changed := _differences(state.get("content", content), content)) and not self.layout.rank:
            log.warning("The %s clips are resumed in their order, but not as they were: %s.", self.name, changed)
        mine = state["ranks"][self.layout.rank]
        self._positions = [(epoch, taken) for epoch, taken in mine["positions"]]
        self._next_worker = mine["next_worker"]
        self._count.load_state_dict(mine.get("faults", self._count.state_dict()))
        self._poisoned = {number: reason for rank in state["ranks"] for number, reason in rank.get("poisoned", [])}
        self._endless = None

    def _layout_summary(self) -> dict[str, Any]:
        summary = {
            "processes": self.layout.world_size,
            "data.num_workers": self.layout.num_workers,
            "data.batch_size": self.sampling.batch_size,
            "data.shuffle_buffer": self.sampling.shuffle_buffer,
            "seed": self.sampling.seed,
            "number of clips": len(self.clips),
            "list of shards": self._shard_hashes[0],
        }
        interleave = self.sampling.interleave  # named where it is used, as older checkpoints do not know it
        summary |= {} if interleave == 1 else {"data.interleave": interleave}
        strides = self.sampling.window.frame_stride
        summary |= {} if isinstance(strides, int) else {"data.frame_stride": str(list(strides))}
        assert isinstance(self.clips, ClipTable)
        for rule in self.clips.selection.rules:
            summary |= rule.settings
        bounds = self.clips.selection.bounds
        return summary | ({"data.filter": str({name: list(bound) for name, bound in bounds.items()})} if bounds else {})

    def _content_summary(self) -> dict[str, Any]:
        """What else a batch depends on."""
        window = self.sampling.window
        scaling = {} if window.interpolation == "bicubic" else {"data.interpolation": window.interpolation}
        return scaling | {
            "content of the shards": self._shard_hashes[1],
            "data.num_frames": window.num_frames,
            "data.frame_stride": window.frame_stride if isinstance(window.frame_stride, int) else "several",
            "data.resolution": window.resolution
            if isinstance(window.resolution, int)
            else "x".join(map(str, window.size)),
            "data.augmentation": str(window.augmentation),
        }

    @cached_property
    def _shard_hashes(self) -> tuple[str, str]:
        """What decides the order, and what the shards hold: each as one word, made once whatever the number of clips."""
        assert isinstance(self.clips, ClipTable)
        shards, counts = self.clips.shards, self.clips.counts.tolist()
        names = [_name(url) for url in shards.urls[:]]
        sizes = zip(names, shards.samples().tolist(), counts, strict=True)
        used = {name: content for name, content, count in zip(names, shards.contents(), counts, strict=True) if count}
        return (
            _hash(f"{name} {samples} {count}" for name, samples, count in sizes if count),
            _hash(f"{name} {size} {sha256}" for name, (size, sha256) in used.items()),
        )


def _name(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def _hash(lines: Iterable[str]) -> str:
    """The first digits of the hash of a text, which is never whole in memory."""
    digest = hashlib.sha256()
    for number, line in enumerate(lines):
        digest.update(f"\n{line}".encode() if number else line.encode())
    return digest.hexdigest()[:12]


def refuse_changes(what: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to resume in another order.

    Raises:
        UserError: something differs between two summaries.
    """
    if changed := _differences(before, now):
        raise UserError(
            f"{what} cannot be resumed: {changed}. Resume with the same settings, or start from the weights alone with "
            "init_from."
        )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs between two summaries, in words; empty if nothing does."""
    changed = [name for name in before | now if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)} and is {now.get(name)}" for name in changed)


def _with_frames(item: WorkerItem, readers: Sequence[BatchReader]) -> WorkerItem:
    if isinstance(item.frames, int):
        return replace(item, frames=readers[item.worker].read(item.frames, len(item.keys)))
    return item


def _batch(item: WorkerItem) -> Batch:
    assert isinstance(item.frames, Tensor)  # a number only on its way through shared memory
    batch: Batch = {"frames": item.frames, "keys": item.keys, "fps": item.fps, "labels": item.labels}
    return batch | {"metadata": item.metadata} if item.metadata else batch  # type: ignore[return-value]


def _prepare_worker(worker: int) -> None:
    prepare_worker(worker)
    import decord  # noqa: F401  # here, or its loading would count as the first clip's time
