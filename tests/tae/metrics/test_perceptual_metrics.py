"""DISTS and MS-SSIM against slow references, VMAF and ColorVideoVDP by what they must say, missing weights by name."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tae.losses.backbones import VGG16
from tae.metrics.dists import CHANNELS, DISTS, STAGES, FrameDISTS, l2_pool
from tae.metrics.frame import LPIPS, ms_ssim
from tae.metrics.metric import Measurement, NotMeasured
from tae.metrics.registry import BUNDLED_METRICS, METRICS, MORE_METRICS, SLOW_METRICS, protocol
from tae.metrics.video_quality import cvvdp, vmaf
from tests.references.metrics import dists_of_features, l2_pool_by_loops, ms_ssim_by_scales


def smooth(frames: int, size: int) -> Tensor:
    """(frames, size, size, 3) uint8."""
    coarse = torch.rand(frames, 3, size // 8, size // 8)
    return (
        (F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1) * 255).byte().movedim(1, -1).contiguous()
    )


def noisy(frames: Tensor, strength: float) -> Tensor:
    return (frames + strength * torch.randn(frames.shape)).round().clamp(0, 255).byte()


def blurred(frames: Tensor) -> Tensor:
    means = F.avg_pool2d(frames.movedim(-1, 1).float(), 9, 1, 4, count_include_pad=False)
    return means.round().byte().movedim(1, -1).contiguous()


def test_ms_ssim_equals_its_definition() -> None:
    original = smooth(2, 176)
    reconstruction = noisy(original, 20)
    values = ms_ssim(original, reconstruction)
    x, y = (frames.double().numpy() / 255 for frames in (original, reconstruction))
    for frame in (0, 1):
        channels = [ms_ssim_by_scales(x[frame, ..., c], y[frame, ..., c]) for c in range(3)]
        # torchmetrics takes the mean over channels within each scale, the reference after all scales, and pads before it
        # crops: together 0.003. Without the last scale's luminance or with equal weights it would be 0.02 and more.
        assert values[frame].item() == pytest.approx(sum(channels) / 3, abs=4e-3)


def test_ms_ssim_needs_large_frames() -> None:
    with pytest.raises(NotMeasured, match="161x161"):
        ms_ssim(smooth(1, 160), smooth(1, 160))


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_l2_pooling_equals_its_definition(size: tuple[int, int]) -> None:
    image = torch.randn(1, 2, *size)
    pooled = l2_pool(image)
    for channel in (0, 1):
        expected = torch.from_numpy(l2_pool_by_loops(image[0, channel].double().numpy()))
        torch.testing.assert_close(pooled[0, channel].double(), expected, rtol=1e-5, atol=1e-6)


def random_dists() -> DISTS:
    network = DISTS()
    for index, c_in, _, _ in VGG16:
        torch.nn.init.normal_(network.features[str(index)].weight, std=(2 / (9 * c_in)) ** 0.5)
    for weights in (network.alpha, network.beta):
        torch.nn.init.uniform_(weights)
    return network.requires_grad_(False).eval()


def test_dists_equals_its_definition() -> None:
    """Features layer by layer in float64, then the paper's formula channel by channel."""
    network = random_dists()
    x, y = torch.rand(2, 1, 3, 24, 32)
    mean, std = (torch.tensor(v).double().view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    levels: list[list] = []
    for image in (x, y):
        out, features = (image.double() - mean) / std, [image[0].double().numpy()]
        for stage in STAGES:
            if stage != STAGES[0]:
                pooled = [torch.from_numpy(l2_pool_by_loops(channel.numpy())) for channel in out[0]]
                out = torch.stack(pooled)[None]
            for index in stage:
                layer = network.features[str(index)]
                out = F.conv2d(out, layer.weight.double(), layer.bias.double(), padding=1).clamp(min=0)
            features.append(out[0].numpy())
        levels.append(features)
    expected = dists_of_features(*levels, network.alpha.double().numpy(), network.beta.double().numpy())
    # Thirteen float32 convolutions: 1e-6 seen. A level left out would change a tenth.
    assert network(x, y).item() == pytest.approx(expected, abs=2e-5)
    assert network(x, x).item() == pytest.approx(0, abs=1e-5)
    assert sum(CHANNELS) == 1475


@pytest.mark.parametrize(("metric", "names"), [(FrameDISTS(), "vgg,dists"), (LPIPS("alex"), "alex")])
def test_missing_weights_name_the_command(metric, names: str, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    """With all that is missing, so that it has to be run once."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(NotMeasured, match=rf"python -m tae\.weights get={names}`"):
        metric(smooth(1, 32), smooth(1, 32))


def test_vmaf_falls_with_what_is_lost() -> None:
    pytest.importorskip("vmaf_torch")
    original = noisy(smooth(1, 128).expand(3, -1, -1, -1), 10)
    same, blur = vmaf(original, original), vmaf(original, blurred(original))
    assert same > 95
    assert blur < 40
    with pytest.raises(NotMeasured, match="32x32"):
        vmaf(smooth(2, 24), smooth(2, 24))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
def test_cvvdp_falls_with_what_is_seen() -> None:
    pytest.importorskip("pycvvdp")
    original = smooth(4, 64)
    same, faint, strong = (cvvdp(original, noisy(original, s), fps=25) for s in (0, 2, 40))
    assert same == pytest.approx(10, abs=1e-3)
    assert 10 >= faint > strong + 1
    assert strong < 8


def test_what_cannot_be_measured_is_null_and_the_rest_is_not() -> None:
    original = smooth(2, 40)[None]
    measure = Measurement(
        {name: metric for name, metric in BUNDLED_METRICS.items() if name not in ("cvvdp", "image_psnr")}
    )
    values = measure(original, noisy(original, 9), fps=[25.0])[0].values
    assert values.keys() >= {"psnr", "tpsnr", "flicker", "warp"}
    assert measure.reasons.keys() >= {"ms_ssim", "dists", "lpips_alex", "rfvd"}


def test_the_protocol_is_named_by_its_metrics() -> None:
    assert protocol(METRICS) == "tae-eval-1"
    assert protocol(["psnr", "one of the user's own"]) == "tae-eval-1"
    assert protocol(BUNDLED_METRICS) == "tae-eval-2"


@pytest.mark.parametrize(
    ("choice", "names"),
    [("fast", {*METRICS, *MORE_METRICS} - set(SLOW_METRICS) | {"lpips"}), ("full", {*METRICS, *MORE_METRICS})],
)
def test_the_named_choices(choice: str, names: set[str]) -> None:
    from hydra import compose, initialize_config_dir

    from tae.evaluation.run import build_metrics
    from tae.runtime.cli import CONFIG_FOLDER

    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        metrics = build_metrics(compose("evaluate", overrides=[f"metrics={choice}"]))
    assert metrics.keys() == names
    assert list(metrics)[: len(METRICS)] == list(METRICS)
