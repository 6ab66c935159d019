"""The closed list of classes of diffusers, and in what they differ: sizes, posteriors, pixels, calls.

Sizes are read from an instance and its config, as the class computes them itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tae.model.diffusers.grid import Axis, Grid

Moments = tuple[Tensor, Tensor | None]  # mean and logarithm of the variance; None: the encoder gives none
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of RGB in [0, 1]


def gaussian(vae: Any, clip: Tensor) -> Moments:
    posterior = vae.encode(clip).latent_dist
    return posterior.mean, posterior.logvar


def mode_alone(vae: Any, clip: Tensor) -> Moments:
    """Of posteriors that are one point (Cosmos), or whose variance the class replaces by 1 (KVAE)."""
    return vae.encode(clip).latent_dist.mode(), None


def latent_alone(vae: Any, clip: Tensor) -> Moments:
    return vae.encode(clip).latent, None


def sample(vae: Any, latents: Tensor) -> Tensor:
    return vae.decode(latents).sample


def nothing(vae: Any) -> None:
    """No class-specific preparation."""


@dataclass(frozen=True)
class Family:
    """How to use the autoencoders of one class.

    Args:
        grid: the sizes that an instance takes.
        encode: (b, 3, t, h, w) in [-1, 1], or (b, 3, h, w) of an image autoencoder, to moments.
        decode: latents to a clip or an image.
        prepare: settings of a new instance.
        images_only: it sees single frames.
    """

    grid: Callable[[Any], Grid]
    encode: Callable[[Any, Tensor], Moments] = gaussian
    decode: Callable[[Any, Tensor], Tensor] = sample
    prepare: Callable[[Any], None] = nothing
    images_only: bool = False

    @property
    def is_gaussian(self) -> bool:
        return self.encode not in (mode_alone, latent_alone)


def causal(time: int, space: int, least: int = 1) -> Grid:
    """k time + 1 frames; rows and columns in multiples of `space`, `least` latent ones or more."""
    square = Axis(least * space, space, latents=least)
    return Grid(Axis(1, time), square, square, time, space)


def images(vae: Any, space: int) -> Grid:
    return Grid(Axis(1, 1), Axis(space, space), Axis(space, space), 1, space)


def halvings(vae: Any) -> int:
    return 2 ** (len(vae.config.block_out_channels) - 1)


def by_config(vae: Any) -> Grid:
    return causal(int(vae.config.temporal_compression_ratio), vae.config.spatial_compression_ratio)


def by_attributes(vae: Any) -> Grid:
    return causal(vae.temporal_compression_ratio, vae.spatial_compression_ratio)


def wan(vae: Any) -> Grid:
    """By its levels: the factors that the config states beside them are not used by the network."""
    space = 2 ** (len(vae.config.dim_mult) - 1) * (vae.config.get("patch_size") or 1)
    return causal(2 ** sum(vae.config.temperal_downsample), space)


def cogvideox(vae: Any) -> Grid:
    return causal(int(vae.config.temporal_compression_ratio), halvings(vae))


def kvae(vae: Any) -> Grid:
    return causal(vae.config.temporal_compress_times, 2 ** (len(vae.config.ch_mult) - 1))


def ltx(vae: Any) -> Grid:
    """Patches, then a factor of 2 in time and space for each level that scales; newer configs state the products."""
    levels = 2 ** sum(vae.config.spatio_temporal_scaling)
    return causal(
        vae.config.temporal_compression_ratio or vae.config.patch_size_t * levels,
        vae.config.spatial_compression_ratio or vae.config.patch_size * levels,
    )


def ltx_decode(vae: Any, latents: Tensor) -> Tensor:
    """Newer decoders also denoise; at time 0 they only decode, which is their pipelines' default."""
    if not vae.config.timestep_conditioning:
        return vae.decode(latents).sample
    return vae.decode(latents, temb=latents.new_zeros(len(latents))).sample


def ltx2(vae: Any) -> Grid:
    """Patches, then levels of three kinds. By reflection only two latent rows or more can be padded."""
    config = vae.config
    kinds = [kind for kind, on in zip(config.downsample_type, config.spatio_temporal_scaling, strict=False) if on]
    time = config.patch_size_t * 2 ** sum("temporal" in kind for kind in kinds)
    space = config.patch_size * 2 ** sum(kind.startswith("spati") for kind in kinds)
    reflects = "reflect" in (config.encoder_spatial_padding_mode, config.decoder_spatial_padding_mode)
    return causal(time, space, least=2 if reflects else 1)


def minimax_h3(vae: Any) -> Grid:
    """Chunks of `clip_length` frames, then what the last one keeps without its last `token_drop` latents.

    One chunk alone is not decoded, nor is the single latent that one frame gives.
    """
    config, chunk = vae.config, vae.tokens_chunk_size
    first, latents = config.clip_length, chunk
    if config.token_drop:
        kept = chunk - config.token_drop
        first, latents = first + kept * vae.temporal_compression_ratio - vae.frame_pre_padding, latents + kept
    space = vae.spatial_compression_ratio
    least = 2 if config.spatial_padding_mode == "reflect" else 1
    square = Axis(least * space, space, latents=least)
    return Grid(Axis(first, config.clip_length, latents, chunk), square, square, vae.temporal_compression_ratio, space)


def minimax_h3_encode(vae: Any, clip: Tensor) -> Moments:
    mean, std = imagenet(clip)
    return gaussian(vae, ((clip + 1) / 2 - mean) / std)


def minimax_h3_decode(vae: Any, latents: Tensor) -> Tensor:
    clip = vae.decode(latents).sample
    mean, std = imagenet(clip)
    return (clip * std + mean) * 2 - 1


def imagenet(clip: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of pixels, (3, 1, 1, 1)."""
    return clip.new_tensor(IMAGENET_MEAN).view(3, 1, 1, 1), clip.new_tensor(IMAGENET_STD).view(3, 1, 1, 1)


def vidtok(vae: Any) -> Grid:
    """Without causality it decodes whole batches of frames alone."""
    time, space = vae.temporal_compression_ratio, 2 ** len(vae.encoder.spatial_ds)
    if vae.is_causal:
        return causal(time, space)
    whole, latents = vae.num_sample_frames_batch_size, vae.num_latent_frames_batch_size
    return Grid(Axis(whole, whole, latents, latents), Axis(space, space), Axis(space, space), time, space)


def vidtok_encode(vae: Any, clip: Tensor) -> Moments:
    """As its `forward`: the first frame is repeated in front, up to a whole latent."""
    if vae.is_causal:
        clip = F.pad(clip, (0, 0, 0, 0, vae.temporal_compression_ratio - 1, 0), mode="replicate")
    moments = gaussian(vae, clip)
    vae._empty_causal_cached(vae.encoder)  # else activations, with their graph, are kept until the next clip
    return moments


def vidtok_decode(vae: Any, latents: Tensor) -> Tensor:
    clip = vae.decode(latents)
    vae._empty_causal_cached(vae.decoder)
    return clip


def allegro(vae: Any) -> Grid:
    """Whole tiles, which overlap."""
    time, space = int(vae.config.temporal_compression_ratio), vae.spatial_compression_ratio
    frames, height, width = (
        Axis(tile, stride, tile // factor, stride // factor)
        for tile, stride, factor in zip(vae.kernel, vae.stride, (time, space, space), strict=True)
    )
    return Grid(frames, height, width, time, space)


def allegro_prepare(vae: Any) -> None:
    """It works in tiles only, and on one clip of a batch at a time."""
    vae.enable_tiling()
    vae.enable_slicing()


def allegro_decode(vae: Any, latents: Tensor) -> Tensor:
    """Its frames stand before its channels."""
    return vae.decode(latents).sample.movedim(1, 2)


FAMILIES = {
    "AutoencoderDC": Family(lambda vae: images(vae, vae.spatial_compression_ratio), latent_alone, images_only=True),
    "AutoencoderKL": Family(lambda vae: images(vae, halvings(vae)), images_only=True),
    "AutoencoderKLAllegro": Family(allegro, decode=allegro_decode, prepare=allegro_prepare),
    "AutoencoderKLCogVideoX": Family(cogvideox),
    "AutoencoderKLCosmos": Family(by_config, mode_alone),
    "AutoencoderKLHunyuanVideo": Family(by_config),
    "AutoencoderKLHunyuanVideo15": Family(by_config),
    "AutoencoderKLKVAEVideo": Family(kvae, mode_alone),
    "AutoencoderKLLTX2Video": Family(ltx2, decode=ltx_decode),
    "AutoencoderKLLTXVideo": Family(ltx, decode=ltx_decode),
    "AutoencoderKLMagvit": Family(by_attributes),
    "AutoencoderKLMiniMaxH3": Family(minimax_h3, minimax_h3_encode, minimax_h3_decode),
    "AutoencoderKLMochi": Family(by_attributes),
    "AutoencoderKLQwenImage": Family(wan),
    "AutoencoderKLWan": Family(wan),
    "AutoencoderVidTok": Family(vidtok, vidtok_encode, vidtok_decode),
}
