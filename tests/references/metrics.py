"""Metrics of protocol tae-eval-2 as slow float64 loops, from the formulas alone."""

import numpy as np
from scipy.linalg import sqrtm
from scipy.signal import correlate2d


def tpsnr_by_loops(original: np.ndarray, reconstruction: np.ndarray) -> float:
    values = []
    for t in range(1, len(original)):
        dx = original[t].astype(float) - original[t - 1].astype(float)
        dy = reconstruction[t].astype(float) - reconstruction[t - 1].astype(float)
        error = ((dx - dy) ** 2).mean()
        values.append(100.0 if error == 0 else min(100.0, 10 * np.log10(255.0**2 / error)))
    return float(np.mean(values))


def psnr_of_floats_by_loops(original: np.ndarray, clip: np.ndarray) -> float:
    """Mean over frames of (t, h, w, 3) uint8 against (3, t, h, w) in [-1, 1], both brought to [0, 1]."""
    values = []
    for t, frame in enumerate(original):
        total = 0.0
        for row, column, channel in np.ndindex(frame.shape):
            y = (min(max(clip[channel, t, row, column], -1.0), 1.0) + 1) / 2
            total += (frame[row, column, channel] / 255 - y) ** 2
        values.append(20 * np.log10(1 / np.sqrt(total / frame.size)))
    return float(np.mean(values))


def flicker_by_loops(original: np.ndarray, reconstruction: np.ndarray) -> float:
    x, y = original.astype(float) / 255, reconstruction.astype(float) / 255
    changes_x, changes_y = [], []
    for t in range(1, len(x)):
        for place in np.ndindex(x.shape[1:]):
            change = abs(x[t][place] - x[t - 1][place])
            if change <= 1.0001 / 255:
                changes_x.append(change)
                changes_y.append(abs(y[t][place] - y[t - 1][place]))
    return float(np.mean(changes_y) - np.mean(changes_x)) if changes_x else 0.0


def bilinear(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """The value between four pixels; outside, the nearest pixel's."""
    h, w = image.shape[:2]
    left, top = int(np.floor(x)), int(np.floor(y))
    total = np.zeros(image.shape[2])
    for row, row_weight in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, column_weight in ((left, 1 - (x - left)), (left + 1, x - left)):
            total += row_weight * column_weight * image[min(max(row, 0), h - 1), min(max(column, 0), w - 1)]
    return total


def warping_error_by_loops(y: np.ndarray, next_y: np.ndarray, forward: np.ndarray, backward: np.ndarray) -> float:
    h, w = y.shape[:2]
    errors = []
    for row in range(h):
        for column in range(w):
            flow = forward[row, column].astype(float)
            target_x, target_y = column + flow[0], row + flow[1]
            if not (0 <= target_x <= w - 1 and 0 <= target_y <= h - 1):
                continue
            back = bilinear(backward.astype(float), target_x, target_y)
            if ((flow + back) ** 2).sum() > 0.01 * ((flow**2).sum() + (back**2).sum()) + 0.5:
                continue
            warped = bilinear(next_y.astype(float), target_x, target_y)
            errors.append(np.abs(y[row, column] - warped).mean() / 255)
    return float(np.mean(errors)) if errors else 0.0


def drifting_texture(frames: int = 5, height: int = 144, width: int = 176) -> np.ndarray:
    """(frames, height, width) uint8 luma, 16 to 235: four gratings that drift together."""
    y, x = np.mgrid[:height, :width]
    gratings = [(40, 0.01, 0.017, 0), (25, 0.06, -0.03, 1), (18, 0.17, 0.11, 2), (10, 0.31, -0.23, 3)]
    made = [
        126 + sum(a * np.sin(2 * np.pi * ((x - 3 * t) * fx + (y + t) * fy) + phase) for a, fx, fy, phase in gratings)
        for t in range(frames)
    ]
    return np.stack(made).round().clip(16, 235).astype(np.uint8)


def box_blur(frames: np.ndarray, window: int) -> np.ndarray:
    """Means of windows, the border repeated: (t, h, w) to the same, float64."""
    half = window // 2
    padded = np.pad(frames.astype(float), ((0, 0), (half, half), (half, half)), mode="edge")
    h, w = frames.shape[1:]
    return np.asarray(sum(padded[:, i : i + h, j : j + w] for i in range(window) for j in range(window)) / window**2)


def luma_of_bt709(frames: np.ndarray) -> np.ndarray:
    """(t, h, w, 3) uint8 to (t, h, w) luma between 16 and 235, ITU-R BT.709."""
    red, green, blue = (frames[..., i].astype(float) / 255 for i in range(3))
    return 16 + 219 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)


def luminance_on_a_screen(value: float, peak: float, contrast: float, lux: float, reflectivity: float = 0.005) -> float:
    """cd/m2 of an sRGB value in [0, 1]: light of the screen, its black, and what it reflects of the room."""
    linear = value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
    black = peak / contrast
    return (peak - black) * linear + black + lux / np.pi * reflectivity


def frechet_by_matrix_root(x: np.ndarray, y: np.ndarray) -> float:
    """The textbook formula; the matrix root needs more samples than dimensions."""
    covariance_x, covariance_y = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(covariance_x @ covariance_y).real
    difference = x.mean(0) - y.mean(0)
    return float(difference @ difference + np.trace(covariance_x) + np.trace(covariance_y) - 2 * np.trace(root))


def ms_ssim_by_scales(x: np.ndarray, y: np.ndarray) -> float:
    """Wang, Simoncelli, Bovik 2003, of one channel in [0, 1]: windows inside the image, halved by 2x2 means."""
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    line = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2
    product = 1.0
    for scale, weight in enumerate(weights):
        mean_x, mean_y = (correlate2d(image, window, "valid") for image in (x, y))
        var_x = correlate2d(x * x, window, "valid") - mean_x**2
        var_y = correlate2d(y * y, window, "valid") - mean_y**2
        covariance = correlate2d(x * y, window, "valid") - mean_x * mean_y
        contrast = (2 * covariance + c2) / (var_x + var_y + c2)
        luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        value = (luminance * contrast).mean() if scale == len(weights) - 1 else contrast.mean()
        product *= max(value, 0.0) ** weight
        h, w = (size // 2 * 2 for size in x.shape)
        x, y = ((z[0:h:2, 0:w:2] + z[1:h:2, 0:w:2] + z[0:h:2, 1:w:2] + z[1:h:2, 1:w:2]) / 4 for z in (x, y))
    return product


def l2_pool_by_loops(image: np.ndarray) -> np.ndarray:
    """Root of the mean square under a 3x3 Hann window, every second position, zeros outside: (h, w)."""
    line = np.array([0.5, 1.0, 0.5])
    window = np.outer(line, line) / 4
    padded = np.pad(image**2, 1)
    h, w = image.shape
    out = np.zeros(((h + 1) // 2, (w + 1) // 2))
    for row, column in np.ndindex(out.shape):
        out[row, column] = np.sqrt((window * padded[2 * row : 2 * row + 3, 2 * column : 2 * column + 3]).sum() + 1e-12)
    return out


def dists_of_features(x: list[np.ndarray], y: list[np.ndarray], alpha: np.ndarray, beta: np.ndarray) -> float:
    """DISTS of one image's features, [(channels, h, w), ...], as its paper states it."""
    total, place = 0.0, 0
    for level_x, level_y in zip(x, y, strict=True):
        for channel_x, channel_y in zip(level_x, level_y, strict=True):
            mean_x, mean_y = channel_x.mean(), channel_y.mean()
            covariance = ((channel_x - mean_x) * (channel_y - mean_y)).mean()
            texture = (2 * mean_x * mean_y + 1e-6) / (mean_x**2 + mean_y**2 + 1e-6)
            structure = (2 * covariance + 1e-6) / (channel_x.var() + channel_y.var() + 1e-6)
            total += alpha[place] * texture + beta[place] * structure
            place += 1
    return 1 - total / (alpha.sum() + beta.sum())
