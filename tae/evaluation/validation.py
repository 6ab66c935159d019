"""Metrics at each validation of a training: means over all clips of all processes, without intervals or files."""

import math
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from data.batch import Batch
from tae.evaluation.results import gather, measured, of_the_set
from tae.metrics.metric import Measured, Measurement, Metric


class Validation:
    """Collects the metrics of one validation.

    Args:
        metrics: {name: metric}.
    """

    def __init__(self, metrics: Mapping[str, Metric]) -> None:
        self.measure = Measurement(metrics)
        self._clips: list[tuple[str, int, Measured]] = []

    def add(self, batch: Batch, reconstruction: Tensor, latents: Tensor, time_factor: int) -> None:
        """Measure a batch's clips.

        Args:
            batch: of the loader.
            reconstruction: as the frames.
            latents: (b, c, t', h', w') that it was decoded from.
            time_factor: frames for each latent frame.
        """
        original = batch["frames"]
        factors = [time_factor] * len(original)
        clips = self.measure(original, reconstruction, fps=batch["fps"], latents=latents, time_factor=factors)
        self._clips += [(key, original.shape[1], clip) for key, clip in zip(batch["keys"], clips, strict=True)]

    def means(self) -> dict[str, float]:
        """{name: mean over the frames of all processes}, NaN where there was no clip; without what was not measured.

        All processes must call it together; the result does not depend on how the clips were divided among them.
        """
        reasons = dict(gather(list(self.measure.reasons.items())))
        clips = sorted(gather(self._clips), key=lambda clip: clip[0])
        frames = [num_frames for _, num_frames, _ in clips]
        means = {}
        for name, metric in self.measure.metrics.items():
            if name in reasons:
                continue
            if not clips:
                means[name] = math.nan
            elif metric.scope == "set":
                summary = {name: of_the_set(metric, [clip.kept[name] for *_, clip in clips])}
                means |= {name: value["mean"] for name, value in measured(summary).items()}
            else:
                means[name] = float(np.average([clip.values[name] for *_, clip in clips], weights=frames))
        return means
