"""Drawn clips: moving textured shapes, pans, zooms, cuts and noise, as frames and as H.264 files."""

import io

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tae.video.writer import x264_options

FPS = 24
MIN_SIZE = 32
CUT_SHARE, NOISY_SHARE = 0.15, 0.3  # of the clips
TINT = 0.3  # how much colours differ from grey: in natural video most of the variation is of brightness


def file_width(height: int) -> int:
    """About 4/3 of the height, and no multiple of 8: decord takes rows of some of those for four channels (96, 144)."""
    return height * 4 // 3 // 8 * 8 + 4


def encode_mp4(images: np.ndarray) -> bytes:
    """H.264 MP4 (yuv420p, nearly lossless) of uint8 (t, h, w, 3) with even sides."""
    return encode_h264(images, "mp4", x264_options(crf="10", preset="veryfast", threads="1"))


def encode_h264(images: np.ndarray, container_format: str, options: dict[str, str]) -> bytes:
    """H.264 (yuv420p) by these options of x264, in any container, of uint8 (t, h, w, 3) with even sides."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as container:
        stream = container.add_stream("libx264", rate=FPS, options=options)
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
