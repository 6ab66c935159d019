"""The LPIPS network (Zhang et al., arXiv 1801.03924): its weights, features and distance."""

import importlib.resources
import pickle
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tae.kernels.available import fused_kernels
from tae.losses.backbones import BY_NET
from tae.runtime.errors import UserError, first_line
from tae.runtime.paths import to_path

Backbone = Literal["vgg", "alex", "squeeze"]
# Smallest frame that each network's pooling leaves something of, and torchvision's name for its weights.
BACKBONES = {"vgg": (16, "VGG16_Weights"), "alex": (31, "AlexNet_Weights"), "squeeze": (17, "SqueezeNet1_1_Weights")}
DOWNLOAD_TIMEOUT = 20.0  # seconds without a response before giving up, so that a firewalled machine fails fast


def features(network: Any, frames: Tensor, half: bool) -> list[Tensor]:
    """Backbone features (n, c_k, h_k, w_k) of each level."""
    device = frames.device.type
    with torch.autocast(device, enabled=False):
        scaled = network.scaling_layer(frames)
    with torch.autocast(device, dtype=torch.bfloat16 if half else None, enabled=half):
        return list(network.net(scaled))


def feature_distance(network: Any, x_features: list[Tensor], y_features: list[Tensor]) -> Tensor:
    """Distance (n,) of the features of x and y, whose gradient goes to those of y."""
    with torch.autocast(y_features[0].device.type, enabled=False):
        levels = zip(network.lins, x_features, y_features, strict=True)
        return torch.stack([level_distance(x, y, lin.model[-1].weight.flatten()) for lin, x, y in levels]).sum(0)


def spatial_distance(network: Any, x_features: list[Tensor], y_features: list[Tensor], size: Sequence[int]) -> Tensor:
    """Distance (n,) as `lpips.LPIPS(spatial=True)` and a mean over positions give it.

    Each level's map is enlarged to the frame's (h, w) first, bilinearly; where that is no whole multiple, values at a map's
    border count a little more or less than those within.
    """
    maps = [
        torch.einsum("nchw,c->nhw", (_unit_length(x) - _unit_length(y)).square(), lin.model[-1].weight.flatten())
        for lin, x, y in zip(network.lins, x_features, y_features, strict=True)
    ]
    enlarged = [F.interpolate(level[:, None], size=tuple(size), mode="bilinear", align_corners=False) for level in maps]
    return torch.stack(enlarged).sum(0).mean(dim=(1, 2, 3))


def level_distance(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Mean over positions of the weighted squared difference of features that were brought to unit length.

    Shapes:
        x, y:    (n, c, h, w), any floating-point type
        weight:  (c,) float32
        returns: (n,) float32
    """
    kernels = fused_kernels(y, "lpips")
    if kernels is not None and kernels.measures(y):
        return kernels.unit_distance(x, y, weight)
    difference = _unit_length(x.float()) - _unit_length(y.float())
    return torch.einsum("nchw,c->nhw", difference.square(), weight).mean(dim=(1, 2))


def _unit_length(features: Tensor) -> Tensor:
    # lpips.normalize_tensor takes sqrt(sum of squares), whose gradient is NaN where all channels are 0 (a ReLU's output
    # may be); the norm has the same value and a gradient of 0 there.
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def load_network(net: str, weights_path: str | None) -> nn.Module:
    """The LPIPS network with pretrained weights, frozen, in evaluation mode, channels-last.

    Args:
        net: a key of `BACKBONES`.
        weights_path: the backbone's weights; None takes them from the cache of `python -m tae.weights`, else from
            torchvision's cache, else from torchvision's download.

    Raises:
        UserError: they are in none of these places, or do not fit.
    """
    backbone, source = _backbone_weights(net, weights_path)
    with _quiet_torchvision():
        import lpips

        # On the meta device: lpips would draw 138 million random numbers first, only to overwrite them.
        with torch.device("meta"):
            network = lpips.LPIPS(net=net, pnet_rand=True, pretrained=False, verbose=False)
    linear_file = importlib.resources.files("lpips") / "weights" / "v0.1" / f"{net}.pth"
    with importlib.resources.as_file(linear_file) as linear_path:
        network.load_state_dict(_read(linear_path, net), strict=False, assign=True)
    network.net.load_state_dict(_fit_backbone(network.net, backbone, source), assign=True)
    network.scaling_layer = lpips.lpips.ScalingLayer()
    return network.float().eval().requires_grad_(False).to(memory_format=torch.channels_last)


def has_weights(net: str) -> bool:
    """Whether `load_network(net, None)` works without a download."""
    cached = net in BY_NET and BY_NET[net].is_here()
    return cached or torchvision_file(net).exists()


def _backbone_weights(net: str, weights_path: str | None) -> tuple[dict[str, Tensor], Path]:
    """The backbone's weights from the first place that has them, and which that was."""
    if weights_path is None and net in BY_NET and BY_NET[net].is_here():
        return BY_NET[net].load(), BY_NET[net].path
    path = to_path(weights_path) if weights_path is not None else _downloaded(net)
    return _read(path, net), path


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
            f"weights_path={path} does not fit the backbone: {len(wrong)} of {len(wanted)} tensors "
            f"differ ({'; '.join(wrong[:3])}). Give torchvision's weights of that network (features.*)."
        )
    return {ours: state[theirs] for ours, theirs in wanted.items()}


def _read(path: Path, net: str) -> dict[str, Tensor]:
    """A state dict from .safetensors, or from .pth without running anything that is pickled in it."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            # Copies: one view of the mapped file (a bias) would keep all of it in memory, and change where the file does.
            return {name: tensor.clone() for name, tensor in load_file(path).items()}
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"weights_path={path} does not exist. {_ways(net)}") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, _safetensors_error()) as error:
        raise UserError(
            f"weights_path={path} is not a readable weights file: {first_line(error)}. {_ways(net)}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"weights_path={path} does not hold a plain state dict of tensors. {_ways(net)}")
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


def check_available(net: str, weights_path: str | None) -> None:
    """Refuse early what `load_network` would refuse for want of a file: nothing is fetched, the server is asked.

    Raises:
        UserError: no such file, or neither in the cache nor within reach.
    """
    if weights_path is not None:
        if not to_path(weights_path).is_file():
            raise UserError(f"weights_path={weights_path} does not exist. {_ways(net)}")
    elif not has_weights(net):
        try:
            with urlopen(Request(_url(net), method="HEAD"), timeout=DOWNLOAD_TIMEOUT):
                pass
        except OSError as error:
            raise UserError(_not_here(net, f"{urlsplit(_url(net)).hostname} cannot be reached ({error})")) from error


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
        raise UserError(_not_here(net, f"the download failed ({error})")) from error
    return path


def _not_here(net: str, torchvision: str) -> str:
    """Why LPIPS has no weights, the next step first, and what became of torchvision's, the second place to look."""
    return (
        f"LPIPS has no weights of its backbone ({net}). {_ways(net)} (Torchvision's {torchvision_file(net).name} is not in "
        f"{torchvision_file(net).parent}, and {torchvision}.)"
    )


def _ways(net: str) -> str:
    """What to do about missing weights, the easiest first."""
    fetch = f"Run `python -m tae.weights get={net}` once, or give" if net in BY_NET else "Give"
    return f"{fetch} torchvision's file by weights_path=PATH, or train without the term: weight=0."


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
