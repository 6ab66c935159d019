"""The latents report of an evaluation, with stand-in models."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tae.evaluation.protocol import evaluate_model
from tae.model.frame_conversion import frames_to_clip
from tae.model.posterior import DiagonalGaussian
from tests.tae.evaluation.test_protocol import Dimmed, loader, make_clips, pytestmark, quiet_trainer

__all__ = ["pytestmark"]


class Encodes(Dimmed):
    """With the two halves that the latents report wants to change things between."""

    def encode(self, clip):
        mean = nn.functional.avg_pool3d(clip[:, :, ::8], (1, 8, 8))
        return DiagonalGaussian(mean, torch.full_like(mean, -2.0))

    def decode(self, latents, num_frames, size):
        return nn.functional.interpolate(latents, scale_factor=8)[:, :, :num_frames, : size[0], : size[1]]

    def forward(self, clip, sample_posterior):
        posterior = self.encode(clip)
        clip = self.decode(posterior.mode(), clip.shape[2], clip.shape[3:])
        return SimpleNamespace(reconstruction=clip, latents=posterior.mode(), posterior=posterior)


def test_the_latents_report_is_of_all_clips_and_probes_one_of_eight():
    clips = make_clips(17, lengths=(9,))
    result, _ = evaluate_model(
        quiet_trainer(), Encodes(), loader(clips), lambda keys: loader(clips, keys), about_latents=True
    )
    latents = torch.cat([Encodes().encode(frames_to_clip(clip[None])).mean.flatten(2)[0] for clip in clips.values()], 1)
    report = result.latents
    # The sums are in float64, but the latents of float32 values.
    assert report["mean"] == pytest.approx(latents.mean(1).tolist(), abs=1e-6)
    assert report["posterior_std"] == pytest.approx([math.exp(-1)] * 3, rel=1e-6)
    assert report["probed"] == ["clip-00", "clip-06", "clip-12"], "evenly spaced"
    assert report["equivariance"] == pytest.approx(
        {"flip": 0, "half_size": 0, "quarter_turn": 0, "time_reversal": 0}, abs=1e-6
    )
    assert len(report["decode_noise"]["psnr"]) == len(report["decode_noise"]["scale"]) == 5


def test_without_encode_and_decode_the_report_says_what_it_lacks():
    clips = make_clips(2)
    result, _ = evaluate_model(
        quiet_trainer(), Dimmed(), loader(clips), lambda keys: loader(clips, keys), about_latents=True
    )
    assert result.latents["equivariance"] is result.latents["decode_noise"] is result.latents["posterior_std"] is None
    assert result.latents["reasons"].keys() >= {"equivariance", "decode_noise", "posterior_std"}
    result, _ = evaluate_model(quiet_trainer(), Dimmed(), loader(clips), lambda keys: loader(clips, keys))
    assert result.latents is None
