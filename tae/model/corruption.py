"""What latents go through on their way to the decoder in training, so that it, and a generator, can cope with less."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tae.runtime.errors import UserError

CORRUPTION_PREFIX = "corruption."  # of its parameters in a training's model; no model that is used has them


class LatentCorruption(nn.Module):
    """Noise, then masked positions, then missing channels; each is off by default.

    Drawn from PyTorch's global generator, which a training seeds in every step.

    - Noise: `z + s d n` with normal n, the standard deviation d of each channel over the batch (no gradient) and s drawn
      evenly from [0, noise) for each clip. The decoder learns to take what a generator gives, which is never exact. After
      l-DeTok (arXiv 2507.15856), which mixes `(1 - s) z + s n` instead; DiTo and RAE (arXiv 2510.11690) add, as here.
    - Mask: each position becomes a learned token with probability `mask`, so latents must say something of their
      neighbours (Latent Masked Reconstruction of SSVAE, arXiv 2512.05394; a random share in l-DeTok).
    - Channels: of each clip the first k are kept and the others are 0, with k drawn from `prefixes`. Channels are ordered
      by what they are worth, and latents can be cut (nested dropout, arXiv 1402.0915).

    Shapes: (b, c, t', h', w') -> the same

    Args:
        channels: c.
        noise: largest deviation of the noise, in standard deviations of the channel.
        mask: share of positions, in [0, 1).
        prefixes: numbers of channels, rising, in [1, c]; None keeps all.

    Raises:
        UserError: the prefixes are not such numbers.
    """

    def __init__(
        self, channels: int, noise: float = 0.0, mask: float = 0.0, prefixes: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        check_prefixes(prefixes, channels)
        self.noise, self.mask = noise, mask
        self.prefixes = None if prefixes is None else list(prefixes)
        self.token = nn.Parameter(torch.zeros(channels)) if mask else None

    def forward(self, latents: Tensor) -> Tensor:
        of_clips = (len(latents), 1, 1, 1, 1)
        if self.noise:
            deviation = latents.detach().float().std(dim=(0, 2, 3, 4), correction=0, keepdim=True)
            scale = self.noise * torch.rand(of_clips, device=latents.device)
            latents = latents + scale * deviation * torch.randn_like(latents)
        if self.token is not None:
            masked = torch.rand(latents[:, :1].shape, device=latents.device) < self.mask
            latents = torch.where(masked, self.token.view(1, -1, 1, 1, 1), latents)
        if self.prefixes is not None:
            choices = torch.tensor(self.prefixes).to(latents.device, non_blocking=True)  # nothing waits for the device
            kept = choices[torch.randint(len(choices), of_clips, device=latents.device)]
            latents = latents * (torch.arange(latents.shape[1], device=latents.device).view(1, -1, 1, 1, 1) < kept)
        return latents


def make_corruption(
    channels: int, noise: float, mask: float, prefixes: Sequence[int] | None
) -> LatentCorruption | None:
    """The corruption that is asked for, None where none is."""
    if not noise and not mask and prefixes is None:
        return None
    return LatentCorruption(channels, noise, mask, prefixes)


def check_prefixes(prefixes: Sequence[int] | None, channels: int) -> None:
    """Refuse numbers of kept channels that are none.

    Raises:
        UserError: they do not rise, or one is not in [1, channels].
    """
    if prefixes is None:
        return
    rising = all(one < other for one, other in zip([0, *prefixes], prefixes, strict=False))
    if not prefixes or not rising or prefixes[-1] > channels:
        raise UserError(
            f"channel_dropout={list(prefixes)} is no list of how many channels to keep: give rising numbers from 1 to "
            f"{channels}, the model's latent channels, such as [{channels // 4}, {channels // 2}, {channels}]."
        )
