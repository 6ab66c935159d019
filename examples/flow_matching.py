"""Train a small video generator on latents, then decode what it makes into a video: the smallest whole chain.

    python -m tae.encode source=VIDEOS output=latents resolution=64
    python examples/flow_matching.py --latents latents --output generated.mp4

Flow matching with straight paths (arXiv 2210.02747, 2209.03003): between a latent x and noise e lies x_t = (1 - t) x + t e,
whose velocity is e - x. A transformer learns the velocity from x_t and t; going from noise along it, back to t = 0, makes
latents. A minute or two on a CPU gives coloured motion in the manner of the videos, no more.
"""

import argparse
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tae import clip_to_frames
from tae.latents.dataset import LatentDataset
from tae.model.pretrained import load_model
from tae.runtime.errors import UserError
from tae.video.writer import write_video


class Block(nn.Module):
    """Attention and an MLP, both scaled, shifted and gated by the time (the adaptive norm of DiT, arXiv 2212.09748)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)  # every block starts as the identity
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x: (b, tokens, width), time: (b, 1, width)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = self.modulation(F.silu(time)).chunk(6, dim=-1)
        qkv = self.qkv(self.norm(x) * (1 + scale_1) + shift_1)
        query, key, value = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + gate_1 * self.out(mixed)
        return x + gate_2 * self.mlp(self.norm(x) * (1 + scale_2) + shift_2)


class VelocityModel(nn.Module):
    """The velocity of noisy latents (b, c, t', h', w') at times (b,), each latent position a token."""

    def __init__(self, shape: tuple[int, ...], width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        channels, *extents = shape
        self.width = width
        self.embed = nn.Linear(channels, width)
        self.position = nn.Parameter(torch.randn(math.prod(extents), width) * 0.02)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.project = nn.Linear(width, channels)

    def forward(self, latents: Tensor, time: Tensor) -> Tensor:
        frequencies = torch.exp(torch.linspace(0, math.log(1000), self.width // 2))
        angles = time[:, None] * frequencies
        condition = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))[:, None]
        x = self.embed(latents.flatten(2).transpose(1, 2)) + self.position
        for block in self.blocks:
            x = block(x, condition)
        return self.project(x).transpose(1, 2).unflatten(2, latents.shape[2:])


def forever(loader: DataLoader) -> Iterator[Tensor]:
    """Batches of latents, epoch after epoch."""
    for _ in itertools.count():
        for batch in loader:
            yield batch["latents"]


def train(model: VelocityModel, loader: DataLoader, steps: int) -> None:
    """Fit the velocities. A model that knows nothing has a loss of 2, the variance of noise and of scaled latents."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    recent: list[float] = []
    for step, latents in enumerate(itertools.islice(forever(loader), steps), start=1):
        noise, time = torch.randn_like(latents), torch.rand(len(latents))
        t = time.view(-1, 1, 1, 1, 1)
        loss = F.mse_loss(model((1 - t) * latents + t * noise, time), noise - latents)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        recent.append(loss.item())
        if step % max(steps // 10, 1) == 0:
            print(f"step {step}: loss {sum(recent) / len(recent):.4f}")
            recent.clear()


@torch.no_grad()
def generate(model: VelocityModel, shape: tuple[int, ...], count: int, steps: int = 50) -> Tensor:
    """Scaled latents (count, *shape) from noise, in equal steps (Euler) from t = 1 to t = 0."""
    latents = torch.randn(count, *shape)
    for i in range(steps, 0, -1):
        latents = latents - model(latents, torch.full((count,), i / steps)) / steps
    return latents


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", default="tiny", help="the autoencoder that made the latents")
    parser.add_argument("--latents", required=True, help="folder that `python -m tae.encode` wrote")
    parser.add_argument("--output", type=Path, default=Path("generated.mp4"))
    parser.add_argument("--num-frames", type=int, default=2, help="latent frames of a generated video; 8 frames each")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--count", type=int, default=4, help="videos to generate, shown side by side")
    parser.add_argument("--seed", type=int, default=0)
    try:
        run(parser.parse_args())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def run(arguments: argparse.Namespace) -> None:
    dataset = LatentDataset(arguments.latents, num_frames=arguments.num_frames)
    loaded = load_model(arguments.ckpt)
    if not loaded.encoded(made_by := dataset.stats.checkpoint):
        raise UserError(
            f"--latents {arguments.latents} were made by {made_by['path']}, which is not --ckpt {arguments.ckpt}: it would "
            "decode them into noise. Give the model that made them, or encode with this one."
        )
    torch.manual_seed(arguments.seed)
    loader = DataLoader(dataset, arguments.batch_size, shuffle=True)
    shape = tuple(dataset[0]["latents"].shape)
    model = VelocityModel(shape)
    print(f"{len(dataset)} clips of latents {shape}, {sum(p.numel() for p in model.parameters()):,} parameters")
    train(model, loader, arguments.steps)

    latents = dataset.scaling.undo(generate(model, shape, arguments.count))
    with torch.no_grad():
        frames = clip_to_frames(loaded.model.decode(latents))  # (count, t, h, w, 3)
    write_video(arguments.output, torch.cat(list(frames), dim=2), fps=25)
    print(
        f"{arguments.count} videos of {frames.shape[1]} frames, {frames.shape[3]}x{frames.shape[2]}: {arguments.output}"
    )


if __name__ == "__main__":
    main()
