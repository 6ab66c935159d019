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

from data.ingest.files import FILE_COLUMNS, index_files
from data.loading.faults import FaultPolicy
from data.loading.loader import BATCHES_AHEAD, ClipLoader
from data.loading.mixture import MixedLoader
from data.processes.pool import Engine
from data.sampling.mixture import (
    Bounds,
    BucketSettings,
    SourceSettings,
    Stream,
    check_bounds,
    divide_workers,
    make_streams,
    paces_of,
    weigh,
)
from data.sampling.table import ClipTable
from data.sampling.transforms import Augmentation, Interpolation
from data.sampling.types import Clip, Sampling, Window
from data.sampling.usable import find_clips
from data.sampling.windows import EvalWindow, ShortClip
from data.shards.index import find_shards, read_recipe
from data.shards.manifest import MANIFEST_FIELDS, MANIFESTS, index_folder
from data.storage.cache import ShardCache
from data.storage.remote import Access
from tae.runtime.annotations import AboveZero, ArgumentsOf, AtLeastOne, NotNegative, Pixels, Share
from tae.runtime.errors import UserError
from tae.runtime.paths import to_path
from tae.runtime.schema import check_arguments

SHARED_MEMORY = Path("/dev/shm")  # where Linux keeps it
SPLITS = ("train", "val", "test")
SPLITS_OF_STAGE = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), None: SPLITS}


class Shards(TypedDict, total=False):
    """Patterns of the shards of each split; null or left out: there is none."""

    train: str | Sequence[str] | None
    val: str | Sequence[str] | None
    test: str | Sequence[str] | None


class Files(TypedDict, total=False):
    """A folder or a list of files for each split; null or left out: there is none."""

    train: str | None
    val: str | None
    test: str | None


class ClipDataModule(LightningDataModule):
    """Clips from shards, for training and evaluation.

    A batch is a `data.batch.Batch` with `t = num_frames` and `h = w = resolution`; its rates are the files' divided by
    `frame_stride`.

    Args:
        shards: patterns for "train", "val" and "test" (see `data.shards.index.find_shards`); null leaves a split out.
        files: for each split a folder or a list of files to read where they lie, in place of shards
            (`data.ingest.files.index_files`); of a list that names splits, those of this one.
        num_frames: frames of a clip.
        frame_stride: every how manieth frame of the file is taken; of several one is drawn for each training clip, of those
            that fit into it. Validation and evaluation take the first.
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
        fps: frames a second of a clip, by the times of display, instead of a stride; several as of strides. Files that are
            slower are left out.
        buckets: several shapes of training clips by name, each as `data.sampling.mixture.BucketSettings`;
            each clip is taken in the one that fits it best.
        sources: several sources of training clips by name, each as `data.sampling.mixture.SourceSettings`;
            each batch is of one, which it names; one that is None is left out. `num_workers` are divided among them.

    Raises:
        UserError: an argument is out of its range; in `setup`, shards that are missing or do not fit their index,
            or no clip that is long enough.
    """

    def __init__(
        self,
        shards: Shards,
        num_frames: AtLeastOne,
        frame_stride: AtLeastOne | Sequence[AtLeastOne],
        resolution: Pixels,
        batch_size: AtLeastOne,
        num_workers: NotNegative,
        short_clip: ShortClip,
        max_skipped: Share,
        shuffle_buffer: AtLeastOne,
        seed: NotNegative,
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
        sources: Mapping[str, Annotated[Mapping[str, Any] | None, ArgumentsOf(SourceSettings)]] | None = None,
        files: Files | None = None,
        fps: AboveZero | Sequence[AboveZero] | None = None,
        buckets: Mapping[str, Annotated[Mapping[str, Any] | None, ArgumentsOf(BucketSettings)]] | None = None,
    ) -> None:
        check_arguments(ClipDataModule, locals())
        super().__init__()
        if decoder == "torchcodec" and find_spec("torchcodec") is None:
            raise UserError("decoder=torchcodec needs the package torchcodec, and FFmpeg's libraries. Install both.")
        for name, given in (("shards", dict(shards)), ("files", dict(files or {}))):
            if unknown := set(given) - set(SPLITS):
                raise UserError(f"{name}: {min(unknown)} is unknown. Choose from: {', '.join(SPLITS)}.")
        sources_of_files = cast(dict[str, str | None], dict(files or {}))
        self.files = {split: to_path(source) for split, source in sources_of_files.items() if source is not None}
        self.shards = cast(dict[str, str | Sequence[str] | None], dict(shards)) | dict.fromkeys(self.files)
        window = Window(
            num_frames,
            1,
            resolution,
            Augmentation(**augmentation or {}),
            decoder,
            place=eval_window,
            interpolation=interpolation,
        )
        window = replace(window, **paces_of(frame_stride, fps, window))
        self.stream = Stream(
            name="",
            key="data",
            option="data.files.train" if "train" in self.files else "data.shards.train",
            shards=self.shards.get("train"),
            files=self.files.get("train"),
            window=window,
            batch_size=batch_size,
            short_clip=short_clip,
            shuffle_buffer=shuffle_buffer,
            interleave=interleave,
            index=index,
            bounds=check_bounds(filter or {}),
        )
        self.streams = make_streams(self.stream, sources, buckets)
        self.num_workers = num_workers
        self.max_skipped = max_skipped
        self.seed = seed
        self.output_dir = to_path(output_dir)
        self.decode_timeout = decode_timeout
        cache = None if cache_dir is None else ShardCache(to_path(cache_dir), round(cache_gb * 1e9))
        self.access = Access(read_tries, read_timeout, cache, allow_pipe)
        self.metadata = tuple(metadata)
        self.clips: dict[str, ClipTable] = {}  # of each split, or of "train/NAME" for each of several sources
        self._manifests: dict[tuple[str, Path], str] = {}  # their pattern, by split and source
        self._named: dict[str, ClipTable] = {}  # those of evaluations, each under a name of its own
        self._training: list[ClipLoader | MixedLoader] = []

    def setup(self, stage: str | None = None) -> None:
        """Find and check the clips of the stage's splits; opens no shard."""
        batches = 0  # bytes of one of each worker
        used: list[tuple[Stream, ClipTable]] = []
        for split in SPLITS_OF_STAGE[stage]:
            streams = [stream for stream in self._streams_of(split) if stream.is_set]
            used += [(stream, self._clips_of(split, stream)) for stream in streams]
            weights = weigh(streams, [len(self._clips_of(split, stream)) for stream in streams])
            workers = divide_workers(self.num_workers, streams, weights)
            batches += sum(count * math.prod(stream.shape) for count, stream in zip(workers, streams, strict=True))
        self._check_metadata(used)
        processes = 1 if self.trainer is None else self.trainer.num_devices
        check_shared_memory(processes * (BATCHES_AHEAD + 1) * batches)

    def _check_metadata(self, used: Sequence[tuple[Stream, ClipTable]]) -> None:
        """Refuse fields that no file of the stage can have; what samples in shards have is only seen when they are read."""
        if not used or any(stream.files is None for stream, _ in used):
            return
        columns = {name for _, clips in used for index in clips.shards.indexes for name in index.columns}
        known = MANIFEST_FIELDS | (columns - FILE_COLUMNS)
        if unknown := [name for name in self.metadata if name not in known]:
            raise UserError(f"metadata=[{unknown[0]}]: no file has it. There are: {', '.join(sorted(known))}.")

    def train_dataloader(self) -> ClipLoader | MixedLoader:
        """The endless, shuffled stream, or several of them; their positions are saved with the checkpoint."""
        clips = [self._clips_of("train", stream) for stream in self.streams]
        weights = weigh(self.streams, list(map(len, clips)))
        workers = divide_workers(self.num_workers, self.streams, weights)
        loaders = [self._loader("train", *of_stream) for of_stream in zip(self.streams, clips, workers, strict=True)]
        names = [stream.name for stream in self.streams]
        loader: ClipLoader | MixedLoader = loaders[0]
        if len(loaders) > 1:
            loader = MixedLoader(
                dict(zip(names, loaders, strict=True)), dict(zip(names, weights, strict=True)), self.seed
            )
            self._tell_shapes(loader.stream_of(0), sum(workers))
        self._training.append(loader)
        return loader

    def _tell_shapes(self, first: str, workers: int) -> None:
        """Say which shape is tried first, and where more worker processes are needed than were asked for."""
        shape = next(stream.shape_in_words for stream in self.streams if stream.name == first)
        rank_zero_info(f"train: batches of {len(self.streams)} kinds; the first is of {first} ({shape}), the largest.")
        if workers > self.num_workers:
            rank_zero_info(f"train: each kind needs a worker, so there are {workers} instead of {self.num_workers}.")

    def teardown(self, stage: str | None = None) -> None:
        """End the workers of training; called by the Trainer."""
        while self._training:
            self._training.pop().close()

    def val_dataloader(self) -> ClipLoader | list[ClipLoader]:
        """Each validation clip once; nothing where `shards.val` is null."""
        return self.eval_dataloader("val") if self.has("val") else []

    def test_dataloader(self) -> ClipLoader:
        """Each test clip once."""
        return self.eval_dataloader("test")

    def has(self, split: str) -> bool:
        """Whether shards or files are given for a split."""
        return self.shards.get(split) is not None or split in self.files

    def describe(self, split: str) -> dict[str, Any]:
        """What a number on this split has to be told with: its shards, how they were split, the window and its size."""
        stream, window = self._with_manifests(split, self._streams_of(split)[0]), self.stream.window.first_pace()
        patterns = stream.shards or ()
        return {
            "shards": [str(stream.files or patterns)] if isinstance(patterns, str) else list(patterns),
            "split": read_recipe(find_shards(patterns, stream.option, self.access, stream.index), self.access),
            "num_frames": window.num_frames,
            "frame_stride": window.frame_stride,
            **({"fps": window.fps[0]} if window.fps else {}),
            "resolution": window.resolution,
            "eval_window": window.place,
            "interpolation": window.interpolation,
        }

    def eval_dataloader(self, split: str, only: Sequence[str] | None = None) -> ClipLoader:
        """Each clip of a split once over all processes, or only those with the given keys, in the index's order."""
        (stream,) = self._streams_of(split)
        if split not in self._named:
            self._named[split] = self._clips_of(split, stream).named()
        clips: Sequence[Clip] = self._named[split]
        if only is not None:
            wanted = set(only)
            clips = [clip for clip in clips if clip.name in wanted]
            if missing := wanted - {clip.name for clip in clips}:
                raise UserError(f"{split} has no usable clip {min(missing)} ({len(missing)} of {len(only)} missing).")
        return self._loader(split, stream, clips, self.num_workers)

    def _loader(self, split: str, stream: Stream, clips: Sequence[Clip], num_workers: int) -> ClipLoader:
        rank, world_size = self._place()
        buffer = stream.shuffle_buffer if split == "train" else None
        return ClipLoader(
            name=_name(split, stream),
            clips=clips,
            sampling=Sampling(stream.window, stream.batch_size, buffer, self.seed, stream.interleave, self.metadata),
            faults=FaultPolicy(self.max_skipped, self.output_dir, self.decode_timeout),
            num_workers=num_workers,
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

    def _streams_of(self, split: str) -> tuple[Stream, ...]:
        """The sources of training; validation and evaluation have one, of the settings outside of the sources."""
        if split == "train":
            return self.streams
        files, window = self.files.get(split), self.stream.window.first_pace()
        option = f"data.{'shards' if files is None else 'files'}.{split}"
        return (replace(self.stream, option=option, shards=self.shards.get(split), files=files, window=window),)

    def _clips_of(self, split: str, stream: Stream) -> ClipTable:
        name = _name(split, stream)
        if name not in self.clips:
            self.clips[name] = find_clips(self._with_manifests(split, stream), name, self.access)
        return self.clips[name]

    def _with_manifests(self, split: str, stream: Stream) -> Stream:
        """A stream of files with the manifests and index of these as its shards; one of shards as it is."""
        if (source := stream.files) is None:
            return stream
        if (split, source) not in self._manifests:
            if not source.exists():
                raise UserError(f"{stream.option}={source} does not exist. Give a folder of videos, or a list of them.")
            found = index_files(source, index_folder(source, split), split, self.decode_timeout, Engine())
            rank_zero_info(f"{split}: {source}: {found}")
            self._manifests[split, source] = f"{found.folder}/{MANIFESTS}"
        return replace(stream, shards=self._manifests[split, source], index=None)


def _name(split: str, stream: Stream) -> str:
    return f"{split}/{stream.name}" if stream.name else split


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
