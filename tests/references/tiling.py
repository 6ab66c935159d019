"""Overlap-add of tiles and the energy of seams as float64 loops."""

import numpy as np


def overlap_add_by_loops(tiles: list[np.ndarray], overlap: int) -> np.ndarray:
    """Blend tiles along their first axis, each `overlap` before the end of the last; overlap <= half a tile."""
    length = sum(len(tile) for tile in tiles) - overlap * (len(tiles) - 1)
    out = np.zeros((length, *tiles[0].shape[1:]))
    start = 0
    for k, tile in enumerate(tiles):
        for i in range(len(tile)):
            weight = 1.0
            if k > 0 and i < overlap:
                weight = (i + 1) / (overlap + 1)
            from_end = len(tile) - 1 - i
            if k < len(tiles) - 1 and from_end < overlap:
                weight = (from_end + 1) / (overlap + 1)
            out[start + i] += weight * tile[i].astype(np.float64)
        start += len(tile) - overlap
    return out


def seam_energy(error: np.ndarray, seams: list[int]) -> float:
    """How much harder an error jumps at seams than elsewhere along its first axis: a ratio of mean squared steps.

    error: tiled minus untiled; a seam s lies between slices s - 1 and s. 1 means that nothing marks the seams.
    """
    steps = [float(np.mean((error[i] - error[i - 1]).astype(np.float64) ** 2)) for i in range(1, len(error))]
    at_seams = [steps[s - 1] for s in seams]
    elsewhere = [step for i, step in enumerate(steps, start=1) if i not in seams]
    return float(np.mean(at_seams) / np.mean(elsewhere))
