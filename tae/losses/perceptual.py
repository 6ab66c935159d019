"""LPIPS (Zhang et al., arXiv 1801.03924) over the frames of a clip, in memory that does not grow with their number."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tae.losses.lpips import BACKBONES, Backbone, feature_distance, features, load_network
from tae.losses.term import Context, check_weight
from tae.runtime.annotations import AtLeastOne, Weight
from tae.runtime.errors import UserError


class Perceptual:
    """Mean LPIPS over the b * t frames of a clip.

    A plain class that owns a network but registers it nowhere: its parameters reach no checkpoint and no optimizer.
    The linear layers ship with the `lpips` package; the backbone's weights are in the cache that `python -m tae.weights`
    fills, in torchvision's, or in a file.

    Precision: normalisation, differences and means are float32. The backbone's convolutions are float32 too, but for
    bfloat16 autocast, where they run in bfloat16. Under float16 autocast they stay float32: the gradient
    computed inside `forward` is not scaled yet and would underflow.
    What bfloat16 changes (measured, real clip, random backbone): the value by 0.02 %; the gradient by 10 % of its
    norm, by 42 % where the reconstruction is blurred, since max-pooling then chooses among neighbours that bfloat16
    cannot tell apart. It is moved by a pixel, not turned: averaged over 8x8 pixels it points the same way (0.999).

    Args:
        weight: factor in the objective; at 0 nothing is loaded and `lpips` is not imported.
        net: backbone, `vgg`, `alex` or `squeeze`.
        weights_path: backbone weights in torchvision's layout (`features.0.weight`, ...), .pth or .safetensors;
            None takes them from the cache of `python -m tae.weights`, else from torchvision's, else downloads
            torchvision's.
        frames: of each clip so many are drawn in each step, and measured alone; None: all. The network is most of a small
            autoencoder's step, and neighbouring frames tell it the same.
        frames_per_chunk: frames that are in the network at once; memory grows with it, results do not depend on it.

    Raises:
        UserError: weights that are neither present nor reachable, or a file that does not fit the backbone.
    """

    is_distance = True

    def __init__(
        self, weight: Weight, net: Backbone, weights_path: str | None, frames: AtLeastOne | None = None,
        frames_per_chunk: AtLeastOne = 16,
    ) -> None:  # fmt: skip
        self.weight = check_weight("perceptual", weight)
        if net not in BACKBONES:
            raise UserError(f'net="{net}" is unknown. Choose one of: {", ".join(BACKBONES)}.')
        if frames is not None and frames < 1:
            raise UserError(f"frames={frames} must be 1 or more; null takes all.")
        if frames_per_chunk < 1:
            raise UserError(f"frames_per_chunk={frames_per_chunk} must be 1 or more.")
        self.net = net
        self.frames = frames
        self.frames_per_chunk = frames_per_chunk
        self._network = load_network(net, weights_path) if self.weight > 0 else None

    def __call__(self, context: Context) -> Tensor:
        clip, reconstruction = context.clip, context.output.reconstruction
        if self.frames is not None and self.frames < clip.shape[2]:
            drawn = torch.randperm(clip.shape[2])[: self.frames].to(clip.device)
            clip, reconstruction = clip.index_select(2, drawn), reconstruction.index_select(2, drawn)
        return self.mean(clip, reconstruction)

    def mean(self, clip: Tensor, reconstruction: Tensor) -> Tensor:
        """Mean distance over frames.

        Shapes:
            clip, reconstruction: (b, 3, t, h, w) in [-1, 1]
            returns:              () float32; its gradient goes to the reconstruction, none to the clip
        """
        x, y = _frames(clip), _frames(reconstruction)
        needs_gradient = torch.is_grad_enabled() and y.requires_grad
        return _ChunkedMean.apply(y, x, self._distance(x), self.frames_per_chunk, needs_gradient)

    def per_frame(self, clip: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each frame: (b, 3, t, h, w) twice, in [-1, 1], to (b, t) float32 without gradient."""
        return self.per_frame_of_each(clip, [reconstruction])[0]

    @torch.no_grad()
    def per_frame_of_each(self, clip: Tensor, reconstructions: Sequence[Tensor]) -> list[Tensor]:
        """`per_frame` of several reconstructions of one clip, whose own features are computed once."""
        x, others = _frames(clip), [_frames(reconstruction) for reconstruction in reconstructions]
        network, half = self._network_for(x)
        found: list[list[Tensor]] = [[] for _ in others]
        for start in range(0, len(x), self.frames_per_chunk):
            chunk = slice(start, start + self.frames_per_chunk)
            x_features = features(network, x[chunk], half)
            for distances, y in zip(found, others, strict=True):
                distances.append(feature_distance(network, x_features, features(network, y[chunk], half)))
        return [torch.cat(distances).unflatten(0, (len(clip), -1)) for distances in found]

    def _distance(self, frames: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The function (n, 3, h, w), (n, 3, h, w) -> (n,) on the device of `frames`."""
        network, half = self._network_for(frames)

        def distance(x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                x_features = features(network, x, half)
            return feature_distance(network, x_features, features(network, y, half))

        return distance

    def _network_for(self, frames: Tensor) -> tuple[nn.Module, bool]:
        """The network on the device of `frames`, and whether its convolutions are to run in bfloat16."""
        smallest = BACKBONES[self.net][0]
        if min(frames.shape[-2:]) < smallest:
            raise UserError(
                f"Frames of {frames.shape[-2]}x{frames.shape[-1]} are too small for LPIPS ({self.net}), which needs "
                f"{smallest}x{smallest}. Use larger clips or weight=0."
            )
        device = frames.device.type
        half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16
        return self._network_on(frames.device), half

    def _network_on(self, device: torch.device) -> nn.Module:
        assert self._network is not None, "a perceptual term of weight 0 is never computed"
        # A first call from validation would otherwise leave inference tensors, which training cannot use.
        with torch.inference_mode(False):
            self._network = self._network.to(device)
        return self._network


class _ChunkedMean(torch.autograd.Function):
    """Mean of a per-frame distance whose gradient is computed chunk by chunk in the forward pass.

    Since the result is a mean, each frame's gradient is known as soon as its chunk is: one tensor of the clip's size
    is kept for backward in place of every chunk's activations, and nothing is computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        x: Tensor,
        distance: Callable[[Tensor, Tensor], Tensor],
        frames_per_chunk: int,
        needs_gradient: bool,
    ) -> Tensor:
        gradients, total = [], torch.zeros((), device=y.device)
        for x_chunk, y_chunk in zip(x.split(frames_per_chunk), y.split(frames_per_chunk), strict=True):
            with torch.set_grad_enabled(needs_gradient):
                y_leaf = y_chunk.detach().requires_grad_(needs_gradient)
                chunk_sum = distance(x_chunk, y_leaf).sum() / len(y)
            if needs_gradient:
                gradients.extend(torch.autograd.grad(chunk_sum, y_leaf))
            total += chunk_sum.detach()
        if needs_gradient:
            ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream, None, None, None, None


def _frames(clip: Tensor) -> Tensor:
    """(b, 3, t, h, w) to (b * t, 3, h, w) float32: a view where the clip is stored channels-last."""
    return clip.float().movedim(2, 1).flatten(0, 1)
