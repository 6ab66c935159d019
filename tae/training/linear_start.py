"""Starting a network that folds as the best linear codec of its blocks, in place of random weights.

Principal components of 8x8x8 blocks need no training, and a network from random weights takes long to come near them. Around
its residual blocks the network is one linear map: front end, resampling, the way around the last norm. Here that map becomes
the components, level by level, and the residual blocks add nothing at first, as in Fixup (arXiv 1901.09321). Training then
starts from the linear codec's quality.
"""

from itertools import chain, islice, repeat
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from data.datamodule import ClipDataModule
from tae.metrics.linear_codec import BLOCK, BLOCK_VALUES, BlockSums
from tae.model.autoencoder import TemporalAutoencoder
from tae.model.folding import CELL, AveragingDownsample, DuplicatingUpsample, channels_to_space, space_to_channels
from tae.model.frame_conversion import frames_to_clip
from tae.model.interface import VideoAutoencoder
from tae.model.layers import Attention, ResidualBlock
from tae.model.pretrained import WEIGHTS_FILE
from tae.model.temporal_conv import TemporalConv
from tae.model.unweighted import unweighted
from tae.runtime.errors import UserError
from tae.runtime.files import apply_umask, check_empty, check_writable
from tae.runtime.paths import to_path
from tae.runtime.progress import progress_bar, stage
from tae.runtime.schema import check_config
from tae.runtime.settings import PCA

LOG_VARIANCE = -6.0  # of latents whose own variance is 1: noise of 0.05 standard deviations
NOTHING = 1e-7  # of the largest variance: components that hold less are rounding


class Components(NamedTuple):
    """Principal components of features: k of n numbers, each of variance 1 on what they were fitted on.

    analysis:  (k, n), features to components
    synthesis: (n, k), and back
    deviation: (k,), what a component is worth in pixels: the standard deviation it had before it was divided by it
    """

    analysis: Tensor
    synthesis: Tensor
    deviation: Tensor


class Features:
    """What a level of the network sees of a block, as a linear function of its values, and what follows for its statistics.

    Args:
        values: (1536, n, d, d, d), the features of each block that is 1 at one value and 0 elsewhere.
        mean: (1, n, d, d, d), those of the mean block.
        deviation: (n,), what a unit of each feature is worth in pixels.
    """

    def __init__(self, values: Tensor, mean: Tensor, deviation: Tensor) -> None:
        self.values = values
        self.mean = mean
        self.deviation = deviation

    def components(self, covariance: Tensor, count: int) -> Components:
        """The first `count` principal components, by their energy in pixels, of the features at all positions alike."""
        at_positions = self.values.flatten(2).permute(2, 1, 0)  # (positions, n, 1536)
        own = (at_positions @ covariance @ at_positions.mT).mean(0)
        variances, vectors = torch.linalg.eigh(own * self.deviation * self.deviation[:, None])
        variances, vectors = variances.flip(0)[:count], vectors.flip(1)[:, :count]
        missing = count - len(variances)  # where a level has more channels than there are numbers: they stay 0
        variances, vectors = F.pad(variances, (0, missing)), F.pad(vectors, (0, missing))
        real = variances > NOTHING * variances[0]
        deviation = torch.where(real, variances, 1).sqrt()
        analysis = (vectors / deviation * real).T * self.deviation
        return Components(analysis, vectors * deviation * real / self.deviation[:, None], deviation)

    def centre(self) -> Tensor:
        """(n,), the mean feature."""
        return self.mean.mean((0, 2, 3, 4))

    def map(self, components: Components) -> "Features":
        """The components in place of the features, without their mean."""
        values = apply_map(components.analysis, self.values)
        mean = apply_map(components.analysis, self.mean - self.centre()[:, None, None, None])
        return Features(values, mean, components.deviation)

    def fold(self) -> "Features":
        """2x2x2 cells among the features, as the next level sees them."""
        return Features(space_to_channels(self.values), space_to_channels(self.mean), self.deviation.repeat(CELL))


def apply_map(matrix: Tensor, x: Tensor) -> Tensor:
    """(k, n) and (b, n, t, h, w) to (b, k, t, h, w)."""
    return torch.einsum("kn,bnthw->bkthw", matrix, x)


@torch.no_grad()
def start_as_linear_codec(model: TemporalAutoencoder, sums: BlockSums) -> None:
    """Set a model's weights so that it is the linear codec of as many components as it has latent channels.

    The codec's components are found level by level, each from the strongest of the one below, which loses little. Latents
    have mean 0 and variance 1 on the blocks of `sums`.

    Raises:
        UserError: a network that convolves at full resolution, or whose latents are not of 8x8x8 blocks.
    """
    check_network(model)
    silence(model)
    encoder, decoder = model.encoder, model.decoder
    assert decoder.shortcut_out is not None
    features = read_blocks(model, sums)
    components = features.components(sums.covariance, encoder.conv_in.spatial.out_channels)
    write(encoder.conv_in.spatial, components.analysis, -components.analysis @ features.centre())
    write(decoder.shortcut_out, components.synthesis, features.centre())
    features = features.map(components)
    for down, up in zip(encoder.levels[:-1], reversed(decoder.levels[:-1]), strict=True):
        resamples = cast(tuple[AveragingDownsample, DuplicatingUpsample], (down.resample, up.resample))
        features = resample_as_components(*resamples, features, sums.covariance)
    pass_latents(model)


def check_network(model: VideoAutoencoder) -> None:
    if not isinstance(model, TemporalAutoencoder) or model.encoder.shortcut_out is None:
        raise UserError(
            "a linear start is for networks that fold (model=haar). One that convolves at full resolution is not linear "
            "around its blocks, and starts from an image autoencoder: model.image_vae."
        )
    if model.time_factor != BLOCK:
        raise UserError(
            f"The network compresses {model.time_factor} times along each axis, and the linear codec is of blocks of "
            f"{BLOCK}: change model.folds or the number of model.channel_multipliers."
        )
    widest = model.decoder.conv_in.spatial.out_channels
    if model.latent_channels > widest:
        raise UserError(
            f"{model.latent_channels} components do not pass a last level of {widest} channels: raise "
            "model.base_channels, or lower model.latent_channels."
        )


def silence(model: TemporalAutoencoder) -> None:
    """Let residual blocks, attention and the last convolutions add nothing; temporal convolutions start as the identity."""
    for module in model.modules():
        if isinstance(module, TemporalConv):
            module.reset_parameters()
        elif isinstance(module, ResidualBlock):
            clear(module.conv2.spatial)
        elif isinstance(module, Attention):
            clear(module.output)
    clear(model.encoder.conv_out.spatial)
    clear(model.decoder.conv_out.spatial)


def clear(layer: nn.Conv2d | nn.Linear) -> None:
    layer.weight.zero_()
    if layer.bias is not None:
        layer.bias.zero_()


def read_blocks(model: TemporalAutoencoder, sums: BlockSums) -> Features:
    """The first features: pixels as the front end folds them."""
    shape = (-1, 3, BLOCK, BLOCK, BLOCK)
    values = model.encoder.folding(torch.eye(BLOCK_VALUES, dtype=torch.float64).reshape(shape))
    mean = model.encoder.folding(sums.mean.reshape(shape))
    return Features(values, mean, torch.ones(values.shape[1], dtype=torch.float64))


def resample_as_components(
    down: AveragingDownsample, up: DuplicatingUpsample, features: Features, covariance: Tensor
) -> Features:
    """Set one level's change of resolution in encoder and decoder, and give the features after it."""
    narrow, wide = len(features.deviation), down.conv.spatial.out_channels
    features = features.fold()
    analysis, synthesis, _ = components = features.components(covariance, wide)
    for layer in (down.conv.spatial, up.spatial):
        clear(layer)
    # What the shortcuts alone give, of each number of a cell and of each component.
    averaged = down(channels_to_space(torch.eye(CELL * narrow).reshape(-1, CELL * narrow, 1, 1, 1))).flatten(1).T
    repeated = space_to_channels(up(torch.eye(wide).reshape(-1, wide, 1, 1, 1))).flatten(1).T
    write(down.conv.spatial, analysis - averaged, -analysis @ features.centre())
    write(up.spatial, synthesis - repeated, features.centre())
    return features.map(components)


def pass_latents(model: TemporalAutoencoder) -> None:
    """Latents are the first of the last components, and come back as these."""
    channels = model.latent_channels
    last = model.encoder.shortcut_out
    assert last is not None
    eye = torch.eye(channels)
    write(last, eye, torch.cat([torch.zeros(channels), torch.full((channels,), LOG_VARIANCE)]))
    write(model.decoder.conv_in.spatial, eye, torch.zeros(channels))


def write(layer: nn.Conv2d, matrix: Tensor, bias: Tensor) -> None:
    """Make a convolution this linear map of each position; what the matrix does not reach is 0."""
    clear(layer)
    rows, columns = matrix.shape
    height, width = layer.kernel_size
    layer.weight[:rows, :columns, height // 2, width // 2] = matrix.to(layer.weight)
    assert layer.bias is not None
    layer.bias[: len(bias)] = bias.to(layer.weight)


def write_linear_start(cfg: DictConfig) -> Path:
    """Fit the components on windows of the training clips and write the model to the folder `cfg.output`.

    Raises:
        UserError: a setting is wrong, the network has no linear start, or there are no clips.
    """
    check_config(cfg, PCA)
    output = to_path(cfg.output)
    check_empty(output)
    check_writable(output, "output")
    torch.manual_seed(cfg.seed)
    model = instantiate(unweighted(cfg.model))
    check_network(model)
    sums = sum_blocks(instantiate(cfg.data), cfg.clips)
    with stage("principal components, level by level"):
        start_as_linear_codec(model, sums)
    model.save_pretrained(output)
    apply_umask(output / WEIGHTS_FILE)
    print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    return output


def sum_blocks(data: ClipDataModule, clips: int) -> BlockSums:
    """The statistics of so many random windows of the training clips."""
    data.prepare_data()
    data.setup("fit")
    batches = chain.from_iterable(data.train_dataloader() for _ in repeat(None))
    frames = chain.from_iterable(batch["frames"] for batch in batches)
    sums = BlockSums()
    with progress_bar("clips") as progress:
        for clip in progress.track(islice(frames, clips), total=clips, description="reading"):
            sums.add(frames_to_clip(clip[None]))
    return sums
