"""Distances between sets of clips: FVD of the reconstructions against their originals."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tae.metrics.i3d import I3D, I3D_WEIGHTS, load_i3d
from tae.metrics.metric import NotMeasured, SharedOriginal

FRAMES, SIZE = 16, 224
FEWEST_CLIPS = 256
JACKKNIFE_GROUPS = 32


def frechet_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Frechet distance of the Gaussians fitted to two sets of features, in float64 with unbiased covariances.

    |m_x - m_y|^2 + tr(S_x + S_y - 2 (S_x S_y)^1/2). With centred features A, S = A' A / (n - 1), and the last trace is the
    sum of the singular values of A_x A_y' / sqrt((n_x - 1) (n_y - 1)): exact for any number of clips, where the matrix root
    of a singular product is not.

    Shapes: (n, d), (m, d) with n, m >= 2.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    mean_x, mean_y = x.mean(0), y.mean(0)
    root_x, root_y = (x - mean_x) / np.sqrt(len(x) - 1), (y - mean_y) / np.sqrt(len(y) - 1)
    common = np.linalg.svd(_short(root_x) @ _short(root_y).T, compute_uv=False).sum()
    return float(((mean_x - mean_y) ** 2).sum() + (root_x**2).sum() + (root_y**2).sum() - 2 * common)


def _short(root: np.ndarray) -> np.ndarray:
    """A matrix of at most d rows with the same root' root."""
    return np.asarray(np.linalg.qr(root, mode="r")) if len(root) > root.shape[1] else root


def jackknife(x: np.ndarray, y: np.ndarray, value: float) -> list[float]:
    """95 % interval of the Frechet distance of paired features, by leaving out groups of clips in turn."""
    groups = np.arange(len(x)) % min(JACKKNIFE_GROUPS, len(x))
    count = groups.max() + 1
    values = np.array([frechet_distance(x[groups != g], y[groups != g]) for g in range(count)])
    error = np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum())
    return [float(value - 1.96 * error), float(value + 1.96 * error)]


def i3d_input(frames: Tensor) -> Tensor:
    """What the variant `videogpt` shows to I3D: the 16 central frames, short side to 224, the central square.

    Bilinear without antialiasing, as that code has it. Shapes: (t, h, w, 3) uint8 -> (1, 3, 16, 224, 224) in [-1, 1].
    """
    start = (len(frames) - FRAMES) // 2
    clip = frames[start : start + FRAMES].permute(0, 3, 1, 2).float() / 127.5 - 1
    h, w = clip.shape[2:]
    size = (SIZE, math.ceil(w * SIZE / h)) if h <= w else (math.ceil(h * SIZE / w), SIZE)
    clip = F.interpolate(clip, size=size, mode="bilinear", align_corners=False)
    top, left = (size[0] - SIZE) // 2, (size[1] - SIZE) // 2
    return clip[:, :, top : top + SIZE, left : left + SIZE].movedim(1, 0)[None]


class RFVD(SharedOriginal):
    """FVD (Unterthiner et al., arXiv 1812.01717) of reconstructions against their originals.

    Variant `videogpt`: logits of I3D, Kinetics-400, for 16 central frames at 224x224. Others go by the same name
    (StyleGAN-V's, of another I3D's features); numbers of two variants, or of two numbers of clips, do not compare.
    `floor` is the FVD of one half of the originals against the other: nothing below it means anything.

    Args:
        fewest_clips: with fewer it is not measured: its bias, which falls with their number, is then larger than most
            differences. At least 4, since each half needs two for its covariance.
    """

    def __init__(self, fewest_clips: int = FEWEST_CLIPS) -> None:
        self.fewest_clips = max(fewest_clips, 4)
        self._network: I3D | None = None

    def check_count(self, clips: int) -> None:
        """Raises NotMeasured where there are too few."""
        if clips < self.fewest_clips:
            raise NotMeasured(f"FVD of fewer than {self.fewest_clips} clips is mostly bias, and here are {clips}")

    def of_each(self, original: Tensor, reconstructions: Sequence[Tensor]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Logits (400,) float32 of the original and of each reconstruction, (t, h, w, 3) uint8 all of them.

        Raises:
            NotMeasured: weights are missing, or the clip is too short.
        """
        if len(original) < FRAMES:
            raise NotMeasured(f"FVD takes {FRAMES} frames of a clip, these have {len(original)}")
        logits = self.features(original)
        return [(logits, self.features(reconstruction)) for reconstruction in reconstructions]

    def features(self, frames: Tensor) -> np.ndarray:
        """(t, h, w, 3) uint8 to (400,) float32 logits."""
        return self._network_on(frames.device)(i3d_input(frames))[0].float().cpu().numpy()

    def _network_on(self, device: torch.device) -> I3D:
        if self._network is None:
            if not I3D_WEIGHTS.is_here():
                raise NotMeasured(I3D_WEIGHTS.how_to_get())
            self._network = load_i3d()
        self._network = self._network.to(device)
        return self._network

    def about(self) -> dict[str, Any]:
        return {"weights": I3D_WEIGHTS.provenance(), "fewest_clips": self.fewest_clips}

    def compute(self, kept: Sequence[Any]) -> dict[str, Any]:
        self.check_count(len(kept))
        original, reconstruction = (np.stack(side) for side in zip(*kept, strict=True))
        value = frechet_distance(original, reconstruction)
        return {
            "mean": value,
            "ci95": jackknife(original, reconstruction, value),
            "floor": frechet_distance(original[::2], original[1::2]),
            "clips": len(kept),
        }
