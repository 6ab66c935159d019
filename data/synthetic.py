"""Small H.264 files of moving textured shapes as shards: the demo's data, made on the spot and cached.

python -m data.synthetic output=DIR     the same as a data set to be kept
"""

import hashlib
import io
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track
from torch import Tensor

from data.check import Facts
from data.clips import ShortClip
from data.datamodule import SPLITS, ClipDataModule
from data.writer import ShardWriter
from tae.cli import hydra_main
from tae.config import plain
from tae.errors import UserError
from tae.files import check_writable

GENERATOR = 2  # part of the cache's name: to be raised when other clips are drawn for the same arguments
FPS = 24
MIN_SIZE = 32
CUT_SHARE, NOISY_SHARE = 0.15, 0.3  # of the clips
TINT = 0.3  # how much colours differ from grey: in natural video most of the variation is of brightness


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
        clip_frames: int,
        clip_size: int,
        clips_seed: int,
        cache_dir: str | Path,
        num_frames: int,
        frame_stride: int,
        resolution: int,
        batch_size: int,
        num_workers: int,
        short_clip: ShortClip,
        max_skipped: float,
        shuffle_buffer: int,
        seed: int,
        output_dir: str | Path,
        decode_timeout: float = 60.0,
        augmentation: Mapping[str, Any] | None = None,
    ) -> None:
        if set(num_clips) != set(SPLITS) or min(num_clips.values()) < 1:
            raise UserError(f"data.num_clips={dict(num_clips)}: give at least 1 for each of {', '.join(SPLITS)}.")
        self.recipe = check_recipe(num_clips, clip_frames, clip_size, clips_seed)
        name = hashlib.sha256(json.dumps(self.recipe | {"generator": GENERATOR}, sort_keys=True).encode()).hexdigest()
        self.folder = Path(cache_dir).expanduser() / name[:12]
        super().__init__(
            {split: str(self.folder / split / "shard-*.tar") for split in SPLITS},
            num_frames,
            frame_stride,
            resolution,
            batch_size,
            num_workers,
            short_clip,
            max_skipped,
            shuffle_buffer,
            seed,
            output_dir,
            decode_timeout,
            augmentation=augmentation,
        )

    def prepare_data(self) -> None:
        """Write the shards unless they are there. Complete or not at all, also when several processes try."""
        if self.folder.is_dir():
            return
        rank_zero_info(f"Writing synthetic clips to {self.folder} (once).")
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(mkdtemp(prefix=".draft-", dir=self.folder.parent))
            try:
                write_splits(draft, self.recipe)
                draft.rename(self.folder)
            except OSError:
                if not self.folder.is_dir():  # if it is, another process was first with the same clips
                    raise
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        except OSError as error:
            raise UserError(f"data.cache_dir={self.folder.parent} cannot be written: {error}.") from error


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
        with ShardWriter(folder / split, split, {"dataset": "synthetic", **recipe}, 64_000_000) as writer:
            for index in track(range(count), description=f"drawing {split}", console=Console(file=sys.stderr)):
                rng = np.random.default_rng((seed, number, index))
                images = draw_clip(rng, frames, size, file_width(size))
                video = encode(images)
                digest = hashlib.sha256(video).hexdigest()
                height, width = images.shape[1:3]
                facts = Facts(frames, FPS, width, height, frames / FPS, "h264", digest, seekable=True)
                key = f"synthetic_{split}_{index:05d}"
                labels = {"label": "synthetic", "group": key, "source": "data/synthetic.py"}
                writer.write(key, "mp4", video, asdict(facts) | labels)


def file_width(height: int) -> int:
    """About 4/3 of the height, and no multiple of 8: decord takes rows of some of those for four channels (96, 144)."""
    return height * 4 // 3 // 8 * 8 + 4


def encode(images: np.ndarray) -> bytes:
    """H.264 MP4 (yuv420p, nearly lossless) of uint8 (t, h, w, 3) with even sides."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "10", "preset": "veryfast", "threads": "1"})
        stream.height, stream.width = images.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


def draw_clip(rng: np.random.Generator, frames: int, height: int, width: int) -> np.ndarray:
    """A clip (frames, height, width, 3) uint8: a scene, or two with a cut between them; some with camera noise."""
    cut = int(rng.integers(1, frames)) if frames > 1 and rng.random() < CUT_SHARE else frames
    lengths = [length for length in (cut, frames - cut) if length]
    clip = torch.cat([draw_scene(rng, length, height, width) for length in lengths])
    if rng.random() < NOISY_SHARE:
        clip = clip + torch.from_numpy(rng.normal(0.0, rng.uniform(0.005, 0.02), clip.shape)).float()
    return clip.clamp(0, 1).mul(255).round().byte().movedim(1, -1).contiguous().numpy()


def draw_scene(rng: np.random.Generator, frames: int, height: int, width: int) -> Tensor:
    """A textured background under a moving camera, with up to four textured shapes: (frames, 3, h, w) in [0, 1]."""
    pixels = _pixel_grid(height, width)
    scene = sample_texture(rng, pixels, _motion(rng, frames, zoom=0.25, speed=0.02))
    for _ in range(int(rng.integers(1, 5))):
        motion = _motion(rng, frames, zoom=0.15, speed=0.05)
        motion[:, :, 2] += torch.from_numpy(rng.uniform(-0.8, 0.8, 2)).float()
        surface = sample_texture(rng, pixels, motion)
        mask = shape_mask(rng, pixels, motion)
        shade = rng.uniform(0.6, 1.0)
        scene = scene + mask * (surface * shade - scene)
    return scene


def _pixel_grid(height: int, width: int) -> Tensor:
    """Homogeneous pixel positions (h * w, 3), the short side from -1 to 1."""
    short = min(height, width)
    y, x = ((torch.arange(side) - (side - 1) / 2) * 2 / short for side in (height, width))
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows, torch.ones_like(rows)], dim=-1)


def _motion(rng: np.random.Generator, frames: int, zoom: float, speed: float) -> Tensor:
    """Affine maps (frames, 2, 3) from pixels to a surface: a smooth pan, zoom and turn from a random start."""
    t = np.arange(frames)
    angle = rng.uniform(-np.pi, np.pi) + rng.normal(0, 0.01) * t
    scale = np.exp(rng.normal(0, zoom) + rng.normal(0, 0.006) * t)
    sway = rng.normal(0, speed) * np.sin(2 * np.pi * t / rng.uniform(12, 48))
    shift = rng.normal(0, speed, (2, 1)) * t + rng.normal(0, 1, (2, 1)) * sway
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    rows = np.stack([np.stack([cos, -sin, shift[0]], -1), np.stack([sin, cos, shift[1]], -1)], axis=1)
    return torch.from_numpy(rows).float()


def _positions(pixels: Tensor, motion: Tensor) -> Tensor:
    """Where each pixel of each frame lies on a surface: (frames, h, w, 2)."""
    return torch.einsum("hwi,toi->thwo", pixels, motion)


def sample_texture(rng: np.random.Generator, pixels: Tensor, motion: Tensor, size: int = 128) -> Tensor:
    """A random texture seen through `motion`: (frames, 3, h, w) in [0, 1].

    Noise at several scales, coarse ones strongest as in natural images (amplitude 1 / frequency), around a colour and
    a gradient; sometimes stripes or checks, which have the sharp edges that noise lacks.
    """
    texture = torch.zeros(1, 3, size, size)
    for octave in range(2, 6):
        coarse = rng.normal(0, 1, (1, 3, 2**octave, 2**octave)) * TINT + rng.normal(0, 1, (1, 1, 2**octave, 2**octave))
        fine = F.interpolate(torch.from_numpy(coarse).float(), size=(size, size), mode="bicubic", align_corners=False)
        texture += fine * rng.uniform(0.05, 0.35) * 2.0 ** (1 - octave)
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    slope = torch.from_numpy(rng.normal(0, 0.12, 2) + TINT * rng.normal(0, 0.12, (3, 2))).float()
    colour = torch.from_numpy(rng.uniform(0.1, 0.9) + TINT * rng.normal(0, 0.25, 3)).float()
    texture += colour.view(1, 3, 1, 1) + (slope[:, :1, None] * x + slope[:, 1:, None] * y)
    if rng.random() < 0.4:
        waves = torch.sin(x * rng.uniform(5, 30)) * (torch.sin(y * rng.uniform(5, 30)) if rng.random() < 0.5 else 1)
        amplitude = torch.from_numpy(rng.normal(0, 0.12) + TINT * rng.normal(0, 0.12, 3)).float()
        texture += amplitude.view(1, 3, 1, 1) * torch.tanh(waves * rng.uniform(1, 6))
    texture = texture.clamp(0, 1).expand(len(motion), -1, -1, -1)
    places = _positions(pixels, motion) / 2  # the texture reaches twice as far as the picture, then mirrors
    return F.grid_sample(texture, places, mode="bilinear", padding_mode="reflection", align_corners=False)


def shape_mask(rng: np.random.Generator, pixels: Tensor, motion: Tensor) -> Tensor:
    """Soft-edged cover (frames, 1, h, w) in [0, 1] of a moving ellipse, box or anything between (a superellipse)."""
    places = _positions(pixels, motion)
    radii = torch.from_numpy(rng.uniform(0.2, 0.6, 2)).float()
    power = float(rng.choice([1.0, 2.0, 2.0, 6.0]))
    reach = (places.abs() / radii).pow(power).sum(-1, keepdim=True).pow(1 / power)
    edge = rng.uniform(10, 40)
    return torch.sigmoid((1 - reach) * edge).movedim(-1, 1)


def main(cfg: DictConfig) -> None:
    """Write generated clips as shards that any data group can name.

    Raises:
        UserError: a setting is out of its range, or the output holds something.
    """
    settings = plain(cfg)
    output = Path(settings["output"]).expanduser()
    recipe = check_recipe(settings["num_clips"], cfg.clip_frames, cfg.clip_size, cfg.clips_seed)
    if set(recipe["num_clips"]) != set(SPLITS) or min(recipe["num_clips"].values()) < 0:
        raise UserError(
            f"num_clips={recipe['num_clips']}: give a number for each of {', '.join(SPLITS)}; 0 leaves one out."
        )
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"output={output} is not empty. Remove what is in it or choose another folder.")
    check_writable(output, "output")
    write_splits(output, recipe)
    print(f"{output}: {', '.join(f'{count} {split}' for split, count in recipe['num_clips'].items() if count)}")


if __name__ == "__main__":
    hydra_main("synthetic")(main)()
