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


def wavelet_by_loops(error: np.ndarray, levels: int) -> float:
    """Mean over levels and bands of mean |coefficients|, of an error (b, c, t, h, w); each band by its own signs."""
    low, means = error, []
    for _ in range(levels):
        low = np.pad(low, [(0, 0), (0, 0), *((0, extent % 2) for extent in low.shape[2:])], mode="edge")
        b, c, t, h, w = (extent // (1 if i < 2 else 2) for i, extent in enumerate(low.shape))
        bands = np.zeros((2, 2, 2, b, c, t, h, w))
        for st, sy, sx in np.ndindex(2, 2, 2):
            for k, y, x in np.ndindex(t, h, w):
                for dk, dy, dx in np.ndindex(2, 2, 2):
                    sign = (-1) ** (st * dk + sy * dy + sx * dx)
                    bands[st, sy, sx, :, :, k, y, x] += sign * low[:, :, 2 * k + dk, 2 * y + dy, 2 * x + dx] / 8**0.5
        means += [np.abs(bands[index]).mean() for index in np.ndindex(2, 2, 2)]
        low = bands[0, 0, 0]
    return float(np.mean(means))


def local_correlation_by_loops(latents: np.ndarray) -> np.ndarray:
    """1 - mean variance in 2x2x2 windows / variance of all, of each channel of latents (b, c, t, h, w) of even sizes."""
    found = []
    for channel in latents.swapaxes(0, 1):
        b, t, h, w = channel.shape
        inside = [
            channel[n, k : k + 2, y : y + 2, x : x + 2].var()
            for n in range(b)
            for k in range(0, t, 2)
            for y in range(0, h, 2)
            for x in range(0, w, 2)
        ]
        found.append(1 - np.mean(inside) / channel.var())
    return np.array(found)


def area_by_loops(values: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Averages over areas along an axis: each new value by fine sampling of what it covers."""
    old, fine = values.shape[axis], 720  # a multiple of all sizes that are tried
    sampled = np.repeat(values, fine // old, axis=axis)
    parts = np.split(sampled, size, axis=axis)
    return np.concatenate([part.mean(axis=axis, keepdims=True) for part in parts], axis=axis)


def spectrum_by_loops(latents: np.ndarray, pictures: np.ndarray, delta: float) -> float:
    """KL of the bands' shares of energy, of latents and of pictures on the same grid (b, c, t, h, w)."""

    def shares(values: np.ndarray, power: float) -> np.ndarray:
        b, c, t, h, w = values.shape
        found = np.zeros((c, 8))
        for n, k, channel in np.ndindex(b, t, c):
            frame = values[n, channel, k]
            for u, v in np.ndindex(h, w):
                if u + v == 0:
                    continue
                basis = np.outer(cosine(h, u), cosine(w, v))
                frequency = (u + v) / (h + w - 2)
                found[channel, int(np.ceil(8 * frequency - 1e-9)) - 1] += (frame * basis).sum() ** 2 * frequency**power
        return (found / found.sum(axis=1, keepdims=True)).mean(axis=0)

    p, q = shares(pictures, delta), shares(latents, 0.0)
    return float(sum(a * np.log(a / max(b, 1e-8)) for a, b in zip(p, q, strict=True) if a > 1e-8))


def cosine(n: int, u: int) -> np.ndarray:
    """Row u of the orthonormal DCT-II."""
    return np.cos(np.pi * (2 * np.arange(n) + 1) * u / (2 * n)) * np.sqrt((1 if u == 0 else 2) / n)
