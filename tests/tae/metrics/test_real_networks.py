"""The real networks of losses and metrics: what `python -m tae.weights` makes of the packages is what others use."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from tae.losses import Perceptual
from tae.losses.backbones import BY_NET
from tae.metrics.distribution import FRAMES, RFVD, frechet_distance, i3d_input
from tae.metrics.dists import FrameDISTS
from tae.metrics.frame import psnr
from tae.metrics.i3d import load_i3d

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


# UCF-101's classes that Kinetics-400 has, by its name for them.
KINETICS = {
    "BasketballDunk": "dunking basketball",
    "BenchPress": "bench pressing",
    "BodyWeightSquats": "squat",
    "Bowling": "bowling",
    "JavelinThrow": "javelin throw",
    "PlayingCello": "playing cello",
    "PlayingGuitar": "playing guitar",
    "PoleVault": "pole vault",
    "SkyDiving": "skydiving",
    "TennisSwing": "playing tennis",
}


def frames_of(path: Path, count: int) -> Tensor:
    """(count, h, w, 3) uint8: the central frames of a file."""
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    start = (len(frames) - count) // 2
    return torch.from_numpy(frames[start : start + count])


@pytest.mark.slow
def test_i3d_knows_what_real_clips_show(shared_clips: Path) -> None:
    """The port is the right network: the expected class is among the first five of 400 for four clips of five."""
    from torchvision.models.video import R3D_18_Weights

    labels = R3D_18_Weights.KINETICS400_V1.meta["categories"]
    network, found = load_i3d(), 0
    for folder, label in KINETICS.items():
        clip = i3d_input(frames_of(min((shared_clips / "ucf101" / folder).glob("*.avi")), FRAMES))
        with torch.no_grad():
            found += labels.index(label) in network(clip)[0].topk(5).indices.tolist()
    assert found >= 0.8 * len(KINETICS)


def gaussian_blur(frames: Tensor, sigma: float) -> Tensor:
    from torchvision.transforms.functional import gaussian_blur

    return gaussian_blur(frames.movedim(-1, 1), 2 * int(3 * sigma) + 1, sigma).movedim(1, -1).contiguous()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fvd_grows_with_what_is_done_to_real_clips(shared_clips: Path) -> None:
    order = torch.randperm(FRAMES, generator=torch.Generator().manual_seed(0))
    damages: dict[str, Callable[[Tensor], Tensor]] = {
        "mild blur": lambda clip: gaussian_blur(clip, 1),
        "strong blur": lambda clip: gaussian_blur(clip, 3),
        "shuffled": lambda clip: clip[order],
        "frozen": lambda clip: clip[:1].expand_as(clip),
    }
    metric = RFVD()
    clips = [frames_of(min((shared_clips / "ucf101" / folder).glob("*.avi")), FRAMES) for folder in KINETICS]
    with torch.no_grad():
        originals = np.stack([metric.features(clip) for clip in clips])
        values = {
            name: frechet_distance(originals, np.stack([metric.features(damage(clip)) for clip in clips]))
            for name, damage in damages.items()
        }
    assert frechet_distance(originals, originals) == pytest.approx(0, abs=1e-6)
    assert 0 < values["mild blur"] < values["strong blur"]
    assert values["mild blur"] < values["shuffled"] < values["frozen"]


def test_dists_tells_texture_from_blur() -> None:
    """A shift of two pixels keeps texture and is near; blur takes it away and is far, though its PSNR is higher."""
    frame = ((photograph() + 1) * 127.5).round().byte().movedim(0, -1)[None]
    noise, blur, shift = (((distorted(photograph()) + 1) * 127.5).round().byte().movedim(1, -1)).split(1)
    metric = FrameDISTS()
    assert metric(frame, frame).item() == pytest.approx(0, abs=1e-5)
    assert metric(frame, shift) < metric(frame, blur)
    assert metric(frame, noise) > 0.05
    assert psnr(frame, blur) > psnr(frame, shift)
