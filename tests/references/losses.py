"""The objective's terms as slow float64 loops, from the formulas alone."""

import numpy as np


def kl_by_loops(mean: np.ndarray, logvar: np.ndarray, clip_values: int) -> float:
    total = 0.0
    for m, lv in zip(mean.ravel(), logvar.ravel(), strict=True):
        total += (m * m + np.exp(lv) - 1.0 - lv) / 2.0
    return total / clip_values


def opl_by_loops(latents: np.ndarray, r: float) -> tuple[float, float]:
    """Penalty and share of positions beyond r, of latents (b, c, t, h, w)."""
    b, c, t, h, w = latents.shape
    frame_penalties, outliers = [], 0
    for n in range(b):
        for k in range(t):
            z = latents[n, :, k]
            mean = [z[i].sum() / (h * w) for i in range(c)]
            std = [np.sqrt(((z[i] - mean[i]) ** 2).sum() / (h * w)) for i in range(c)]
            allowed = r * np.sqrt(sum(s * s for s in std))
            penalty = 0.0
            for y in range(h):
                for x in range(w):
                    distance = np.sqrt(sum((z[i, y, x] - mean[i]) ** 2 for i in range(c)))
                    penalty += max(distance - allowed, 0.0)
                    outliers += distance > allowed
            frame_penalties.append(penalty / (h * w))
    return float(np.mean(frame_penalties)), outliers / (b * t * h * w)
