"""A tiny decoder in training beside the frozen autoencoder whose latents it learns to decode."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tae.model.interface import AutoencoderOutput, VideoAutoencoder
from tae.model.memory_format import per_frame
from tae.model.pairing import PairedAutoencoder
from tae.model.posterior import DiagonalGaussian
from tae.model.tiny_decoder import TinyDecoder

TEACHER_PREFIX, DECODER_PREFIX = "teacher.", "decoder."
MATCHED = 2  # resolutions, from that of the latents on


@dataclass(frozen=True)
class DistilledOutput(AutoencoderOutput):
    """With what the two decoders are compared by.

    Attributes:
        decoded: the latents, transformed where they were.
        features: of the tiny decoder at each resolution (`TinyDecoder.with_features`).
    """

    decoded: Tensor
    features: Sequence[Tensor]


class Distillation(PairedAutoencoder):
    """A teacher's encoder and a tiny decoder. The teacher never changes, and no checkpoint has it.

    Args:
        teacher: the autoencoder; it is frozen here.
        decoder: the tiny decoder, which is trained.
        matches_features: also learn to predict the teacher's features, by a projection of the tiny decoder's at each of two
            resolutions. The projections are in checkpoints and not in the decoder.
    """

    decoder: TinyDecoder

    def __init__(self, teacher: VideoAutoencoder, decoder: TinyDecoder, matches_features: bool) -> None:
        super().__init__(teacher, decoder)
        self.teacher.requires_grad_(False).eval()
        self.projections = nn.ModuleList()
        if matches_features:
            theirs = teacher_channels(teacher)
            pairs = zip(decoder.widths, theirs, strict=False)  # of more resolutions than the teacher shows
            self.projections.extend(nn.Conv2d(own, their, 1) for own, their in pairs)
        self.register_state_dict_post_hook(forget_teacher)
        self.register_load_state_dict_post_hook(expect_no_teacher)

    def train(self, mode: bool = True) -> Self:
        """Training mode for the tiny decoder alone."""
        super().train(mode)
        self.teacher.eval()
        return self

    @torch.no_grad()
    def encode(self, clip: Tensor) -> DiagonalGaussian:
        return super().encode(clip)

    def forward(
        self, clip: Tensor, sample_posterior: bool = True, transform: Callable[[Tensor], Tensor] | None = None
    ) -> DistilledOutput:
        """As `PairedAutoencoder`, with the features of the same pass."""
        posterior = self.encode(clip)
        latents = posterior.sample() if sample_posterior else posterior.mode()
        decoded = latents if transform is None else transform(latents)
        reconstruction, features = self.decoder.with_features(decoded)
        height, width = clip.shape[3:] if transform is None else reconstruction.shape[3:]
        kept = reconstruction[:, :, : clip.shape[2], :height, :width]
        return DistilledOutput(kept, posterior, latents, decoded, features)

    def feature_pairs(self, output: DistilledOutput) -> list[tuple[Tensor, Tensor]]:
        """The tiny decoder's features as projected, and the teacher's of the same latents: (b, c, t, h, w) both."""
        with torch.no_grad():
            theirs = self.teacher.decoder_features(output.decoded)
        projected = [per_frame(layer, x) for layer, x in zip(self.projections, output.features, strict=False)]
        return [(aligned(x, their), their) for x, their in zip(projected, theirs, strict=False)]


def aligned(x: Tensor, reference: Tensor) -> Tensor:
    """(b, c, t, h, w) as large as the reference: without the first frames, which a causal teacher lacks, and resized."""
    x = x[:, :, -reference.shape[2] :]
    if x.shape[2:] == reference.shape[2:]:
        return x
    return F.interpolate(x, reference.shape[2:], mode="trilinear", align_corners=False)


@torch.no_grad()
def teacher_channels(teacher: VideoAutoencoder) -> list[int]:
    """Channels of the features of the teacher's decoder, seen by decoding next to nothing."""
    weight = next(teacher.parameters())
    latents = torch.zeros(1, teacher.latent_channels, 1, 2, 2, device=weight.device, dtype=weight.dtype)
    return [x.shape[1] for x in teacher.decoder_features(latents)[:MATCHED]]


def forget_teacher(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: dict[str, Any]) -> None:
    """Leave the teacher out of a state dict: it does not change, and is where it came from."""
    for name in [name for name in state if name.startswith(f"{prefix}{TEACHER_PREFIX}")]:
        del state[name]


def expect_no_teacher(module: nn.Module, incompatible: Any) -> None:
    """Let a state dict without the teacher be loaded strictly."""
    missing = incompatible.missing_keys
    missing[:] = [name for name in missing if TEACHER_PREFIX not in name]
