"""The real networks of losses and metrics: what `python -m tae.weights` makes of the packages is what others use."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tae.losses import Perceptual
from tae.losses.backbones import BY_NET

pytestmark = [pytest.mark.network, pytest.mark.usefixtures("real_weights")]


def photograph() -> Tensor:
    """(3, 64, 64) in [-1, 1]: the part of a photograph that scikit-image brings along."""
    from skimage.data import astronaut

    frame = torch.from_numpy(np.ascontiguousarray(astronaut()[:256:4, 96:352:4]))
    return frame.permute(2, 0, 1).float() / 127.5 - 1


def distorted(frame: Tensor) -> Tensor:
    """(3, 3, 64, 64): noise, blur, and a shift of two pixels."""
    blurred = torch.nn.functional.avg_pool2d(frame[None], 5, 1, 2, count_include_pad=False)[0]
    return torch.stack([(frame + 0.2 * torch.randn_like(frame)).clamp(-1, 1), blurred, frame.roll(2, -1)])


def package_lpips(net: str) -> Any:
    """The package's own network and code with the same backbone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lpips

        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    state = BY_NET[net].load()
    for name, parameter in network.net.named_parameters():
        parameter.data.copy_(state["features." + name.split(".", 1)[1]])
    return network.eval().requires_grad_(False)


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_with_real_weights_equals_the_package(net: str) -> None:
    x = photograph().expand(3, -1, -1, -1)
    y = distorted(photograph())
    expected = package_lpips(net)(x, y).flatten()
    ours = Perceptual(weight=1.0, net=net, weights_path=None).per_frame(x.movedim(0, 1)[None], y.movedim(0, 1)[None])
    # The same float32 convolutions in another layout: 1e-6 relative seen.
    torch.testing.assert_close(ours[0], expected, rtol=1e-4, atol=1e-6)
    noise, blur, shift = ours[0].tolist()
    assert shift < min(noise, blur), "a shift of two pixels is what an eye forgives"
    assert blur > 0.2, "blur is far away"
