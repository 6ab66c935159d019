"""LPIPS (Zhang et al., arXiv 1801.03924) over the frames of a clip, in memory that does not grow with their number."""

import importlib.resources
import pickle
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tae.errors import UserError, first_line
from tae.layers import fused_kernels
from tae.losses.term import Output, check_weight

# Smallest frame that each network's pooling leaves something of, and torchvision's name for its weights.
BACKBONES = {"vgg": (16, "VGG16_Weights"), "alex": (31, "AlexNet_Weights"), "squeeze": (17, "SqueezeNet1_1_Weights")}
DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer; a machine behind a firewall must fail before, not after, a coffee


class Perceptual:
    """Mean LPIPS over the b * t frames of a clip.

    A plain class that owns a network but registers it nowhere: its parameters reach no checkpoint and no optimizer.
    The linear layers ship with the `lpips` package; the backbone's weights are torchvision's download, or a local file.

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
            None takes torchvision's download from the cache or the network.
        frames_per_chunk: frames that are in the network at once; memory grows with it, results do not depend on it.

    Raises:
        UserError: weights that are neither at hand nor within reach, or a file that does not fit the backbone.
    """

    def __init__(self, weight: float, net: str, weights_path: str | None, frames_per_chunk: int = 16) -> None:
        self.weight = check_weight("perceptual", weight)
        if net not in BACKBONES:
            raise UserError(f'loss.perceptual.net="{net}" is unknown. Choose one of: {", ".join(BACKBONES)}.')
        if frames_per_chunk < 1:
            raise UserError(f"loss.perceptual.frames_per_chunk={frames_per_chunk} must be 1 or more.")
        self.net = net
        self.frames_per_chunk = frames_per_chunk
        self._network = _load(net, weights_path) if self.weight > 0 else None

    def __call__(self, clip: Tensor, out: Output) -> Tensor:
        return self.mean(clip, out.reconstruction)

    def mean(self, clip: Tensor, reconstruction: Tensor) -> Tensor:
        """Mean distance over frames.

        Shapes:
            clip, reconstruction: (b, 3, t, h, w) in [-1, 1]
            returns:              () float32; its gradient goes to the reconstruction, none to the clip
        """
        x, y = _frames(clip), _frames(reconstruction)
        needs_gradient = torch.is_grad_enabled() and y.requires_grad
        return _ChunkedMean.apply(y, x, self._distance(x), self.frames_per_chunk, needs_gradient)

    @torch.no_grad()
    def per_frame(self, clip: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each frame: (b, 3, t, h, w) twice, in [-1, 1], to (b, t) float32 without gradient."""
        x, y = _frames(clip), _frames(reconstruction)
        distance = self._distance(x)
        chunks = zip(x.split(self.frames_per_chunk), y.split(self.frames_per_chunk), strict=True)
        return torch.cat([distance(x_chunk, y_chunk) for x_chunk, y_chunk in chunks]).unflatten(0, (len(clip), -1))

    def _distance(self, frames: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """The function (n, 3, h, w), (n, 3, h, w) -> (n,) on the device of `frames`."""
        smallest = BACKBONES[self.net][0]
        if min(frames.shape[-2:]) < smallest:
            raise UserError(
                f"Frames of {frames.shape[-2]}x{frames.shape[-1]} are too small for LPIPS ({self.net}), which needs "
                f"{smallest}x{smallest}. Use larger clips or loss.perceptual.weight=0."
            )
        network = self._network_on(frames.device)
        device = frames.device.type
        half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16

        def distance(x: Tensor, y: Tensor) -> Tensor:
            with torch.no_grad():
                x_features = _features(network, x, half)
            return _feature_distance(network, x_features, _features(network, y, half))

        return distance

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


def _features(network: Any, frames: Tensor, half: bool) -> list[Tensor]:
    """Backbone features (n, c_k, h_k, w_k) of each level."""
    device = frames.device.type
    with torch.autocast(device, enabled=False):
        scaled = network.scaling_layer(frames)
    with torch.autocast(device, dtype=torch.bfloat16 if half else None, enabled=half):
        return list(network.net(scaled))


def _feature_distance(network: Any, x_features: list[Tensor], y_features: list[Tensor]) -> Tensor:
    """Distance (n,) of the features of x and y, whose gradient goes to those of y."""
    with torch.autocast(y_features[0].device.type, enabled=False):
        levels = zip(network.lins, x_features, y_features, strict=True)
        return torch.stack([level_distance(x, y, lin.model[-1].weight.flatten()) for lin, x, y in levels]).sum(0)


def level_distance(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Mean over positions of the weighted squared difference of features that were brought to unit length.

    Shapes:
        x, y:    (n, c, h, w), any floating-point type
        weight:  (c,) float32
        returns: (n,) float32
    """
    kernels = fused_kernels(y)
    if kernels is not None and kernels.is_power_of_two(y.shape[1]):
        return kernels.unit_distance(x, y, weight)
    difference = _unit_length(x.float()) - _unit_length(y.float())
    return torch.einsum("nchw,c->nhw", difference.square(), weight).mean(dim=(1, 2))


def _unit_length(features: Tensor) -> Tensor:
    # lpips.normalize_tensor takes sqrt(sum of squares), whose gradient is NaN where all channels are 0 (a ReLU's output
    # may be); the norm has the same value and a gradient of 0 there.
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def _load(net: str, weights_path: str | None) -> nn.Module:
    """The LPIPS network with pretrained weights, frozen, in evaluation mode, channels-last."""
    path = Path(weights_path) if weights_path is not None else _downloaded(net)
    backbone = _read(path)
    with _quiet_torchvision():
        import lpips

        # On the meta device: lpips would draw 138 million random numbers first, only to overwrite them.
        with torch.device("meta"):
            network = lpips.LPIPS(net=net, pnet_rand=True, pretrained=False, verbose=False)
    linear_file = importlib.resources.files("lpips") / "weights" / "v0.1" / f"{net}.pth"
    with importlib.resources.as_file(linear_file) as linear_path:
        network.load_state_dict(_read(linear_path), strict=False, assign=True)
    network.net.load_state_dict(_fit_backbone(network.net, backbone, path), assign=True)
    network.scaling_layer = lpips.lpips.ScalingLayer()
    return network.float().eval().requires_grad_(False).to(memory_format=torch.channels_last)


def _fit_backbone(backbone: nn.Module, state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Torchvision's `features.<layer>` entries under the names of lpips' slices (`slice<k>.<layer>`)."""
    wanted = {name: "features." + name.split(".", 1)[1] for name in backbone.state_dict()}
    shapes = {name: tuple(tensor.shape) for name, tensor in backbone.state_dict().items()}
    wrong = [
        f"{theirs}: expected {shapes[ours]}, found {tuple(state[theirs].shape) if theirs in state else 'nothing'}"
        for ours, theirs in wanted.items()
        if theirs not in state or tuple(state[theirs].shape) != shapes[ours]
    ]
    if wrong:
        raise UserError(
            f"loss.perceptual.weights_path={path} does not fit the backbone: {len(wrong)} of {len(wanted)} tensors "
            f"differ ({'; '.join(wrong[:3])}). Give torchvision's weights of that network (features.*)."
        )
    return {ours: state[theirs] for ours, theirs in wanted.items()}


def _read(path: Path) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from .pth without running anything that is pickled in it."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            # Copies: one view of the mapped file (a bias) would keep all of it in memory, and change where the file does.
            return {name: tensor.clone() for name, tensor in load_file(path).items()}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"loss.perceptual.weights_path={path} does not exist. {_WAYS}") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, _safetensors_error()) as error:
        raise UserError(
            f"loss.perceptual.weights_path={path} is not a readable weights file: {first_line(error)}. {_WAYS}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"loss.perceptual.weights_path={path} does not hold a plain state dict of tensors. {_WAYS}")
    return state


def _safetensors_error() -> type[Exception]:
    from safetensors import SafetensorError

    return SafetensorError


def torchvision_file(net: str) -> Path:
    """Where torch.hub's cache keeps torchvision's weights of a backbone, whether they are there or not."""
    return Path(torch.hub.get_dir()) / "checkpoints" / _url(net).rsplit("/", 1)[1]


def _url(net: str) -> str:
    import torchvision

    return getattr(torchvision.models, BACKBONES[net][1]).IMAGENET1K_V1.url


def _downloaded(net: str) -> Path:
    """Torchvision's weights in the cache, fetched first where they are missing."""
    path = torchvision_file(net)
    if path.exists():
        return path
    sha256_prefix = path.stem.rsplit("-", 1)[1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _socket_timeout(DOWNLOAD_TIMEOUT):
            torch.hub.download_url_to_file(_url(net), str(path), hash_prefix=sha256_prefix)
    except (OSError, RuntimeError) as error:  # URLError is an OSError, a wrong hash a RuntimeError
        raise UserError(
            f"The LPIPS backbone's weights {path.name} are not in {path.parent}, and downloading them failed: "
            f"{error}. {_WAYS}"
        ) from error
    return path


_WAYS = (
    "Connect to the network once (torchvision's download is then cached), or give torchvision's file by "
    "loss.perceptual.weights_path=PATH, or train without the term: loss.perceptual.weight=0."
)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torch.hub opens its URL without a time limit of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _quiet_torchvision() -> Iterator[None]:
    """lpips 0.1.4 builds its backbone with arguments that torchvision warns of; nobody can act on that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module=r"torchvision\.models\._utils")
        yield
