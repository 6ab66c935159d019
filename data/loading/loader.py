"""Batches for the trainer: worker processes, what was skipped, and a position that can be saved and resumed."""

import hashlib
import json
import logging
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader

from data.loading.stream import ClipStream, Item
from data.processes.shared_memory import BatchReader, BatchWriter, exchange
from data.processes.watchdog import Board, Watch
from data.processes.workers import prepare_worker, worker_context
from data.sampling.clip import Clip, Window
from data.sampling.order import Layout
from data.storage.remote import Access
from tae.runtime.errors import UserError

BATCHES_AHEAD = 2  # that a worker has ready before they are asked for
JUDGED_FROM = 1000  # clips; before that one broken file would be a large share

log = logging.getLogger(__name__)


class ClipLoader:
    """Iterate over a split's batches: `{"frames": (b, t, h, w, 3) uint8, "keys": [...], "fps": [...]}`.

    Training (`shuffle_buffer` a number): each iteration gives `len()` batches of one endless stream, as many in every
    process; the next goes on where the last one stopped. `state_dict` and `load_state_dict` are found and used by
    Lightning: a resumed run gets the batches that the interrupted one would have got, and decodes no other.

    Evaluation (`shuffle_buffer` None): every clip exactly once over all processes, central window and crop, the last
    batch of a worker may be smaller.

    Clips that do not decode are left out, kept in `skipped` and appended to `skipped.jsonl`; never replaced.

    A worker process that dies, or takes longer over a clip than it may and is killed for it, costs that clip alone: all
    workers start again where they stood, the clip is left out from then on. That may happen to a share of `max_skipped`
    of the clips. Without worker processes nothing protects from such a clip.

    Args:
        name: of the split, for messages.
        clips: all usable clips of the split, the same list in every process.
        num_workers: decoding processes; 0 decodes in this one.
        max_skipped: share of clips that may fail before training stops.
        output_dir: where `skipped.jsonl` is written.
        access: how shards are read.
        decode_timeout: seconds that a worker process may take over one clip.

    Raises:
        UserError: while iterating for training, when too many clips fail; also for evaluation, when too many of them
            end a worker.
    """

    def __init__(
        self,
        name: str,
        clips: list[Clip],
        window: Window,
        batch_size: int,
        num_workers: int,
        shuffle_buffer: int | None,
        seed: int,
        max_skipped: float,
        output_dir: Path,
        rank: int,
        world_size: int,
        access: Access | None = None,
        decode_timeout: float = 60.0,
    ) -> None:
        self.name = name
        self.clips = clips
        self.window = window
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.shuffle_buffer = shuffle_buffer
        self.seed = seed
        self.max_skipped = max_skipped
        self.output_dir = output_dir
        self.access = access or Access()
        self.decode_timeout = decode_timeout
        self.layout = Layout(rank, world_size, max(num_workers, 1))
        self.skipped: list[dict[str, str]] = []
        self._taken = 0
        self._barren: set[int] = set()  # workers that went through a whole epoch since the last batch
        self._positions = [(0, 0)] * self.layout.num_workers
        self._next_worker = 0
        self._endless: Generator[Item, None, None] | None = None
        self._deadly: dict[int, str] = {}  # clips that ended a worker, by number, and how
        self._worker_deaths = 0

    @property
    def training(self) -> bool:
        return self.shuffle_buffer is not None

    def __len__(self) -> int:
        """Batches of one iteration in this process; at least 1, so that no process leaves a loop that others enter."""
        if self.training:
            return max(1, len(self.clips) // (self.layout.world_size * self.batch_size))
        parts = (self.layout.part(len(self.clips), worker) for worker in range(self.layout.num_workers))
        return max(1, sum(-(-len(part) // self.batch_size) for part in parts))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._train() if self.training else self._evaluate()

    def _train(self) -> Iterator[dict[str, Any]]:
        if self._endless is None:
            self._endless = self._items()
        given = 0
        while given < len(self):
            item = next(self._endless)
            self._note(item)
            self._judge()
            if item.frames is not None:
                given += 1
                yield _batch(item)

    def close(self) -> None:
        """End the workers that read ahead for training. What is left to Python's cyclic collection ends after seconds."""
        if self._endless is not None:
            self._endless.close()
            self._endless = None

    def _evaluate(self) -> Iterator[dict[str, Any]]:
        self.skipped, self._taken = [], 0
        self._positions = [(0, 0)] * self.layout.num_workers
        for item in self._items():
            self._note(item)
            if item.frames is not None:
                yield _batch(item)

    def _items(self) -> Generator[Item, None, None]:
        """The stream's items, each with its frames; where a worker dies, all are started again from where they stand."""
        if not self.num_workers:
            yield from DataLoader(self._stream(), batch_size=None)
            return
        while True:
            board = Board(self.num_workers)
            loader, readers = self._workers(board)
            running = iter(loader)
            watch = Watch(board, running._workers, self.decode_timeout)  # type: ignore[attr-defined]
            try:
                for item in running:
                    yield _with_frames(item, readers)
                return
            except Exception as error:
                if not (dead := watch.find_dead()):
                    raise
                self._note_deaths(dead, error)
            finally:
                watch.stop()
                running._shutdown_workers()  # type: ignore[attr-defined]  # or they would stay beside the next ones

    def _workers(self, board: Board) -> tuple[DataLoader, list[BatchReader]]:
        """Worker processes that read the stream from where it stands, and the ends of the memory they write into."""
        context = worker_context()
        shape = self.window.shape(self.batch_size)
        ends = [exchange(shape, BATCHES_AHEAD + 1, context) for _ in range(self.num_workers)]
        loader = DataLoader(
            self._stream([writer for writer, _ in ends], board),
            batch_size=None,
            num_workers=self.num_workers,
            prefetch_factor=BATCHES_AHEAD,
            multiprocessing_context=context,
            worker_init_fn=_prepare_worker,
        )
        return loader, [reader for _, reader in ends]

    def _stream(self, writers: Sequence[BatchWriter] = (), board: Board | None = None) -> ClipStream:
        return ClipStream(
            self.clips,
            self.window,
            self.layout,
            self.batch_size,
            self.shuffle_buffer,
            self.seed,
            self._positions,
            self._next_worker,
            self.access,
            self._deadly,
            writers,
            board,
        )

    def _note_deaths(self, dead: list[tuple[int, str]], error: Exception) -> None:
        """Leave out what ended the workers from now on, as long as that does not happen too often."""
        self._worker_deaths += len(dead)
        for number, reason in dead:
            clip = self._by_number(number)
            at = f"at clip {clip.key} of {clip.shard.url}" if clip else "between two clips"
            if clip:
                self._deadly[number] = f"decoding it ended a worker process: {reason}"
            log.warning("A worker process that reads %s ended %s: %s.", self.name, at, reason)
        allowed = math.ceil(self.max_skipped * len(self.clips))
        if self._worker_deaths > allowed:
            raise UserError(
                f"Worker processes that read {self.name} ended {self._worker_deaths} times, the last one {at}: {reason}. "
                f"data.max_skipped={self.max_skipped} of {len(self.clips)} clips allows {allowed}. Prepare the data again "
                "without what ends them, or allow more; if memory is what lacks, lower data.num_workers, "
                "data.shuffle_buffer or data.batch_size."
            ) from error
        log.warning("All workers go on from where they stood (%d of %d times).", self._worker_deaths, allowed)

    def _by_number(self, number: int) -> Clip | None:
        return next((clip for clip in self.clips if clip.number == number), None)

    def _note(self, item: Item) -> None:
        """Remember what an item says beside its batch: the worker's position, counts, and clips that failed."""
        self._taken += len(item.keys) + len(item.faults)
        self._positions[item.worker] = item.position
        if self.training:
            self._next_worker = (item.worker + 1) % self.layout.num_workers
        if item.frames is not None:
            self._barren.clear()
        elif item.position[1] == 0:
            self._barren.add(item.worker)
        self.skipped += item.faults
        if item.faults:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            with self._skipped_file.open("a") as file:
                file.writelines(json.dumps({"split": self.name} | fault) + "\n" for fault in item.faults)

    @property
    def _skipped_file(self) -> Path:
        return self.output_dir / "skipped.jsonl"

    def _judge(self) -> None:
        """Stop a training that would go on with too little of its data."""
        share = len(self.skipped) / max(self._taken, 1)
        if len(self._barren) == self.layout.num_workers:
            raise UserError(
                f"No clip of {self.name} could be decoded in a whole epoch ({len(self.skipped)} failed). "
                f"The reasons are in {self._skipped_file}."
            )
        if self._taken >= JUDGED_FROM and share > self.max_skipped:
            raise UserError(
                f"{len(self.skipped)} of {self._taken} clips of {self.name} could not be decoded ({share:.1%}); "
                f"data.max_skipped allows {self.max_skipped:.1%}. The reasons are in {self._skipped_file}: prepare the "
                "data again without these files, or allow more."
            )

    def state_dict(self) -> dict[str, Any]:
        """Where every process stands after the batches that were handed out. All processes must call it together."""
        mine = {"positions": list(self._positions), "next_worker": self._next_worker}
        mine |= {"taken": self._taken, "skipped": self.skipped, "deadly": list(self._deadly.items())}
        ranks = [mine]
        if dist.is_available() and dist.is_initialized() and self.layout.world_size > 1:
            ranks = [{} for _ in range(self.layout.world_size)]
            dist.all_gather_object(ranks, mine)
        return {"layout": self._layout_summary(), "ranks": ranks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            UserError: the order would be another one now: another number of processes or workers, other data, or
                another seed, batch size or shuffle buffer.
        """
        now = self._layout_summary()
        if changed := [name for name in now if now[name] != state["layout"].get(name)]:
            was = ", ".join(f"{name} was {state['layout'].get(name)} and is {now[name]}" for name in changed)
            raise UserError(
                f"The order of the {self.name} clips cannot be resumed: {was}. Resume with the same settings, or start "
                "from the weights alone with init_from."
            )
        mine = state["ranks"][self.layout.rank]
        self._positions = [(epoch, taken) for epoch, taken in mine["positions"]]
        self._next_worker = mine["next_worker"]
        self._taken, self.skipped = mine["taken"], list(mine["skipped"])
        self._deadly = {number: reason for rank in state["ranks"] for number, reason in rank.get("deadly", [])}
        self._endless = None

    def _layout_summary(self) -> dict[str, Any]:
        clips = "\n".join(f"{clip.shard.url.rsplit('/', 1)[-1]} {clip.key} {clip.frames}" for clip in self.clips)
        return {
            "processes": self.layout.world_size,
            "data.num_workers": self.layout.num_workers,
            "data.batch_size": self.batch_size,
            "data.shuffle_buffer": self.shuffle_buffer,
            "seed": self.seed,
            "number of clips": len(self.clips),
            "list of clips": hashlib.sha256(clips.encode()).hexdigest()[:12],
        }


def _with_frames(item: Item, readers: Sequence[BatchReader]) -> Item:
    if isinstance(item.frames, int):
        return replace(item, frames=readers[item.worker].read(item.frames, len(item.keys)))
    return item


def _batch(item: Item) -> dict[str, Any]:
    return {"frames": item.frames, "keys": item.keys, "fps": item.fps}


def _prepare_worker(worker: int) -> None:
    prepare_worker(worker)
    import decord  # noqa: F401  # here, or its loading would count as the first clip's time
