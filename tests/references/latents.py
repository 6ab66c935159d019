"""The quantities of the latents report as slow float64 loops, from the formulas alone."""

import itertools
import math

import numpy as np


def dct_coefficient(signal: np.ndarray, u: int) -> float:
    """Orthonormal DCT-II of one row."""
    n = len(signal)
    scale = math.sqrt((1 if u == 0 else 2) / n)
    return scale * sum(signal[x] * math.cos(math.pi * (2 * x + 1) * u / (2 * n)) for x in range(n))


def share_above(latents: list[np.ndarray], part: float) -> float:
    """Share of spatial spectral energy above a part of the band, of clips (c, t, h, w) normalised by channel."""
    normal = normalised(latents)
    shares = []
    for channel in range(normal[0].shape[0]):
        high = total = 0.0
        for clip in normal:
            _, frames, h, w = clip.shape
            for t in range(frames):
                rows = np.array([[dct_coefficient(row, v) for v in range(w)] for row in clip[channel, t]])
                for u, v in itertools.product(range(h), range(w)):
                    energy = dct_coefficient(rows[:, v], u) ** 2
                    total += energy
                    high += energy if u + v > part * (h + w - 2) else 0.0
        shares.append(high / total)
    return float(np.mean(shares))


def share_above_in_time(latents: list[np.ndarray], part: float) -> float:
    normal = normalised(latents)
    shares = []
    for channel in range(normal[0].shape[0]):
        high = total = 0.0
        for clip in normal:
            _, frames, h, w = clip.shape
            for y, x, u in itertools.product(range(h), range(w), range(frames)):
                energy = dct_coefficient(clip[channel, :, y, x], u) ** 2
                total += energy
                high += energy if u > part * (frames - 1) else 0.0
        shares.append(high / total)
    return float(np.mean(shares))


def normalised(latents: list[np.ndarray]) -> list[np.ndarray]:
    """Each channel of mean 0 and variance 1 over all positions of all clips."""
    rows = np.concatenate([clip.reshape(len(clip), -1) for clip in latents], axis=1).astype(np.float64)
    mean, std = rows.mean(1)[:, None, None, None], rows.std(1)[:, None, None, None]
    return [(clip - mean) / std for clip in latents]


def neighbour_correlation(latents: list[np.ndarray]) -> float:
    """Mean of z_i z_j over channels and over the pairs of positions in 2x2x2 blocks, of normalised latents."""
    products = []
    for clip in normalised(latents):
        _, frames, h, w = clip.shape
        sides = [min(2, size) for size in (frames, h, w)]
        for corner in itertools.product(*(range(0, n - s + 1, s) for n, s in zip((frames, h, w), sides, strict=True))):
            places = list(itertools.product(*(range(c, c + s) for c, s in zip(corner, sides, strict=True))))
            for a, b in itertools.combinations(places, 2):
                products.append(clip[(slice(None), *a)] * clip[(slice(None), *b)])
    return float(np.mean(products))


def effective_rank(latents: list[np.ndarray]) -> float:
    """Roy & Vetterli 2007: e to the entropy of the eigenvalues' shares."""
    rows = np.concatenate([clip.reshape(len(clip), -1) for clip in latents], axis=1)
    values = np.linalg.svd(rows - rows.mean(1, keepdims=True), compute_uv=False) ** 2
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def irreducible_variance(eigenvalues: np.ndarray, steps: int = 200_000) -> float:
    """Of one value on average: the integral over t of Var(x_1 - x_0 | x_t) for a normal x_1, equation 4 of the paper, by
    the midpoint rule. For one value: x_t has variance (1 - t)^2 + t^2 l, and what x_t leaves open of v is
    1 + l - (t l - (1 - t))^2 / that."""
    t = (np.arange(steps) + 0.5) / steps
    total = 0.0
    for value in eigenvalues:
        of_state = (1 - t) ** 2 + t**2 * value
        total += (1 + value - (t * value - (1 - t)) ** 2 / of_state).mean()
    return total / len(eigenvalues)


def flip_flop(values: np.ndarray, turns: int = 200) -> np.ndarray:
    """Eigenvalues of a Kronecker covariance by loops over samples (n, c, s), with the samples' total variance."""
    values = values - values.mean(0)
    n, c, s = values.shape
    channels, positions = np.eye(c), np.eye(s)
    for _ in range(turns):
        channels = sum(z @ np.linalg.solve(positions, z.T) for z in values) / (n * s)
        positions = sum(z.T @ np.linalg.solve(channels, z) for z in values) / (n * c)
    products = np.array([a * b for a in np.linalg.eigvalsh(channels) for b in np.linalg.eigvalsh(positions)])
    return products * (values**2).sum() / (n - 1) / products.sum()


def log_spectral_distance(first: list[np.ndarray], second: list[np.ndarray], bands: int = 8) -> float:
    """Of two sets of (c, t, h, w): spatial energy by bands of (u + v) / (h + w - 2), as shares, differences in dB."""

    def shares(clips: list[np.ndarray]) -> np.ndarray:
        found = np.zeros((len(clips[0]), bands))
        for clip in clips:
            _, frames, h, w = clip.shape
            for channel, t in itertools.product(range(len(clip)), range(frames)):
                rows = np.array([[dct_coefficient(row, v) for v in range(w)] for row in clip[channel, t]])
                for u, v in itertools.product(range(h), range(w)):
                    if u + v:
                        band = math.ceil(bands * (u + v) / (h + w - 2) - 1e-9) - 1
                        found[channel, band] += dct_coefficient(rows[:, v], u) ** 2
        return (found / found.sum(1, keepdims=True)).mean(0)

    difference = 10 * np.log10(shares(first) / shares(second))
    return float(np.sqrt((difference**2).mean()))
