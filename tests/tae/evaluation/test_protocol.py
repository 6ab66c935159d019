"""The protocol with a stand-in model: aggregation, intervals, each clip once, over one and two processes."""

import json
import subprocess
import sys
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from tae.evaluation.protocol import Evaluation, evaluate_model
from tae.evaluation.report import verdict
from tae.evaluation.results import ClipResult, EvaluationResult, measured, once_each, summarise
from tae.metrics.frame import psnr
from tae.metrics.metric import Metric, NotMeasured
from tae.metrics.registry import BUNDLED_METRICS, METRICS
from tae.model.frame_conversion import clip_to_frames
from tae.runtime.errors import UserError

pytestmark = [
    # Lightning's own remarks on loaders without workers and on the test machine's hardware.
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    # Raised inside Lightning by newer versions of torch.
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]


class Dimmed(nn.Module):
    """Stands in for an autoencoder: a reconstruction that is a little darker, latents of pooled values."""

    time_factor = space_factor = 8

    def __init__(self, factor=0.9):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, clip, sample_posterior):
        assert not sample_posterior, "the protocol decodes the mode"
        latents = nn.functional.avg_pool3d(clip, 8, ceil_mode=True)
        return SimpleNamespace(reconstruction=clip * self.factor, latents=latents)


class Noisy(Dimmed):
    """Decodes a sample of its posterior: the clip with noise from the global generator."""

    def forward(self, clip, sample_posterior):
        assert sample_posterior, "a sample is asked for"
        return SimpleNamespace(reconstruction=clip + 0.1 * torch.randn_like(clip), latents=None)


def make_clips(count, lengths=(8, 16)):
    """`count` clips of noise, of alternating lengths."""
    generator = torch.Generator().manual_seed(1)
    return {
        f"clip-{i:02}": torch.randint(0, 256, (lengths[i % len(lengths)], 16, 24, 3), generator=generator).byte()
        for i in range(count)
    }


def loader(clips, keys=None):
    return DataLoader(batches(clips, keys), batch_size=None)


def batches(clips, keys=None):
    return [{"frames": clips[key][None], "keys": [key], "fps": [25.0]} for key in keys or clips]


def quiet_trainer(**arguments):
    return L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False, **arguments
    )


def evaluate(clips, model=None, metrics=METRICS, sample_seed=None, **arguments):
    evaluation = Evaluation(model or Dimmed(), metrics, sample_seed=sample_seed)
    quiet_trainer(**arguments).test(evaluation, loader(clips), verbose=False)
    return evaluation.result


def test_a_samples_noise_depends_on_seed_and_clip_alone():
    """Not on the batches, the order or the clips before it; and what is shown is what was measured."""
    clips = make_clips(4, lengths=(8,))
    first = {clip.key: clip.model for clip in evaluate(clips, Noisy(), sample_seed=0).clips}
    alone = {key: evaluate({key: clips[key]}, Noisy(), sample_seed=0).clips[0].model for key in reversed(clips)}
    assert first == alone
    assert len({value["psnr"] for value in first.values()}) == 4
    assert evaluate(clips, Noisy(), sample_seed=1).clips[0].model != first["clip-00"]
    evaluation = Evaluation(Noisy(), {}, sample_seed=0)
    together = {"frames": torch.stack(list(clips.values())), "keys": list(clips), "fps": [25.0] * 4}
    shown = {clip.key: clip for clip in evaluation.predict_step(together, 0)}
    for key, clip in shown.items():
        assert psnr(clip.original, clip.reconstruction).mean().item() == pytest.approx(first[key]["psnr"], abs=1e-5)


def test_unrounded_values_are_the_models_and_the_baselines():
    """Dimmed by less than a step: rounding takes it away."""
    clips = {"a": torch.full((8, 16, 16, 3), 200, dtype=torch.uint8)}
    metrics = {"psnr_float": BUNDLED_METRICS["psnr_float"]}
    result = evaluate(clips, Dimmed(1 + 1e-3), metrics)
    value = 200 / 127.5 - 1
    assert result.clips[0].model["psnr"] == 100
    assert result.clips[0].model["psnr_float"] == pytest.approx(-20 * np.log10(value * 1e-3 / 2), abs=1e-2)
    assert result.clips[0].trilinear["psnr_float"] == pytest.approx(100, abs=0.1)


def test_means_run_over_all_frames_of_all_clips():
    clips = make_clips(3)
    result = evaluate(clips)
    values = []
    for frames in clips.values():
        clip = (frames.double() / 127.5 - 1).movedim(-1, 0)[None]
        values += psnr(frames, clip_to_frames(clip * 0.9)[0]).tolist()
    # The same frames through float32: a value may round to its neighbour. Weighing clips, not frames, differs by 1e-3.
    assert result.metrics()["psnr"]["mean"] == pytest.approx(np.mean(values), abs=1e-4)
    assert [clip.num_frames for clip in result.clips] == [8, 16, 8]
    assert list(result.metrics()) == ["psnr", "ssim", "ssim_uniform", "lpips", "outlier_rate"]
    assert list(result.trilinear()) == ["psnr", "ssim", "ssim_uniform", "lpips"]


def test_both_sides_are_rounded():
    """A model whose error stays below half a level is exact to a viewer."""
    result = evaluate(make_clips(1), Dimmed(factor=1 - 1e-3))
    assert result.metrics()["psnr"]["mean"] == 100.0


def test_metrics_stay_float32_in_mixed_precision():
    """The model's own values may change under autocast, its baseline's may not."""
    clips = make_clips(2)
    plain, mixed = evaluate(clips).trilinear(), evaluate(clips, precision="bf16-mixed").trilinear()
    assert measured(plain).keys() >= {"psnr", "ssim", "ssim_uniform"}
    assert plain == mixed


def test_the_intervals_cover_like_intervals():
    """The 95 % interval of a mean of n values is about 1.96 s / sqrt(n) to each side; the bootstrap's must be near."""
    values = np.random.default_rng(3).normal(20, 2, size=400)
    summary = summarise([{"psnr": value} for value in values], [32] * 400)["psnr"]
    half_width = 1.96 * values.std() / np.sqrt(400)
    assert summary["mean"] == pytest.approx(values.mean())
    # 1,000 resamples know a 2.5 % quantile to about 5 % of the half width; twice that and some for the two tails.
    assert summary["ci95"][0] == pytest.approx(values.mean() - half_width, abs=0.15 * half_width)
    assert summary["ci95"][1] == pytest.approx(values.mean() + half_width, abs=0.15 * half_width)


def test_one_clip_has_no_interval():
    assert summarise([{"psnr": 20.0}], [8])["psnr"] == {"mean": 20.0, "ci95": None}


def test_long_clips_weigh_more():
    assert summarise([{"psnr": 10.0}, {"psnr": 20.0}], [1, 3])["psnr"]["mean"] == 17.5


def result_of(psnrs):
    return EvaluationResult([ClipResult(f"c{i}", 8, 25.0, {"psnr": p}, {"psnr": 20.0}) for i, p in enumerate(psnrs)])


@pytest.mark.parametrize(
    ("psnrs", "expected"),
    [
        ([20, 10, 30], {"best": "c2", "median": "c0", "worst": "c1"}),
        ([20, 10], {"best": "c0", "worst": "c1"}),
        ([20], {"best": "c0"}),
        ([20, 20, 20], {"best": "c2", "median": "c1", "worst": "c0"}),
    ],
)
def test_best_median_and_worst(psnrs, expected):
    assert {role: clip.key for role, clip in result_of(psnrs).chosen().items()} == expected


def test_other_clips_shown_are_the_same_for_every_model():
    first, second = (result_of(psnrs) for psnrs in ([20, 10, 30, 25, 15, 24], [10, 20, 25, 30, 24, 15]))
    others = [{clip.key for clip in result.shown(3).values()} for result in (first, second)]
    assert {"c0", "c2", "c5"} <= others[0] & others[1]
    assert first.shown(0) == first.chosen()
    assert len(first.shown(100)) == 6


def test_no_clip_and_a_clip_met_twice_are_refused():
    clip = result_of([20]).clips[0]
    with pytest.raises(UserError, match="No clip was evaluated"):
        once_each([])
    with pytest.raises(UserError, match="c0 was evaluated twice"):
        once_each([clip, clip])


def test_a_reconstruction_that_is_not_finite_is_refused():
    with pytest.raises(UserError, match="clip-00 is not finite"):
        evaluate(make_clips(1), Dimmed(factor=float("nan")))


def test_a_model_without_latents_can_be_evaluated():
    class Other(nn.Module):
        time_factor, space_factor = 4, 8

        def forward(self, clip, sample_posterior):
            return SimpleNamespace(reconstruction=clip * 0.5, latents=None)

    result = evaluate(make_clips(1), Other())
    assert "outlier_rate" not in result.metrics()
    assert "(4x8x8 down and up" in verdict(result)
    # A baseline on the model's own grid: half as coarse in time, it keeps more of the noise than one of 8x8x8.
    assert result.trilinear()["psnr"]["mean"] > evaluate(make_clips(1)).trilinear()["psnr"]["mean"]


class Brightness:
    """A metric of the set: how much darker the reconstructions are on average, with the number of clips."""

    def __call__(self, original, reconstruction, fps):
        assert original.shape[1:] == (16, 24, 3)
        assert fps == 25.0
        return original.float().mean().item() - reconstruction.float().mean().item()

    def compute(self, kept):
        if len(kept) < 3:
            raise NotMeasured(f"{len(kept)} clips are too few")
        return {"mean": sum(kept) / len(kept), "ci95": None, "clips": len(kept), "kept": list(kept)}


def largest_error(original, reconstruction):
    return (original.int() - reconstruction.int()).abs().max()


def only_long_clips(original, reconstruction):
    if len(original) < 16:
        raise NotMeasured("a clip is shorter than 16 frames")
    return 1.0


OWN = {
    "largest": Metric(label="largest error", higher_is_better=False, digits=0, scope="clip", function=largest_error),
    "darker": Metric(label="darker by", scope="set", function=Brightness(), needs=["fps"]),
    "long": Metric(label="long", scope="clip", function=only_long_clips),
}


def test_a_metric_of_clips_and_one_of_the_set():
    clips = make_clips(3)
    result = evaluate(clips, metrics=OWN)
    assert list(result.metrics()) == ["psnr", "largest", "darker", "long"], "PSNR is what clips are ranked by"
    # A tenth less contrast about grey: the value 255 becomes 242, with rounding.
    assert result.metrics()["largest"]["mean"] == 13.0
    assert result.clips[0].model["largest"] == 13.0
    darker = result.metrics()["darker"]
    of_clips = [  # the levels' mean in float64, before and after
        float(
            np.mean(frames.double().numpy())
            - np.mean(np.rint((frames.double().numpy() / 127.5 - 1) * 0.9 * 127.5 + 127.5))
        )
        for frames in clips.values()
    ]
    assert darker == {"mean": darker["mean"], "ci95": None, "clips": 3, "kept": pytest.approx(of_clips, abs=1e-2)}
    assert darker["mean"] == pytest.approx(np.mean(of_clips), abs=1e-2)
    assert "darker" not in result.clips[0].model


def test_what_cannot_be_measured_is_null_with_the_reason():
    result = evaluate(make_clips(2), metrics=OWN)
    null = {"mean": None, "ci95": None}
    assert result.metrics()["darker"] == {**null, "reason": "2 clips are too few"}
    for values in (result.metrics(), result.trilinear()):
        assert values["long"] == {**null, "reason": "a clip is shorter than 16 frames"}, "not the mean of the others"
    assert all("long" not in clip.model for clip in result.clips)


def test_chosen_clips_come_back_as_frames():
    clips = make_clips(5)
    result, videos = evaluate_model(quiet_trainer(), Dimmed(), loader(clips), lambda keys: loader(clips, keys))
    assert list(videos) == ["best", "median", "worst"]
    for role, clip in result.chosen().items():
        assert torch.equal(videos[role].original, clips[clip.key])
        assert psnr(videos[role].original, videos[role].reconstruction).mean().item() == pytest.approx(
            clip.model["psnr"], abs=1e-3
        )


TWO_PROCESSES = """
import json, sys, lightning as L, torch.distributed as dist
sys.path[:0] = {paths!r}
from torch.utils.data import DataLoader, IterableDataset
from test_protocol import OWN, Dimmed, batches, make_clips
from tae.evaluation.protocol import evaluate_model, gather

class Share(IterableDataset):
    def __init__(self, clips, keys):
        self.clips, self.keys = clips, sorted(keys)
    def __iter__(self):
        return iter(batches(self.clips, self.keys)[dist.get_rank()::dist.get_world_size()])

trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False,
                    enable_progress_bar=False, enable_model_summary=False)
for count in {counts}:
    clips = make_clips(count)
    load = lambda keys: DataLoader(Share(clips, keys), batch_size=None)
    result, videos = evaluate_model(trainer, Dimmed(), load(clips), load, OWN, about_latents=True)
    ranks = gather([dist.get_rank()])
    if trainer.is_global_zero:
        sums = {{role: int(video.reconstruction.long().sum()) for role, video in videos.items()}}
        keys = [clip.key for clip in result.clips]
        print("RESULT" + json.dumps([keys, result.metrics(), result.trilinear(), sums, ranks, result.latents]))
"""


@pytest.mark.slow
def test_two_processes_give_the_result_of_one(tmp_path):
    """An odd number of clips, and a single one, which leaves a process without any; chosen clips come from both."""
    counts = [5, 1]
    script = tmp_path / "run.py"
    script.write_text(TWO_PROCESSES.format(paths=[path for path in sys.path if path], counts=counts))
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert len(results) == len(counts)
    for count, (keys, metrics, trilinear, sums, ranks, latents) in zip(counts, results, strict=True):
        clips = make_clips(count)
        one, videos = evaluate_model(
            quiet_trainer(),
            Dimmed(),
            loader(clips),
            lambda keys, clips=clips: loader(clips, keys),
            OWN,
            about_latents=True,
        )
        assert keys == sorted(clips)
        assert ranks == [0, 1]
        assert sums == {role: int(video.reconstruction.long().sum()) for role, video in videos.items()}
        assert (metrics, trilinear) == (one.metrics(), one.trilinear())
        assert latents["clips"] == count
        assert latents["mean"] == pytest.approx(one.latents["mean"], abs=1e-12)  # float64, summed in another order
        assert latents["effective_rank"] == pytest.approx(one.latents["effective_rank"], rel=1e-9)


class DimsImages(Dimmed):
    """Another factor for clips of one frame."""

    def forward(self, clip, sample_posterior):
        is_image = clip.shape[2] == 1
        return SimpleNamespace(reconstruction=clip * 0.5, latents=clip) if is_image else super().forward(clip, False)


def test_every_eighth_frame_is_also_decoded_as_an_image():
    clips = make_clips(2, lengths=(17,))
    for clip in evaluate(clips, DimsImages(), {"image_psnr": BUNDLED_METRICS["image_psnr"]}).clips:
        frames = clips[clip.key][::8]
        halved = clip_to_frames(torch.from_numpy(frames.numpy() / 127.5 - 1).movedim(-1, 0)[None] * 0.5)[0]
        assert clip.model["image_psnr"] == pytest.approx(psnr(frames, halved).mean().item(), abs=0.01)
        assert clip.model["image_psnr"] < clip.model["psnr"]
        assert "image_psnr" not in clip.trilinear


def test_metrics_beyond_the_first_protocol_leave_its_numbers_alone():
    clips = make_clips(3)
    more = {name: BUNDLED_METRICS[name] for name in ("tpsnr", "flicker", "psnr_phase")}
    first, second = evaluate(clips), evaluate(clips, metrics={**METRICS, **more})
    assert second.metrics().keys() - first.metrics().keys() == {"tpsnr", "flicker", "psnr_phase"}
    for name in first.metrics():
        assert second.metrics()[name] == first.metrics()[name]
        assert second.trilinear().get(name) == first.trilinear().get(name)
    assert len(second.metrics()["psnr_phase"]["phases"]) == 8
