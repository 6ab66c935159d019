"""Generated clips: the module that serves them, and the command that keeps them."""

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info
from omegaconf import DictConfig

from data.datamodule import SPLITS, ClipDataModule, Shards
from data.drawing import FPS, MIN_SIZE, draw_clip, encode_mp4, file_width
from data.ingest.check import Facts
from data.sampling.mixture import BucketSettings, SourceSettings
from data.sampling.transforms import Augmentation, Interpolation
from data.sampling.windows import EvalWindow, ShortClip
from data.shards.writer import ShardWriter
from tae.runtime.annotations import AboveZero, ArgumentsOf, AtLeastOne, NotNegative, Pixels, Share
from tae.runtime.config import plain
from tae.runtime.errors import UserError
from tae.runtime.files import check_empty, check_writable
from tae.runtime.paths import to_path
from tae.runtime.progress import progress_bar
from tae.runtime.schema import check_config
from tae.runtime.settings import Synthetic

GENERATOR = 2  # part of the cache's name: to be raised when other clips are drawn for the same arguments


class SyntheticDataModule(ClipDataModule):
    """Clips of generated files, written once as shards into a cache folder, then read like any others.

    Args:
        num_clips: files for each of train, val and test; the three come from different seeds.
        clip_frames: frames of a file.
        clip_size: height of a file in pixels, even; its width is about 4/3 of that.
        clips_seed: of the files' content.
        cache_dir: where the shards are kept; a folder in it is named after what it was made with.
        others: as in `ClipDataModule`.

    Raises:
        UserError: an argument is out of its range, or the cache folder cannot be written.
    """

    def __init__(
        self,
        num_clips: Mapping[str, int],
        clip_frames: AtLeastOne,
        clip_size: AtLeastOne,
        clips_seed: NotNegative,
        cache_dir: str | Path,
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
        decode_timeout: AboveZero = 60.0,
        augmentation: Annotated[Mapping[str, Any] | None, ArgumentsOf(Augmentation)] = None,
        interleave: AtLeastOne = 1,
        eval_window: EvalWindow = "central",
        interpolation: Interpolation = "bicubic",
        sources: Mapping[str, Annotated[Mapping[str, Any] | None, ArgumentsOf(SourceSettings)]] | None = None,
        fps: AboveZero | Sequence[AboveZero] | None = None,
        buckets: Mapping[str, Annotated[Mapping[str, Any] | None, ArgumentsOf(BucketSettings)]] | None = None,
    ) -> None:
        if set(num_clips) != set(SPLITS) or min(num_clips.values()) < 1:
            raise UserError(f"num_clips={dict(num_clips)}: give at least 1 for each of {', '.join(SPLITS)}.")
        self.recipe = check_recipe(num_clips, clip_frames, clip_size, clips_seed)
        name = hashlib.sha256(json.dumps(self.recipe | {"generator": GENERATOR}, sort_keys=True).encode()).hexdigest()
        self.folder = to_path(cache_dir) / name[:12]
        super().__init__(
            Shards({split: str(self.folder / split / "shard-*.tar") for split in SPLITS}),  # type: ignore[misc]
            num_frames=num_frames,
            frame_stride=frame_stride,
            resolution=resolution,
            batch_size=batch_size,
            num_workers=num_workers,
            short_clip=short_clip,
            max_skipped=max_skipped,
            shuffle_buffer=shuffle_buffer,
            seed=seed,
            output_dir=output_dir,
            decode_timeout=decode_timeout,
            augmentation=augmentation,
            interleave=interleave,
            eval_window=eval_window,
            interpolation=interpolation,
            sources=sources,
            fps=fps,
            buckets=buckets,
        )

    def prepare_data(self) -> None:
        """Write the shards unless they are there. Complete or not at all; of several processes one writes."""
        if self.folder.is_dir():
            return
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder.with_name(f".{self.folder.name}.lock")):
                if self.folder.is_dir():
                    return
                rank_zero_info(f"Writing synthetic clips to {self.folder} (once).")
                draft = self.folder.with_name(f".draft-{self.folder.name}")
                shutil.rmtree(draft, ignore_errors=True)  # of a process that was killed: it had the lock
                try:
                    write_splits(draft, self.recipe)
                    draft.rename(self.folder)
                finally:
                    shutil.rmtree(draft, ignore_errors=True)
        except OSError as error:
            raise UserError(f"cache_dir={self.folder.parent} cannot be written: {error}.") from error


def check_recipe(num_clips: Mapping[str, int], clip_frames: int, clip_size: int, clips_seed: int) -> dict[str, Any]:
    """What generated clips are made with, as it stands in their index.

    Raises:
        UserError: a value is out of its range.
    """
    if clip_frames < 1 or clip_size < MIN_SIZE or clip_size % 2:
        raise UserError(
            f"clip_frames={clip_frames} and clip_size={clip_size}: at least 1 frame, and an even height of at least "
            f"{MIN_SIZE} pixels."
        )
    return {"num_clips": dict(num_clips), "frames": clip_frames, "size": clip_size, "seed": clips_seed}


def write_splits(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write the shards of every split that has clips."""
    frames, size, seed = recipe["frames"], recipe["size"], recipe["seed"]
    for number, split in enumerate(SPLITS):
        if not (count := recipe["num_clips"].get(split, 0)):
            continue
        recorded = {"dataset": "synthetic", **recipe}
        with ShardWriter(folder / split, split, recorded, 64_000_000) as writer, progress_bar("clips") as progress:
            for index in progress.track(range(count), description=f"drawing {split}"):
                rng = np.random.default_rng((seed, number, index))
                images = draw_clip(rng, frames, size, file_width(size))
                video = encode_mp4(images)
                digest = hashlib.sha256(video).hexdigest()
                height, width = images.shape[1:3]
                facts = Facts(frames, FPS, width, height, frames / FPS, "h264", digest, seekable=True)
                key = f"synthetic_{split}_{index:05d}"
                labels = {"label": "synthetic", "group": key, "source": "data/synthetic.py"}
                writer.write(key, "mp4", video, asdict(facts) | labels)


def write_synthetic(cfg: DictConfig) -> None:
    """Write generated clips as shards that any data group can name.

    Raises:
        UserError: a setting is out of its range, or the output holds something.
    """
    check_config(cfg, Synthetic)
    settings = plain(cfg)
    output = to_path(settings["output"])
    recipe = check_recipe(settings["num_clips"], cfg.clip_frames, cfg.clip_size, cfg.clips_seed)
    if set(recipe["num_clips"]) != set(SPLITS) or min(recipe["num_clips"].values()) < 0:
        raise UserError(
            f"num_clips={recipe['num_clips']}: give a number for each of {', '.join(SPLITS)}; 0 leaves one out."
        )
    check_empty(output)
    check_writable(output, "output")
    write_splits(output, recipe)
    print(f"{output}: {', '.join(f'{count} {split}' for split, count in recipe['num_clips'].items() if count)}")
