"""Rows of the metric registry, and what measuring does whatever the metric."""

from dataclasses import replace

import pytest
import torch
from hydra import compose, initialize_config_dir

from tae.evaluation.run import build_metrics
from tae.evaluation.validation import Validation
from tae.metrics.frame import psnr
from tae.metrics.metric import Candidate, Measurement, Metric, NotMeasured, SharedOriginal
from tae.metrics.registry import BUNDLED_METRICS, METRICS
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.errors import UserError


@pytest.fixture
def frames():
    """Two clips of three frames with noisy copies, (2, 3, 40, 52, 3) uint8."""
    original = torch.randint(40, 216, (2, 3, 40, 52, 3), generator=torch.Generator().manual_seed(0))
    noise = torch.randint(-30, 31, original.shape, generator=torch.Generator().manual_seed(1))
    return original.byte(), (original + noise).byte()


def composed(*overrides, entry="evaluate"):
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose(entry, overrides=list(overrides))


def test_metrics_do_not_follow_autocast(frames):
    plain = Measurement(METRICS)(*frames)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = Measurement(METRICS)(*frames)
    assert plain == under_autocast
    assert plain[0].values.keys() == {"psnr", "ssim", "ssim_uniform"}


def test_frames_keep_their_places(frames):
    """Each clip has the mean of its own frames."""
    measured = Measurement({"psnr": METRICS["psnr"]})(*frames)
    expected = psnr(*(clips.flatten(0, 1) for clips in frames)).view(2, 3).mean(1)
    assert [clip.values["psnr"] for clip in measured] == expected.tolist()


def test_a_metric_that_needs_what_is_not_there_is_left_out(frames):
    latents = torch.randn(2, 4, 1, 5, 7)
    measure = Measurement(METRICS)
    assert all("outlier_rate" in clip.values for clip in measure(*frames, latents=latents))
    assert not any("outlier_rate" in clip.values for clip in measure(*frames))


def test_reconstructions_of_one_original_are_measured_together(frames):
    """As each alone, and what concerns the original is done once."""

    class Difference(SharedOriginal):
        originals = 0

        def of_each(self, original, reconstructions):
            self.originals += 1
            return [(original.float() - it.float()).abs().mean(dim=(1, 2, 3)) for it in reconstructions]

    original, first = frames
    second = original.roll(1, 1)
    difference = Difference()
    measure = Measurement({"difference": Metric(label="d", function=difference), "ssim": METRICS["ssim"]})
    together = measure.of_each(original, [Candidate(first, {}), Candidate(second, {})])
    assert difference.originals == 1
    assert together == [measure(original, first), measure(original, second)]


def test_every_other_frame(frames):
    values = Measurement({"psnr": replace(METRICS["psnr"], every=2)})(*frames)
    expected = psnr(*(clips[:, [0, 2]].flatten(0, 1) for clips in frames)).view(2, 2).mean(1)
    assert [clip.values["psnr"] for clip in values] == expected.tolist()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"scope": "video"}, "frame, clip, set"),
        ({"needs": ["fps"]}, "fps"),
        ({"every": 0}, "1 or more"),
        ({"every": 2, "scope": "clip"}, "take every frame"),
    ],
)
def test_a_row_that_cannot_be_measured_is_refused(settings, told):
    with pytest.raises(UserError, match=told):
        Metric(label="sharpness", function=psnr, **settings)


@pytest.mark.parametrize("entry", ["evaluate", "train"])
def test_the_defaults_are_the_registry(entry):
    """And the first of them those of tae-eval-1, as they were."""
    metrics = build_metrics(composed(entry=entry))
    assert list(metrics) == [*METRICS, "image_psnr", "tpsnr", "flicker", "psnr_phase"]
    assert {name: metric.definition() for name, metric in metrics.items()} == {
        name: BUNDLED_METRICS[name].definition() for name in metrics
    }
    assert list(build_metrics(composed("metrics=tae-eval-1", entry=entry))) == list(METRICS)


def test_the_demo_measures_lpips_on_few_frames():
    metrics = build_metrics(composed("experiment=demo", entry="train"))
    assert list(metrics) == list(build_metrics(composed(entry="train")))
    assert metrics["lpips"].every == 8
    assert "every 8th frame" in metrics["lpips"].label


def test_metrics_are_chosen_by_name():
    assert list(build_metrics(composed("metrics=[ssim]"))) == ["psnr", "ssim"]
    assert list(build_metrics(composed("~metrics"))) == ["psnr"]
    assert build_metrics(composed("+metrics.ssim_uniform.in_validation=true"))["ssim_uniform"].in_validation


def test_what_is_no_metric_is_refused():
    with pytest.raises(UserError, match=r"metrics\.own makes a OrderedDict"):
        build_metrics(composed("+metrics.own._target_=collections.OrderedDict"))


def test_lpips_reads_the_objectives_weights(tmp_path):
    """So a file that is no file of weights is refused before anything runs, also where no loss has the term."""
    (tmp_path / "vgg.pth").write_text("no weights")
    with pytest.raises(Exception, match=r"vgg\.pth is not a readable weights file"):
        build_metrics(composed(f"loss.perceptual.weights_path={tmp_path}/vgg.pth"))
    assert "lpips" in build_metrics(composed("~loss.perceptual", entry="train"))


class Counted:
    def __call__(self, original, reconstruction):
        return len(original)

    def compute(self, kept):
        return {"mean": float(sum(kept)), "ci95": None}


def too_small(original, reconstruction):
    raise NotMeasured("frames are too small")


def test_a_validation_averages_over_frames(frames):
    metrics = {
        "psnr": METRICS["psnr"],
        "frames": Metric(label="frames", scope="set", function=Counted()),
        "ms_ssim": Metric(label="MS-SSIM", function=too_small),
    }
    validation = Validation(metrics)
    original, reconstruction = frames
    for clip, length in ((0, 3), (1, 1)):
        batch = {"frames": original[clip, None, :length], "keys": [f"clip{clip}"], "fps": [25.0]}
        validation.add(batch, reconstruction[clip, None, :length], torch.randn(1, 4, 1, 5, 7), time_factor=8)
    means = validation.means()
    values = psnr(original.flatten(0, 1), reconstruction.flatten(0, 1))[[0, 1, 2, 3]]
    assert means == {"psnr": pytest.approx(values.mean().item(), abs=1e-5), "frames": 4.0}, "no number for ms_ssim"
