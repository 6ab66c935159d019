"""LPIPS in chunks against the plain lpips package, with a random backbone in torchvision's layout."""

import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from tae.losses import Context, Perceptual
from tae.runtime.errors import UserError

# The convolutions of VGG-16's `features`: index, channels in, channels out (Simonyan & Zisserman, configuration D).
VGG16 = [
    (0, 3, 64), (2, 64, 64), (5, 64, 128), (7, 128, 128), (10, 128, 256), (12, 256, 256), (14, 256, 256),
    (17, 256, 512), (19, 512, 512), (21, 512, 512), (24, 512, 512), (26, 512, 512), (28, 512, 512),
]  # fmt: skip


def vgg16_state(scale=1.0):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for index, c_in, c_out in VGG16:
        std = scale * (2 / (9 * c_in)) ** 0.5
        state[f"features.{index}.weight"] = torch.randn(c_out, c_in, 3, 3, generator=generator) * std
        state[f"features.{index}.bias"] = torch.randn(c_out, generator=generator) * 0.01 * scale
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg16.safetensors"
    save_file(vgg16_state(), path)
    return str(path)


@pytest.fixture(scope="module")
def plain_lpips(weights):
    """The package's own network in float64, filled with the same backbone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lpips

        with torch.device("meta"):
            network = lpips.LPIPS(net="vgg", pnet_rand=True, pretrained=False, verbose=False)
    network = network.to_empty(device="cpu")
    linear = torch.load(f"{lpips.__path__[0]}/weights/v0.1/vgg.pth", map_location="cpu", weights_only=True)
    network.load_state_dict(linear, strict=False)
    state = vgg16_state()
    for name, parameter in network.net.named_parameters():
        parameter.data.copy_(state["features." + name.split(".", 1)[1]])
    network.scaling_layer = lpips.lpips.ScalingLayer()
    return network.double().eval().requires_grad_(False)


def clips(b=2, t=3, h=24, w=32):
    return torch.rand(b, 3, t, h, w) * 2 - 1, torch.rand(b, 3, t, h, w) * 2 - 1


def by_lpips(network, x, y):
    """Value and gradient by the package, all frames at once, in float64."""
    y = y.double().requires_grad_()
    frames = (clip.movedim(2, 1).flatten(0, 1) for clip in (x.double(), y))
    value = network(*frames).mean()
    return value.item(), torch.autograd.grad(value, y)[0]


@pytest.mark.parametrize("frames_per_chunk", [1, 4, 100])
def test_value_and_gradient_equal_the_package(weights, plain_lpips, frames_per_chunk):
    x, y = clips()
    value, gradient = by_lpips(plain_lpips, x, y)
    y.requires_grad_()
    term = Perceptual(weight=1, net="vgg", weights_path=weights, frames_per_chunk=frames_per_chunk)
    ours = term(Context(x, SimpleNamespace(reconstruction=y), model=nn.Identity(), step=0))
    (3 * ours).backward()  # an upstream gradient that is not 1
    # 13 float32 convolutions: 2e-6 relative seen. One frame counted twice or left out would be off by a sixth.
    assert ours.item() == pytest.approx(value, rel=2e-5)
    # ReLU and max-pool choices may flip in float32 on near-ties, so the gradient is compared as a whole:
    # 1e-5 seen, 0.1 and more for a frame out of order.
    assert (y.grad.double() - 3 * gradient).norm() < 1e-3 * (3 * gradient).norm()


def test_per_frame_equals_the_package(weights, plain_lpips):
    x, y = clips()
    ours = Perceptual(weight=1, net="vgg", weights_path=weights, frames_per_chunk=4).per_frame(x, y)
    expected = [
        [plain_lpips(x[i, :, k][None].double(), y[i, :, k][None].double()).item() for k in range(3)] for i in (0, 1)
    ]
    torch.testing.assert_close(ours.double(), torch.tensor(expected, dtype=torch.float64), rtol=2e-5, atol=0)


def test_so_many_frames_are_drawn_in_each_step(weights):
    x, y = clips()
    each = Perceptual(weight=1, net="vgg", weights_path=weights).per_frame(x, y).mean(0)
    term, drawn = Perceptual(weight=1, net="vgg", weights_path=weights, frames=1), set()
    for _ in range(12):
        y = y.detach().requires_grad_()
        value = term(Context(x, SimpleNamespace(reconstruction=y), model=nn.Identity(), step=0))
        value.backward()
        (frame,) = {index for index in range(3) if y.grad[:, :, index].any()}
        assert value.item() == pytest.approx(each[frame].item(), rel=1e-5)
        drawn.add(frame)
    assert drawn == {0, 1, 2}  # one is missed by chance in 0.8 % of all seeds
    more = Perceptual(weight=1, net="vgg", weights_path=weights, frames=4)
    context = Context(x, SimpleNamespace(reconstruction=y.detach()), model=nn.Identity(), step=0)
    assert more(context).item() == pytest.approx(each.mean().item(), rel=1e-5)
    with pytest.raises(UserError, match="frames=0 must be 1 or more"):
        Perceptual(weight=1, net="vgg", weights_path=weights, frames=0)


def test_channels_last_clips_give_the_same(weights):
    x, y = clips()
    term = Perceptual(weight=1, net="vgg", weights_path=weights)
    stored_as_frames = [clip.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3) for clip in (x, y)]
    assert term.mean(*stored_as_frames).item() == pytest.approx(term.mean(x, y).item(), rel=1e-6)


def test_equal_clips_have_distance_0_and_a_finite_gradient(weights):
    x, _ = clips()
    y = x.clone().requires_grad_()
    value = Perceptual(weight=1, net="vgg", weights_path=weights).mean(x, y)
    value.backward()
    assert value.item() == 0
    assert y.grad.isfinite().all()


def test_dead_features_have_a_finite_gradient(tmp_path):
    """The package's own normalisation gives NaN where all channels of a level are 0."""
    path = tmp_path / "dead.safetensors"
    save_file(vgg16_state(scale=0.0), path)
    x, y = clips(t=1)
    y.requires_grad_()
    Perceptual(weight=1, net="vgg", weights_path=str(path)).mean(x, y).backward()
    assert y.grad.isfinite().all()


def test_nothing_of_the_weights_file_is_in_use_once_it_is_read(weights, tmp_path):
    path = tmp_path / "vgg16.safetensors"
    path.write_bytes(Path(weights).read_bytes())
    term = Perceptual(weight=1, net="vgg", weights_path=str(path))
    x, y = clips(t=1)
    before = term.mean(x, y)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(term.mean(x, y), before)


def test_bfloat16_autocast_is_close_and_float16_is_float32(weights):
    x, y = clips()
    term = Perceptual(weight=1, net="vgg", weights_path=weights)
    plain = term.mean(x, y).item()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = term.mean(x, y.bfloat16())
    with torch.autocast("cpu", dtype=torch.float16):
        float16 = term.mean(x, y)
    assert half.dtype == torch.float32
    # bfloat16 keeps 8 bits: a relative step of 0.4 %, averaged over thousands of positions.
    assert half.item() == pytest.approx(plain, rel=5e-3)
    assert half.item() != plain
    assert float16.item() == plain


def test_nothing_is_kept_for_backward_but_one_clip(weights):
    """Memory of the graph must not grow with the network: one tensor of the clip's size, whatever the chunks."""
    x, y = clips(b=1, t=4)
    y.requires_grad_()
    graph = Perceptual(weight=1, net="vgg", weights_path=weights).mean(x, y).grad_fn
    assert type(graph).__name__ == "_ChunkedMeanBackward"
    assert [tensor.numel() for tensor in graph.saved_tensors] == [y.numel()]


def test_a_first_call_from_validation_leaves_the_network_usable_for_training(weights):
    """Moved under inference mode, its parameters would be inference tensors, which autograd refuses."""
    term = Perceptual(weight=1, net="vgg", weights_path=weights)
    with torch.inference_mode():
        moved = term._network_on(torch.device("meta"))
    assert not any(parameter.is_inference() for parameter in moved.parameters())


def test_weight_0_loads_nothing(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)  # an import would raise
    Perceptual(weight=0, net="vgg", weights_path="/no/such/file")


def test_pth_files_are_read_too(tmp_path, weights):
    torch.save(vgg16_state(), tmp_path / "vgg16.pth")
    x, y = clips(t=1)
    values = [
        Perceptual(weight=1, net="vgg", weights_path=str(p)).mean(x, y) for p in (weights, tmp_path / "vgg16.pth")
    ]
    assert values[0] == values[1]


class Evil:
    def __reduce__(self):
        return (print, ("code ran from a weights file",))


def write_bad_file(path, kind):
    if kind == "shape":
        torch.save(vgg16_state() | {"features.0.weight": torch.zeros(64, 4, 3, 3)}, path)
    elif kind == "names":
        torch.save({"layer1.weight": torch.zeros(1)}, path)
    elif kind == "text":
        path.write_text("not a weights file")
    elif kind == "empty":
        path.touch()
    elif kind == "pickle":
        torch.save({"features.0.weight": Evil()}, path)
    elif kind == "list":
        torch.save([1, 2], path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("shape", r"features.0.weight: expected \(64, 3, 3, 3\), found \(64, 4, 3, 3\)"),
        ("names", "features.0.weight: expected .* found nothing"),
        ("text", "not a readable weights file"),
        ("empty", "not a readable weights file"),
        ("pickle", "not a readable weights file"),
        ("list", "plain state dict"),
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_wrong_file_is_refused(tmp_path, capfd, kind, message, suffix):
    if suffix == ".safetensors" and kind != "missing":
        message = "not a readable weights file"  # none of the others is a safetensors file
    path = tmp_path / f"weights{suffix}"
    write_bad_file(path, kind)
    with pytest.raises(UserError, match=message):
        Perceptual(weight=1, net="vgg", weights_path=str(path))
    assert "code ran" not in capfd.readouterr().out


def test_without_network_the_error_names_both_ways(tmp_path, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(UserError, match=r"get=vgg.*by weights_path=PATH.*: weight=0.*unreachable"):
        Perceptual(weight=1, net="vgg", weights_path=None)


def test_an_unknown_net_and_too_small_frames_are_refused(weights):
    with pytest.raises(UserError, match="vgg, alex, squeeze"):
        Perceptual(weight=1, net="resnet", weights_path=None)
    x, y = clips(h=8)
    with pytest.raises(UserError, match="8x32 are too small"):
        Perceptual(weight=1, net="vgg", weights_path=weights).mean(x, y)


@pytest.mark.gpu
def test_on_a_gpu(weights):
    x, y = clips(t=9, h=64, w=64)
    plain = Perceptual(weight=1, net="vgg", weights_path=weights).mean(x, y)
    term = Perceptual(weight=1, net="vgg", weights_path=weights)
    with torch.inference_mode():
        term.mean(x.cuda(), y.cuda())
    y_gpu = y.cuda().requires_grad_()
    value = term.mean(x.cuda(), y_gpu)
    value.backward()
    assert value.item() == pytest.approx(plain.item(), rel=1e-3)  # TF32 keeps 10 bits
    assert y_gpu.grad.isfinite().all()
