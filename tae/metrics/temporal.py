"""Metrics of motion: what changes between frames, and what should not.

All take a clip's uint8 RGB frames (t, h, w, 3) twice, original and reconstruction.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tae.metrics.frame import psnr
from tae.metrics.metric import NotMeasured, SharedOriginal

IMAGE_STEP = 8
STILL = 1  # of 255: a value that changes by no more than this from one frame to the next does not move
OCCLUSION_SLOPE, OCCLUSION_OFFSET = 0.01, 0.5  # Sundaram, Brox, Keutzer, ECCV 2010


def tpsnr(original: Tensor, reconstruction: Tensor) -> float:
    """PSNR in dB of the differences of neighbouring frames, at most 100; the mean over the t - 1 steps.

    Frames that are wrong in the same way all along do not lower it; wrong or missing motion does. The peak is 255, as
    for `psnr`.
    """
    return tpsnr_of_steps(original, reconstruction).mean().item()


def tpsnr_of_steps(original: Tensor, reconstruction: Tensor) -> Tensor:
    """`tpsnr` of each of the t - 1 steps, (t - 1,) in dB."""
    return psnr(*(_steps(frames, "PSNR of motion") for frames in (original, reconstruction)))


def flicker(original: Tensor, reconstruction: Tensor) -> float:
    """How much more still values change in the reconstruction: mean |dy| - mean |dx| where |dx| <= 1/255, in [0, 1].

    0 where nothing of the original is still: then there is nothing that could flicker. Below 0 where a model smooths
    the camera's noise away.
    """
    dx, dy = (_steps(frames, "flicker").abs() for frames in (original, reconstruction))
    still = dx <= STILL
    return ((dy - dx) * still).sum().item() / max(int(still.sum()), 1) / 255


def flicker_of_steps(original: Tensor, reconstruction: Tensor) -> Tensor:
    """`flicker` of each of the t - 1 steps, (t - 1,) in [0, 1]; 0 where nothing is still in a step."""
    dx, dy = (_steps(frames, "flicker").abs().flatten(1) for frames in (original, reconstruction))
    still = dx <= STILL
    return ((dy - dx) * still).sum(1) / still.sum(1).clamp_min(1) / 255


class PhasePSNR:
    """PSNR by a frame's place in its latent frame: index modulo the time factor.

    Frames in the middle of a latent frame are often worse than those at its ends, seen as a pulse. The value is the gap
    between the best and the worst place, in dB; `phases` has the PSNR of each.
    """

    def __call__(self, original: Tensor, reconstruction: Tensor, *, time_factor: int) -> list[float]:
        """The mean PSNR of the clip's frames at each place."""
        values = psnr(original, reconstruction)
        if len(values) < time_factor:
            raise NotMeasured(f"clips of {len(values)} frames do not fill a latent frame of {time_factor}")
        return [values[place::time_factor].mean().item() for place in range(time_factor)]

    def compute(self, kept: Sequence[Any]) -> dict[str, Any]:
        phases = np.asarray(kept, dtype=np.float64).mean(0)
        return {"mean": float(phases.max() - phases.min()), "ci95": None, "phases": phases.tolist()}


def image_psnr(original: Tensor, reconstruction: Tensor, *, images: Tensor) -> float:
    """PSNR in dB of every 8th frame, encoded and decoded alone, as an image: a video autoencoder should still be one.

    Args:
        images: (ceil(t / 8), h, w, 3) uint8, the reconstructions of those frames as clips of one frame.
    """
    return psnr(original[::IMAGE_STEP], images).mean().item()


class Warp(SharedOriginal):
    """Mean |y_t - y_{t+1} warped to t| in [0, 1], over the positions that the original shows in both frames.

    The flow is the original's (OpenCV's DIS, preset medium, on luma), so a model is not asked whether it moves, but
    whether it moves with the original. Blur lowers it, so it belongs beside a metric of sharpness. After Lai et al., ECCV
    2018, with absolute in place of squared differences.
    """

    def of_each(self, original: Tensor, reconstructions: Sequence[Tensor]) -> list[float]:
        """Raises NotMeasured where OpenCV is not installed, or the clip has one frame."""
        flows = [flow_pair(x, next_x) for x, next_x in _pairs(_luma(original))]
        found = []
        for frames in reconstructions:
            pairs = zip(_pairs(frames.cpu().numpy()), flows, strict=True)
            found.append(float(np.mean([warping_error(*pair, *flow) for pair, flow in pairs])))
        return found


def flow_pair(x: np.ndarray, next_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Optical flow forwards and back, (h, w, 2) pixels each, of two (h, w) uint8 frames."""
    try:
        import cv2
    except ImportError as error:
        raise NotMeasured("OpenCV is not installed: pip install opencv-python") from error
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return dis.calc(x, next_x, None), dis.calc(next_x, x, None)  # type: ignore[call-overload]


def warping_error(y: np.ndarray, next_y: np.ndarray, forward: np.ndarray, backward: np.ndarray) -> float:
    """Mean absolute difference in [0, 1] of a frame and the next one brought back to it, where the flow is to be trusted.

    Shapes: (h, w, 3) uint8 twice, (h, w, 2) twice.
    """
    import cv2

    h, w = y.shape[:2]
    grid = np.stack(np.meshgrid(np.arange(w), np.arange(h)), axis=-1).astype(np.float32)
    place = grid + forward
    back = cv2.remap(backward, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
    mismatch = ((forward + back) ** 2).sum(-1)
    allowed = OCCLUSION_SLOPE * ((forward**2).sum(-1) + (back**2).sum(-1)) + OCCLUSION_OFFSET
    inside = ((place >= 0) & (place <= (w - 1, h - 1))).all(-1)
    seen = (mismatch <= allowed) & inside
    future = next_y.astype(np.float32)
    warped = cv2.remap(future, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)  # type: ignore[call-overload]
    return float(np.abs(y - warped)[seen].mean() / 255) if seen.any() else 0.0


def _steps(frames: Tensor, name: str) -> Tensor:
    """(t - 1, h, w, 3) int32 differences of neighbouring frames."""
    if len(frames) < 2:
        raise NotMeasured(f"{name} needs clips of two frames or more")
    return frames[1:].int() - frames[:-1].int()


def _pairs(frames: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    if len(frames) < 2:
        raise NotMeasured("motion compensation needs clips of two frames or more")
    return list(itertools.pairwise(frames))


def _luma(frames: Tensor) -> np.ndarray:
    """(t, h, w) uint8 luma (BT.709) of (t, h, w, 3) RGB."""
    weights = torch.tensor([0.2126, 0.7152, 0.0722], device=frames.device)
    return (frames.float() @ weights).round().byte().cpu().numpy()
