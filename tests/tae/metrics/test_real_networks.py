"""The real networks of losses and metrics: what `python -m tae.weights` makes of the packages is what others use."""

import importlib
import io
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models import vgg16

from benchmarks.fvd import DAMAGES, measure
from tae.losses import Perceptual
from tae.losses.backbones import BY_NET
from tae.metrics.distribution import FRAMES, RFVD, i3d_input
from tae.metrics.dists import DISTS_WEIGHTS, FrameDISTS, load_dists
from tae.metrics.frame import psnr
from tae.metrics.i3d import load_i3d
from tae.runtime.weights_fetch import downloaded, read_member, unpickle_arrays

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
    # 0.28 (VGG) and 0.39 (AlexNet) seen; the reference pair that people call different is at 0.72 for AlexNet.
    assert blur > 0.2, "blur is far away"


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_the_heads_of_the_package_with_the_weights_are_those_of_lpips(net: str) -> None:
    """The linear layers are those of the package lpips; they were fitted with this very backbone."""
    weight = BY_NET[net]
    with downloaded(weight) as archive:
        content = read_member(archive, weight)
    assert content is not None
    heads = [tensor for name, tensor in unpickle_arrays(content).items() if name.startswith("NetLin")]
    with resources.as_file(resources.files("lpips") / "weights" / "v0.1" / f"{net}.pth") as path:
        expected = torch.load(path, map_location="cpu", weights_only=True)
    assert len(heads) == len(expected) == 5
    for ours, theirs in zip(heads, expected.values(), strict=True):
        assert torch.equal(ours.flatten(), theirs.flatten())


def test_dists_equals_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package's own code and weights, out of its wheel, on the same backbone. It downloads VGG-16 when it is built."""
    frames = photograph().expand(3, -1, -1, -1) / 2 + 0.5
    others = distorted(photograph()) / 2 + 0.5
    with downloaded(DISTS_WEIGHTS) as wheel:
        monkeypatch.syspath_prepend(str(wheel))
        monkeypatch.setattr(torchvision.models, "vgg16", lambda pretrained: vgg16(weights=None))
        package = importlib.import_module("DISTS_pytorch").DISTS(load_weights=False)
        content = read_member(wheel, DISTS_WEIGHTS)
    assert content is not None
    for name, values in torch.load(io.BytesIO(content), weights_only=True).items():
        getattr(package, name).data = values
    backbone = BY_NET["vgg"].load()
    for name, parameter in package.named_parameters():
        if name.startswith("stage"):
            parameter.data = backbone[f"features.{name.partition('.')[2]}"]
    # The same float32 convolutions; means and variances are taken in another order.
    torch.testing.assert_close(load_dists()(frames, others), package(frames, others), rtol=1e-4, atol=1e-5)


# UCF-101's classes that Kinetics-400 has, by its name for them.
KINETICS = {
    "Archery": "archery",
    "BasketballDunk": "dunking basketball",
    "BenchPress": "bench pressing",
    "Biking": "riding a bike",
    "BodyWeightSquats": "squat",
    "Bowling": "bowling",
    "BoxingPunchingBag": "punching bag",
    "BreastStroke": "swimming breast stroke",
    "BrushingTeeth": "brushing teeth",
    "CliffDiving": "diving cliff",
    "CricketBowling": "playing cricket",
    "Diving": "springboard diving",
    "Haircut": "getting a haircut",
    "HammerThrow": "hammer throw",
    "HighJump": "high jump",
    "JavelinThrow": "javelin throw",
    "Kayaking": "canoeing or kayaking",
    "Knitting": "knitting",
    "MoppingFloor": "mopping floor",
    "PlayingCello": "playing cello",
    "PlayingFlute": "playing flute",
    "PlayingGuitar": "playing guitar",
    "PoleVault": "pole vault",
    "SalsaSpin": "salsa dancing",
    "ShavingBeard": "trimming or shaving beard",
    "Shotput": "shot put",
    "Skiing": "skiing (not slalom or crosscountry)",
    "SkyDiving": "skydiving",
    "TennisSwing": "playing tennis",
    "ThrowDiscus": "throwing discus",
    "VolleyballSpiking": "playing volleyball",
    "WalkingWithDog": "walking the dog",
}


def frames_of(path: Path, count: int) -> Tensor:
    """(count, h, w, 3) uint8: the central frames of a file."""
    with av.open(str(path)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    start = (len(frames) - count) // 2
    return torch.from_numpy(frames[start : start + count])


@pytest.mark.slow
@pytest.mark.timeout(1800)
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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_fvd_grows_with_what_is_done_to_real_clips(shared_clips: Path) -> None:
    clips = [frames_of(min((shared_clips / "ucf101" / folder).glob("*.avi")), FRAMES) for folder in list(KINETICS)[:16]]
    values = {row["copy"]: row["FVD"] for row in measure(clips, RFVD(fewest_clips=len(clips)))}
    assert values.keys() == {"one half against the other", *DAMAGES}
    assert 0 < values["blur, sigma 1"] < values["blur, sigma 3"]
    assert values["blur, sigma 1"] < values["frames shuffled"] < values["frozen at the first frame"]


def test_dists_tells_texture_from_blur() -> None:
    """A shift of two pixels keeps texture and is near; blur takes it away and is far, though its PSNR is higher."""
    frame = ((photograph() + 1) * 127.5).round().byte().movedim(0, -1)[None]
    noise, blur, shift = (((distorted(photograph()) + 1) * 127.5).round().byte().movedim(1, -1)).split(1)
    metric = FrameDISTS()
    assert metric(frame, frame).item() == pytest.approx(0, abs=1e-5)
    assert metric(frame, shift) < metric(frame, blur)
    assert metric(frame, noise) > 0.05
    assert psnr(frame, blur) > psnr(frame, shift)
