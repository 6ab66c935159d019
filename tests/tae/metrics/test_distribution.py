"""FVD against the textbook formula, and I3D's own pieces against TensorFlow's definitions."""

import numpy as np
import pytest
import torch

from tae.metrics.distribution import FEWEST_CLIPS, RFVD, frechet_distance, i3d_input, jackknife
from tae.metrics.i3d import Unit, pad_same
from tae.metrics.metric import Measurement, Metric, NotMeasured
from tests.references.metrics import frechet_by_matrix_root


def features(n: int, d: int = 6, shift: float = 0.0, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ np.random.default_rng(1).normal(size=(d, d)) + shift


@pytest.mark.parametrize(("n", "m"), [(40, 40), (50, 9)])
def test_the_distance_equals_the_textbook_formula(n: int, m: int) -> None:
    x, y = features(n), 1.3 * features(m, shift=0.5, seed=2)
    # Both float64. A covariance divided by n would be off by 2 % and more.
    assert frechet_distance(x, y) == pytest.approx(frechet_by_matrix_root(x, y), rel=1e-9)


def test_fewer_clips_than_dimensions() -> None:
    """Of two clips each the distance is known: covariances of rank one along (2, 0, 0) and (0, 4, 0)."""
    x = np.array([[1.0, 0, 0], [-1, 0, 0]])
    y = np.array([[0, 2.0, 3], [0, -2, 3]])
    assert frechet_distance(x, y) == pytest.approx(9 + 2 + 8)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-12)


def test_the_interval_holds_the_value_and_narrows_with_clips() -> None:
    widths = []
    for n in (64, 1024):
        x = features(n)
        y = x + 0.3 * features(n, seed=3)
        value = frechet_distance(x, y)
        low, high = jackknife(x, y, value)
        assert low < value < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_too_few_clips_are_no_number() -> None:
    kept = [(x, y) for x, y in zip(features(255, 8), features(255, 8, seed=1), strict=True)]
    with pytest.raises(NotMeasured, match="255"):
        RFVD().compute(kept)


def test_the_result_has_floor_and_count() -> None:
    x = features(FEWEST_CLIPS, 8)
    result = RFVD().compute(list(zip(x, x + 1, strict=True)))
    assert result["clips"] == FEWEST_CLIPS
    assert result["mean"] == pytest.approx(8)  # the means differ by 1 in each of 8 dimensions, nothing else does
    assert result["floor"] == pytest.approx(frechet_by_matrix_root(x[::2], x[1::2]), rel=1e-6)
    assert result["ci95"][0] <= result["mean"] <= result["ci95"][1]


def test_missing_weights_and_short_clips_are_said() -> None:
    frames = torch.zeros(16, 32, 32, 3, dtype=torch.uint8)
    with pytest.raises(NotMeasured, match="get=i3d"):
        RFVD()(frames, frames)
    with pytest.raises(NotMeasured, match="16 frames"):
        RFVD()(frames[:8], frames[:8])


def test_features_of_the_originals_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model and baseline are measured against the same originals."""
    seen = []

    def network(clip: torch.Tensor) -> torch.Tensor:
        seen.append(clip.shape)
        return clip.mean(dim=(2, 3, 4)).repeat(1, 2)

    metric = RFVD()
    monkeypatch.setattr(metric, "_network_on", lambda device: network)
    original, first, second = torch.randint(0, 256, (3, 18, 20, 30, 3)).byte()
    kept = metric.of_each(original, [first, second])
    assert seen == [(1, 3, 16, 224, 224)] * 3
    assert np.array_equal(kept[0][0], kept[1][0])
    assert not np.array_equal(kept[0][1], kept[1][1])


def test_too_few_clips_are_known_before_the_network_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    metric = RFVD()
    monkeypatch.setattr(metric, "features", lambda frames: pytest.fail("I3D ran for a number that there will not be"))
    frames = torch.zeros(1, 16, 32, 32, 3, dtype=torch.uint8)
    measure = Measurement({"rfvd": Metric(label="rFVD", scope="set", function=metric)}, num_clips=255)
    for _ in range(2):
        assert not measure(frames, frames)[0].kept
        assert "256" in measure.reasons["rfvd"]
        measure.reset()  # of an evaluation that starts again
    with pytest.raises(pytest.fail.Exception):
        Measurement(measure.metrics, num_clips=256)(frames, frames)


def test_fewer_clips_are_measured_where_that_is_asked_for() -> None:
    x = features(20, 8)
    assert RFVD(fewest_clips=20).compute(list(zip(x, x + 1, strict=True)))["mean"] == pytest.approx(8)


@pytest.mark.parametrize("size", [(20, 30), (30, 20), (24, 24)])
def test_i3d_sees_the_central_frames_and_square(size: tuple[int, int]) -> None:
    frames = torch.zeros(19, *size, 3, dtype=torch.uint8)
    frames[1:17] = 255  # (19 - 16) // 2 = 1
    clip = i3d_input(frames)
    assert clip.shape == (1, 3, 16, 224, 224)
    assert clip.min() > 0.999  # bilinear weights may add up to a little less than 1


@pytest.mark.parametrize(
    ("size", "kernel", "stride"), [(7, 7, 2), (8, 7, 2), (5, 3, 2), (6, 3, 1), (4, 2, 2), (5, 1, 1)]
)
def test_same_padding_is_tensorflows(size: int, kernel: int, stride: int) -> None:
    """ceil(size / stride) outputs; where the padding is odd, its larger half is behind."""
    x = torch.ones(1, 1, size, size, size)
    padded = pad_same(x, (kernel,) * 3, (stride,) * 3)
    outputs = -(-size // stride)
    needed = max((outputs - 1) * stride + kernel - size, 0)
    assert padded.shape[2] == size + needed
    assert padded[0, 0, :, size // 2 + needed // 2, size // 2 + needed // 2].tolist() == (
        [0.0] * (needed // 2) + [1.0] * size + [0.0] * (needed - needed // 2)
    )


def test_a_unit_normalises_with_stored_statistics() -> None:
    unit = Unit(2, 3, 1).eval()
    unit.mean, unit.var, unit.bias = torch.rand(3), torch.rand(3) + 0.5, torch.randn(3)
    x = torch.randn(1, 2, 2, 3, 3)
    convolved = torch.einsum("oi,bithw->bothw", unit.conv.weight[:, :, 0, 0, 0], x)
    shape = (1, 3, 1, 1, 1)
    expected = (convolved - unit.mean.view(shape)) / (unit.var.view(shape) + 1e-3).sqrt() + unit.bias.view(shape)
    torch.testing.assert_close(unit(x), expected.relu())
