"""What tiles change: a video reconstructed whole and in tiles, by overlap, as numbers and as a picture.

    python -m benchmarks.seams --video film.mp4
    python -m benchmarks.seams --video film.mp4 --ckpt best.ckpt --frames 128 --short-side 720 --tile-pixels 512

Seam energy is how much harder the error against the whole jumps at the borders of tiles than elsewhere: a ratio of mean
squared steps, 1 where nothing marks the borders. The picture shows one frame, from left to right: original, whole, the
spatial tiles of the table; below, 8 times as strong, what each of them changes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.common import RESULTS, publish
from data.decode import open_video
from data.sampling.transforms import resize_short_side
from data.sampling.windows import central_window
from tae import TemporalAutoencoder, clip_to_frames, frames_to_clip
from tae.metrics.frame import psnr
from tae.model.streaming import decode_stream, encode_stream
from tae.model.tiling import Tiling, even_tile

TILE_FRAMES = 32
AMPLIFIED = 8
GAP = 4  # white pixels between pictures


def read_clip(path: Path, num_frames: int, short_side: int | None) -> Tensor:
    """The central window, (1, t, h, w, 3) uint8; all frames of a video that is shorter."""
    with open_video(path.read_bytes()) as video:
        indices = central_window(len(video), min(num_frames, len(video)), 1)
        images = [
            resize_short_side(image, short_side or min(video.size)).copy() for _, image in video.each_frame(indices)
        ]
    return torch.from_numpy(np.stack(images))[None]


@torch.no_grad()
def reconstruct(model: TemporalAutoencoder, frames: Tensor, tiling: Tiling) -> Tensor:
    """(1, t, h, w, 3) uint8 to the same, through encoding and decoding in tiles."""
    clip = frames_to_clip(frames)
    latents = (posterior.mode() for posterior in encode_stream(model, [clip], tiling))
    pieces = decode_stream(model, latents, clip.shape[2], (clip.shape[3], clip.shape[4]), tiling)
    return torch.cat([clip_to_frames(piece) for piece in pieces], dim=1)


def seam_energy(error: Tensor, seams: Sequence[int], dim: int) -> float:
    """Mean squared step of `error` along `dim` at the seams, by that elsewhere; a seam s lies between s - 1 and s."""
    others = [axis for axis in range(error.ndim) if axis != dim]
    steps = error.float().diff(dim=dim).square().mean(others)
    at_seams = torch.zeros(len(steps), dtype=torch.bool)
    at_seams[[seam - 1 for seam in seams]] = True
    return (steps[at_seams].mean() / steps[~at_seams].mean()).item()


def borders(extent: int, tile: int, overlap: int) -> list[int]:
    """Where tiles start and end inside an axis."""
    starts = range(0, extent - overlap, tile - overlap)
    return sorted({place for start in starts for place in (start, start + tile) if 0 < place < extent})


def tilings(frames: Tensor, tile_pixels: int) -> dict[str, tuple[Tiling, dict[int, list[int]]]]:
    """By name: how the video is cut, and where, by axis of (1, t, h, w, 3). The first is not cut."""
    length, sides = frames.shape[1], frames.shape[2:4]
    whole = -(-length // 8) * 8
    found: dict[str, tuple[Tiling, dict[int, list[int]]]] = {"whole": (Tiling(whole, 0), {})}
    for overlap in (0, 8, 16, 24):
        cuts = {1: borders(length, TILE_FRAMES, overlap)}
        found[f"{TILE_FRAMES} frames, overlap {overlap}"] = (Tiling(TILE_FRAMES, overlap), cuts)
    for overlap in (0, tile_pixels // 16, tile_pixels // 8, tile_pixels // 4):
        padded = [-(-side // 8) * 8 for side in sides]
        tiles = [even_tile(side, tile_pixels, overlap, 8) if side > tile_pixels else side for side in padded]
        cuts = {
            axis: borders(side, tile, overlap) for axis, (side, tile) in enumerate(zip(sides, tiles, strict=True), 2)
        }
        found[f"{tile_pixels} pixels, overlap {overlap}"] = (Tiling(whole, 0, tile_pixels, overlap), cuts)
    return found


def row(name: str, original: Tensor, whole: Tensor, tiled: Tensor, cuts: dict[int, list[int]]) -> dict[str, Any]:
    error = tiled.int() - whole.int()
    energies = [seam_energy(error, seams, axis) for axis, seams in cuts.items() if seams and error.any()]
    return {
        "tiles": name,
        "PSNR, of the original": psnr(original[0], tiled[0]).mean().item(),
        "PSNR, of the whole": psnr(whole[0], tiled[0]).mean().item() if error.any() else None,
        "largest difference": error.abs().max().item(),
        "seam energy": max(energies, default=None),
    }


def picture(original: Tensor, pictures: Sequence[Tensor], whole: Tensor, number: int) -> Image.Image:
    """One frame of each, (1, t, h, w, 3), and below what it changes of the whole."""
    tops = [original[0, number], *(one[0, number] for one in pictures)]
    changes = [((one.int() - whole[0, number].int()).abs() * AMPLIFIED).clamp(max=255).byte() for one in tops]
    rows = [side_by_side(tops), side_by_side(changes)]
    gap = np.full((GAP, *rows[0].shape[1:]), 255, np.uint8)
    return Image.fromarray(np.concatenate([rows[0], gap, rows[1]]))


def side_by_side(images: Sequence[Tensor]) -> np.ndarray:
    gap = np.full((images[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for image in images for part in (image.numpy(), gap)][:-1], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--ckpt", default="tiny")
    parser.add_argument("--frames", type=int, default=96)
    parser.add_argument("--short-side", type=int, help="scale the video to it first")
    parser.add_argument("--tile-pixels", type=int, default=256)
    parser.add_argument("--picture", type=Path, help="a .png that is written")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    model = TemporalAutoencoder.from_pretrained(arguments.ckpt).eval()
    frames = read_clip(arguments.video, arguments.frames, arguments.short_side)
    cases = tilings(frames, arguments.tile_pixels)
    results = {name: reconstruct(model, frames, tiling) for name, (tiling, _) in cases.items()}
    rows = [row(name, frames, results["whole"], results[name], cuts) for name, (_, cuts) in cases.items()]
    if arguments.picture:
        shown = [result for name, result in results.items() if "frames" not in name]
        picture(frames, shown, results["whole"], frames.shape[1] // 2).save(arguments.picture)
    size = "x".join(map(str, frames.shape[1:4]))
    publish("seams", "cpu", {"ckpt": arguments.ckpt, "size": size}, rows, arguments.output)


if __name__ == "__main__":
    main()
