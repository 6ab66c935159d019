"""The Temporal Autoencoder: encoder, decoder and the model that users hold.

Source: Movie Gen (arXiv 2410.13720), section 3.1.1, on top of the Stable Diffusion 3.5 image autoencoder.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from tae.model.bundled import BUNDLED
from tae.model.checks import (
    check_architecture,
    check_clip,
    check_front,
    check_latents,
    check_temporal,
    kept_extents,
)
from tae.model.corruption import LatentCorruption
from tae.model.hub_mixin import StrictHubMixin
from tae.model.interface import VideoAutoencoder
from tae.model.layers import ResidualBlock
from tae.model.network import Decoder, Encoder
from tae.model.posterior import DiagonalGaussian
from tae.model.temporal_conv import TemporalConv
from tae.runtime.errors import UserError

if TYPE_CHECKING:
    from tae.model.inflate import InflationReport


MAX_COMPILED = 1024  # shapes of residual blocks
CHECKPOINTED = 2  # levels, of four: the next one's blocks hold a sixteenth of the first one's bytes


class TemporalAutoencoder(
    StrictHubMixin,
    VideoAutoencoder,
    library_name="temporal-autoencoder",
    tags=["video", "autoencoder", "vae"],
):
    """Compress video 8x in time, height and width into a few latent channels, and back.

    The defaults are the paper's: the Stable Diffusion 3.5 image autoencoder with temporal parts, 114.06 M parameters.
    A fresh temporal part does nothing, so with an image autoencoder's weights (`from_image_vae`) latent frame i is the
    image latent of frame 8 i, and decoding repeats every decoded latent frame 8 times, until training changes it.

    Args:
        base_channels: channels of the first level.
        channel_multipliers: one for each level; every level but the last halves time, height and width.
        latent_channels: channels of the latent.
        encoder_blocks, decoder_blocks: residual blocks in each level.
        norm_groups: groups of every GroupNorm; divides the channels of every level.
        group_norm: "frame" takes normalisation statistics of each frame alone, "clip" of the whole clip.
        norm: "group", or "rms" of each position over its channels, for which `norm_groups` and `group_norm` mean nothing.
        frontend: "conv" convolves at full resolution as image autoencoders do; "haar" folds 2x2x2 pixels into the bands of a
            Haar transform first, "patch" into channels as they are, and resampling has shortcuts (`tae.model.folding`). No
            image autoencoder's weights fit those.
        folds: how often "haar" and "patch" fold, each in place of one level.
        temporal_init: "centric" starts temporal convolutions as the identity, "random" as PyTorch starts any convolution: an
            image autoencoder's behaviour is then lost at the start.
        temporal_padding: before the first frame and after the last, "replicate" repeats it, "zeros" has zeros.

    Raises:
        UserError: the arguments do not fit together.
    """

    cuts_anywhere = True

    def __init__(
        self,
        base_channels: int = 128,
        channel_multipliers: Sequence[int] = (1, 2, 4, 4),
        latent_channels: int = 16,
        encoder_blocks: int = 2,
        decoder_blocks: int = 3,
        norm_groups: int = 32,
        group_norm: str = "frame",
        norm: str = "group",
        frontend: str = "conv",
        folds: int = 0,
        temporal_init: str = "centric",
        temporal_padding: str = "replicate",
    ) -> None:
        super().__init__()
        widths = [base_channels * multiplier for multiplier in channel_multipliers]
        check_architecture(widths, latent_channels, encoder_blocks, decoder_blocks, norm_groups, group_norm, norm=norm)
        check_front(widths, norm, frontend, folds)
        check_temporal(temporal_init, temporal_padding)
        # Goes to config.json and into checkpoints, whole and as plain values whatever types were given.
        self.architecture: dict[str, Any] = {
            "base_channels": base_channels,
            "channel_multipliers": list(channel_multipliers),
            "latent_channels": latent_channels,
            "encoder_blocks": encoder_blocks,
            "decoder_blocks": decoder_blocks,
            "norm_groups": norm_groups,
            "group_norm": group_norm,
        }
        if (norm, frontend) != ("group", "conv"):  # named where they are used, as older checkpoints do not know them
            self.architecture |= {"norm": norm, "frontend": frontend, "folds": folds}
        if (temporal_init, temporal_padding) != ("centric", "replicate"):
            self.architecture |= {"temporal_init": temporal_init, "temporal_padding": temporal_padding}
        self._hub_mixin_config = self.architecture
        self.name = type(self).__name__
        self.latent_channels = latent_channels
        # Frames, and pixels along an axis, for each of the latent.
        self.time_factor = self.space_factor = 2 ** (len(widths) - 1 + folds)
        self.inflation: InflationReport | None = None  # of `from_image_vae`
        per = "position" if norm == "rms" else group_norm
        self.encoder = Encoder(widths, latent_channels, encoder_blocks, norm_groups, per, frontend, folds)
        self.decoder = Decoder(widths, latent_channels, decoder_blocks, norm_groups, per, frontend, folds)
        for module in self.modules():
            if isinstance(module, TemporalConv):
                module.zero_padded = temporal_padding == "zeros"
                if temporal_init == "random":
                    module.randomize()
        self.corruption: LatentCorruption | None = None
        self.to(memory_format=torch.channels_last)  # of the weights: what the kernels would otherwise convert each time

    @classmethod
    def from_image_vae(cls, path_or_repo_id: str | Path, **architecture) -> Self:
        """Build a model and fill its spatial part from an image autoencoder.

        Args:
            path_or_repo_id: a diffusers folder (its `vae` subfolder is found), a `.safetensors` file in diffusers' or in
                the original Stable Diffusion layout (with or without a prefix), or a repository id on the hub.
            **architecture: arguments of this class; the defaults fit Stable Diffusion 3 and 3.5.

        The model carries an `inflation` report: which parameters were copied, which are new, which were ignored.

        Raises:
            UserError: the weights cannot be had or are of another shape or layout.
        """
        from tae.model.inflate import inflate  # here, since it needs this class's names only when asked for

        model = cls(**architecture)
        if "frontend" in model.architecture:  # or it is an image autoencoder's
            raise UserError(
                f"image_vae={path_or_repo_id}: no image autoencoder fits frontend={model.architecture['frontend']} with "
                f"norm={model.architecture['norm']}. Give image_vae=null to start from random weights."
            )
        model.inflation = inflate(model, path_or_repo_id)
        model.starting_weights = {"image_vae": model.inflation.source, "sha256": model.inflation.sha256}
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """What `save_pretrained` wrote: a folder or a hub repository id; "tiny": the bundled weights.

        Args:
            pretrained_model_name_or_path: as huggingface_hub calls it.
            **options: of huggingface_hub (`revision`, `token`, `local_files_only`, ...).

        Raises:
            huggingface_hub.errors.HfHubHTTPError, OSError: nothing is found there; RuntimeError: the weights do not fit.
        """
        source = BUNDLED.get(str(pretrained_model_name_or_path), pretrained_model_name_or_path)
        return super().from_pretrained(source, **options)

    def encode(self, clip: Tensor) -> DiagonalGaussian:
        """Give the posterior over latents.

        Shapes:
            clip:    (b, 3, t, h, w) in [-1, 1], with t >= 1 and h, w >= 8 (of any remainder)
            returns: over (b, latent_channels, ceil(t / 8), ceil(h / 8), ceil(w / 8)), in float32

        Height and width that are no multiple of 8 are padded by repeating the last row and column. Time needs no padding:
        three halvings that round up give ceil(t / 8).

        Raises:
            ValueError: not of that shape; TypeError: not floating-point values.
        """
        check_clip(clip, smallest=self.space_factor)
        clip = self.padded(clip).contiguous(memory_format=torch.channels_last_3d)
        mean, logvar = self.encoder(clip).float().chunk(2, dim=1)
        return DiagonalGaussian(mean, logvar)

    def padded(self, clip: Tensor) -> Tensor:
        """The clip with its last row and column repeated up to whole latents: (b, 3, t, h, w) -> (b, 3, t, 8 h', 8 w')."""
        height, width = clip.shape[-2:]
        padding = (0, -width % self.space_factor, 0, -height % self.space_factor, 0, 0)
        return F.pad(clip, padding, mode="replicate") if any(padding) else clip

    def decode(self, latents: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        """Give the clip of these latents.

        Shapes:
            latents: (b, latent_channels, t', h', w')
            returns: (b, 3, num_frames, *size), by default (b, 3, 8 t', 8 h', 8 w'), in the weights' type; not clamped

        Args:
            num_frames: how many frames to keep, from the start.
            size: height and width to keep, from the upper left.

        Raises:
            ValueError: not latents of this model, or fewer frames, rows or columns than are to be kept.
        """
        check_latents(latents, self.latent_channels)
        t, h, w = latents.shape[2:]
        held = (t * self.time_factor, h * self.space_factor, w * self.space_factor)
        frames, height, width = kept_extents(held, num_frames, size)
        weight = self.decoder.conv_in.spatial.weight  # whose type latents need not have: posteriors are float32
        latents = latents.to(weight.dtype).contiguous(memory_format=torch.channels_last_3d)
        return self.decoder(latents)[:, :, :frames, :height, :width]

    def latent_shape(self, num_frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(channels, frames, height, width) of the latent of a clip of this size."""
        rows, columns = (math.ceil(extent / self.space_factor) for extent in (height, width))
        return self.latent_channels, math.ceil(num_frames / self.time_factor), rows, columns

    def decoder_features(self, latents: Tensor) -> list[Tensor]:
        """What the decoder makes of latents (b, c, t', h', w') at their resolution and at the next: (b, c', t, h, w)."""
        x = self.decoder.middle(self.decoder.conv_in(latents.contiguous(memory_format=torch.channels_last_3d)))
        return [x, self.decoder.levels[0](x)]

    @property
    def last_layer(self) -> Tensor:
        """The last weight of the decoder that is trained, by which gradients of several losses are compared."""
        last = self.decoder.conv_out
        return last.spatial.weight if last.spatial.weight.requires_grad else last.temporal.weight

    def about_input(self, num_frames: int, height: int, width: int) -> str:
        return "takes any number of frames of any size"

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether the residual blocks of the largest resolutions are computed again in the backward pass.

        Their outputs are nearly all of a step's memory; the other blocks would only cost time.
        """
        return bool(self.encoder.levels[0].checkpointing)

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        for level in (*self.encoder.levels[:CHECKPOINTED], *self.decoder.levels[-CHECKPOINTED:]):
            level.checkpointing = on

    def compile_blocks(self) -> None:
        """Compile the residual blocks, each shape once; the names in the state dict stay as they are."""
        # The blocks share one forward, so their shapes count together, those of every source and bucket of the data; past
        # a limit they would run uncompiled.
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, MAX_COMPILED)
        dynamo.accumulated_recompile_limit = max(dynamo.accumulated_recompile_limit, MAX_COMPILED)
        for module in self.modules():
            if isinstance(module, ResidualBlock):
                module.compile(dynamic=False)
