"""Shards to Lightning: checks the arguments, finds the clips, gives a loader for each split."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, cast

import torch.distributed as dist
from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info

from data.loading.faults import FaultPolicy
from data.loading.loader import BATCHES_AHEAD, ClipLoader
from data.sampling.table import ClipTable
from data.sampling.transforms import Augmentation, Interpolation
from data.sampling.types import Clip, Sampling, Window
from data.sampling.windows import EvalWindow, ShortClip, window_span
from data.shards.columns import Strings
from data.shards.index import find_shards, read_recipe
from data.shards.table import Selection, ShardList, select
from data.storage.address import is_remote
from data.storage.cache import ShardCache
from data.storage.remote import Access
from tae.runtime.annotations import AboveZero, ArgumentsOf, AtLeastOne, NotNegative, Pixels, Share
from tae.runtime.errors import UserError
from tae.runtime.paths import to_path
from tae.runtime.schema import check_arguments

SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps it
Bounds = Sequence[float | None]  # lowest and highest value of a column
SPLITS = ("train", "val", "test")
SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), None: SPLITS}


class Shards(TypedDict, total=False):
    """Patterns of the shards of each split; null or left out: there is none."""

    train: str | Sequence[str] | None
    val: str | Sequence[str] | None
    test: str | Sequence[str] | None


class ClipDataModule(LightningDataModule):
    """Clips from shards, for training and evaluation.

    A batch is a `data.batch.Batch` with `t = num_frames` and `h = w = resolution`; its rates are the files' divided by
    `frame_stride`.

    Args:
        shards: patterns for "train", "val" and "test" (see `data.shards.index.find_shards`); null leaves a split out.
        num_frames: frames of a clip.
        frame_stride: every how manieth frame of the file is taken.
        resolution: height and width in pixels, after scaling the short side to it and cropping.
        augmentation: random changes of training clips, as `data.sampling.transforms.Augmentation` takes them; None for none.
        batch_size: clips in a batch of one process.
        num_workers: decoding processes for each loader; 0 decodes in the training process, which then nothing protects
            from a file that crashes the decoder or makes it hang.
        short_clip: what becomes of files with fewer frames than a window spans: `skip` leaves them out,
            `repeat_last` repeats their last frame.
        max_skipped: share of clips that may fail to decode before training stops.
        shuffle_buffer: video files that each worker holds in memory to shuffle them.
        interleave: places of the epoch's row of shards that each worker reads from in turns, so that clips which stand
            together in their shard do not stand together in batches; 1 for shards that are shuffled themselves.
        seed: of the order, the windows and the crops.
        output_dir: where `skipped.jsonl` names the clips that failed.
        decode_timeout: seconds that a worker process may take over one clip before it is killed and the clip skipped.
        read_tries, read_timeout: as `tries` and `timeout` in `data.storage.remote.Access`.
        cache_dir: folder of a local disk in which shards from http(s) and s3 are kept; None streams them each time.
        cache_gb: at most so many gigabytes (1e9 bytes) are kept there.
        decoder: the reader of video files: `auto` takes the one that preparation recorded, see `data.decode.choose_reader`.
        eval_window: which frames of a file validation and evaluation take, the `central` or the `first` ones.
        interpolation: of the scaling to `resolution`, antialiased.
        allow_pipe: let `shards` hold `pipe:COMMAND`.
        index: folder or address of the shards' index, where `python -m data.index` wrote it elsewhere.
        filter: for each column of numbers in the index the lowest and highest value of the clips that are used; None has no
            bound.
        metadata: fields of the samples' metadata that batches have as `metadata`; `caption` may be in a `.txt`.

    Raises:
        UserError: an argument is out of its range; in `setup`, shards that are missing or do not fit their index,
            or no clip that is long enough.
    """

    def __init__(
        self,
        shards: Shards,
        num_frames: AtLeastOne,
        frame_stride: AtLeastOne,
        resolution: Pixels,
        batch_size: AtLeastOne,
        num_workers: NotNegative,
        short_clip: ShortClip,
        max_skipped: Share,
        shuffle_buffer: AtLeastOne,
        seed: int,
        output_dir: str | Path,
        decode_timeout: AboveZero = 60.0,  # these have defaults for checkpoints that are older than they are
        read_tries: AtLeastOne = 8,
        read_timeout: AboveZero = 60.0,
        cache_dir: str | Path | None = None,
        cache_gb: AboveZero = 100.0,
        allow_pipe: bool = False,
        augmentation: Annotated[Mapping[str, Any] | None, ArgumentsOf(Augmentation)] = None,
        decoder: Literal["auto", "decord", "pyav", "torchcodec"] = "auto",
        interleave: AtLeastOne = 1,
        eval_window: EvalWindow = "central",
        interpolation: Interpolation = "bicubic",
        index: str | None = None,
        filter: Mapping[str, Bounds] | None = None,
        metadata: Sequence[str] = (),
    ) -> None:
        check_arguments(ClipDataModule, locals())
        super().__init__()
        if decoder == "torchcodec" and find_spec("torchcodec") is None:
            raise UserError("decoder=torchcodec needs the package torchcodec, and FFmpeg's libraries. Install both.")
        if unknown := set(shards) - set(SPLITS):
            raise UserError(f"shards: {min(unknown)} is unknown. Choose from: {', '.join(SPLITS)}.")
        self.shards = cast(dict[str, str | Sequence[str] | None], dict(shards))
        self.window = Window(
            num_frames,
            frame_stride,
            resolution,
            Augmentation(**augmentation or {}),
            decoder,
            place=eval_window,
            interpolation=interpolation,
        )
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.short_clip = short_clip
        self.max_skipped = max_skipped
        self.shuffle_buffer = shuffle_buffer
        self.interleave = interleave
        self.seed = seed
        self.output_dir = to_path(output_dir)
        self.decode_timeout = decode_timeout
        cache = None if cache_dir is None else ShardCache(to_path(cache_dir), round(cache_gb * 1e9))
        self.access = Access(read_tries, read_timeout, cache, allow_pipe)
        self.index = index
        self.bounds = check_bounds(filter or {})
        self.metadata = tuple(metadata)
        self.clips: dict[str, ClipTable] = {}
        self._named: dict[str, ClipTable] = {}  # those of evaluations, each under a name of its own
        self._training: list[ClipLoader] = []

    def setup(self, stage: str | None = None) -> None:
        """Find and check the clips of the stage's splits; opens no shard."""
        splits = [split for split in SPLITS_OF_STAGE[stage] if self.shards.get(split) is not None]
        for split in splits:
            if split not in self.clips:
                self.clips[split] = self._find_clips(split)
        processes = 1 if self.trainer is None else self.trainer.num_devices
        pieces = self.num_workers * (BATCHES_AHEAD + 1) * len(splits) * processes
        check_shared_memory(pieces * math.prod(self.window.shape(self.batch_size)))

    def train_dataloader(self) -> ClipLoader:
        """The endless, shuffled stream; its position is saved with the checkpoint."""
        loader = self._loader("train", self._clips_of("train"), self.shuffle_buffer)
        self._training.append(loader)
        return loader

    def teardown(self, stage: str | None = None) -> None:
        """End the workers of training; called by the Trainer."""
        while self._training:
            self._training.pop().close()

    def val_dataloader(self) -> ClipLoader | list[ClipLoader]:
        """Each validation clip once; nothing where `shards.val` is null."""
        return self.eval_dataloader("val") if self.shards.get("val") is not None else []

    def test_dataloader(self) -> ClipLoader:
        """Each test clip once."""
        return self.eval_dataloader("test")

    def describe(self, split: str) -> dict[str, Any]:
        """What a number on this split has to be told with: its shards, how they were split, the window and its size."""
        option, patterns = f"data.shards.{split}", self.shards[split]
        return {
            "shards": [patterns] if isinstance(patterns, str) else list(patterns or ()),
            "split": read_recipe(find_shards(patterns or (), option, self.access, self.index), self.access),
            "num_frames": self.window.num_frames,
            "frame_stride": self.window.frame_stride,
            "resolution": self.window.resolution,
            "eval_window": self.window.place,
            "interpolation": self.window.interpolation,
        }

    def eval_dataloader(self, split: str, only: Sequence[str] | None = None) -> ClipLoader:
        """Each clip of a split once over all processes, or only those with the given keys, in the index's order."""
        if split not in self._named:
            self._named[split] = self._clips_of(split).named()
        clips: Sequence[Clip] = self._named[split]
        if only is not None:
            wanted = set(only)
            clips = [clip for clip in clips if clip.name in wanted]
            if missing := wanted - {clip.name for clip in clips}:
                raise UserError(f"{split} has no usable clip {min(missing)} ({len(missing)} of {len(only)} missing).")
        return self._loader(split, clips, None)

    def _loader(self, split: str, clips: Sequence[Clip], shuffle_buffer: int | None) -> ClipLoader:
        rank, world_size = self._place()
        return ClipLoader(
            name=split,
            clips=clips,
            sampling=Sampling(self.window, self.batch_size, shuffle_buffer, self.seed, self.interleave, self.metadata),
            faults=FaultPolicy(self.max_skipped, self.output_dir, self.decode_timeout),
            num_workers=self.num_workers,
            rank=rank,
            world_size=world_size,
            access=self.access,
        )

    def _place(self) -> tuple[int, int]:
        """This process' number and how many there are, with and without a Trainer."""
        if self.trainer is not None:
            return self.trainer.global_rank, self.trainer.world_size
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1

    def _clips_of(self, split: str) -> ClipTable:
        if split not in self.clips:
            if self.shards.get(split) is None:
                raise UserError(f"data.shards.{split} is not set: give a pattern of shards to read.")
            self.clips[split] = self._find_clips(split)
        return self.clips[split]

    def _find_clips(self, split: str) -> ClipTable:
        """The split's usable clips, numbered; says once how many are too short."""
        option = f"data.shards.{split}"
        patterns = self.shards[split]
        assert patterns is not None
        shards = find_shards(patterns, option, self.access, self.index)
        self._check_cache(shards)
        self._check_columns(shards)
        span = window_span(self.window.num_frames, self.window.frame_stride)
        selection = Selection(1 if self.short_clip == "repeat_last" else span, self.bounds)
        try:
            found = select(shards, selection)
            enough = found if selection.shortest == span else select(shards, replace(selection, shortest=span))
        except ValueError as error:
            raise UserError(f"{option}: {error}. Prepare the folder again.") from error
        in_all = int(shards.samples().sum()) - found.outside
        short = in_all - int(enough.counts.sum())
        if found.outside:
            rank_zero_info(f"{split}: data.filter leaves out {found.outside} of {in_all + found.outside} clips.")
            if not in_all:
                raise UserError(f"{option}: data.filter leaves out all {found.outside} clips. Allow more.")
        if not found.counts.any():
            raise UserError(
                f"{option}: no clip is long enough. A window spans {span} frames (data.num_frames="
                f"{self.window.num_frames}, data.frame_stride={self.window.frame_stride}), the longest of "
                f"{in_all} clips has {found.longest}. Lower one of the two, or set data.short_clip=repeat_last."
            )
        if short:
            fate = "left out" if self.short_clip == "skip" else "filled up with their last frame"
            rank_zero_info(f"{split}: {short} of {in_all} clips have fewer than {span} frames and are {fate}.")
        return ClipTable(shards, found.counts, selection)

    def _check_columns(self, shards: ShardList) -> None:
        """Refuse a filter by a column that an index does not have, or that holds text."""
        for index in shards.indexes:
            numbers = [name for name, column in index.columns.items() if not isinstance(column, Strings)]
            if missing := [name for name in self.bounds if name not in numbers]:
                raise UserError(
                    f"data.filter.{missing[0]}: {index.url} has no such column of numbers; it has {', '.join(numbers)}. "
                    "`python -m data.index columns=[...]` makes columns of the metadata of shards of others."
                )

    def _check_cache(self, shards: ShardList) -> None:
        """Make the cache's folder, if there is anything to keep in it."""
        if (cache := self.access.cache) is None:
            return
        remote = [number for number, url in enumerate(shards.urls[:]) if is_remote(url)]
        if not remote:
            return
        size, largest = max((int(shards.sizes()[number]), number) for number in remote)
        if size > cache.max_bytes:
            raise UserError(
                f"data.cache_gb={cache.max_bytes / 1e9:g} is less than one shard: {shards.urls[largest]} has {size} bytes. "
                "Allow more, or set data.cache_dir=null."
            )
        try:
            cache.prepare()
        except OSError as error:
            raise UserError(f"data.cache_dir={cache.folder} cannot be used: {error}. Choose another folder.") from error


def check_bounds(bounds: Mapping[str, Bounds]) -> dict[str, tuple[float | None, float | None]]:
    """The lowest and the highest value of each column.

    Raises:
        UserError: they are not two, or the first is above the second.
    """
    checked: dict[str, tuple[float | None, float | None]] = {}
    for name, pair in bounds.items():
        low, high = pair if len(pair) == 2 else (1.0, 0.0)
        if low is not None and high is not None and not low <= high:
            raise UserError(f"filter.{name}={list(pair)}: give the lowest and the highest value, null for no bound.")
        checked[name] = (low, high)
    return checked


def check_shared_memory(needed: int) -> None:
    """Refuse batches that do not fit into this machine's shared memory; a worker would end by SIGBUS as soon as it is full.

    Args:
        needed: bytes of all loaders of a run on this machine: those of validation work while those of training wait.

    Raises:
        UserError: there is less.
    """
    if not SHARED_MEMORY.is_dir():  # no Linux
        return
    found = os.statvfs(SHARED_MEMORY)
    free = found.f_bavail * found.f_frsize
    if needed > free:
        raise UserError(
            f"The data workers need {needed / 1e6:,.0f} MB of shared memory, and {SHARED_MEMORY} has {free / 1e6:,.0f} MB "
            "free. Give it more (docker run --shm-size=8g, which is 64 MB without), or lower data.num_workers, "
            "data.batch_size, data.num_frames or data.resolution; data.num_workers=0 needs none."
        )
