from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import seams
from data.drawing import draw_clip, encode_mp4
from tae.model.tiling import Windows, even_tile
from tests.references.tiling import seam_energy


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_energy_is_that_of_its_definition(dim: int) -> None:
    error = torch.randint(-9, 9, (1, 8, 9, 10, 3), generator=torch.Generator().manual_seed(0))
    expected = seam_energy(error.movedim(dim, 0).numpy(), [2, 5])
    assert seams.seam_energy(error, [2, 5], dim) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("extent", "tile", "overlap"), [(96, 32, 0), (96, 32, 16), (100, 32, 24), (384, 208, 32)])
def test_borders_are_where_windows_start_and_end(extent: int, tile: int, overlap: int) -> None:
    cutter = Windows(tile, overlap, dim=0)
    found = cutter.push(torch.arange(extent)) + cutter.flush()
    ends = {int(place) for window in found for place in (window[0], window[-1] + 1)}
    assert seams.borders(extent, tile, overlap) == sorted(ends - {0, extent})
    assert even_tile(384, 256, 32, 8) == 208


def test_what_tiles_change_is_measured_and_drawn(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(encode_mp4(draw_clip(np.random.default_rng(0), 50, 44, 72)))
    frames = seams.read_clip(tmp_path / "film.mp4", 48, short_side=40)
    assert frames.shape[:3] == (1, 48, 40)
    cases = seams.tilings(frames, 32)
    model = seams.TemporalAutoencoder.from_pretrained("tiny").eval()
    results = {name: seams.reconstruct(model, frames, tiling) for name, (tiling, _) in list(cases.items())[:2]}
    rows = [seams.row(name, frames, results["whole"], result, cases[name][1]) for name, result in results.items()]
    assert rows[0]["largest difference"] == 0
    assert rows[0]["seam energy"] is None
    assert rows[1]["largest difference"] > 0
    assert rows[1]["seam energy"] > 2  # cut hard in time
    drawn = seams.picture(frames, list(results.values()), results["whole"], 31)
    assert drawn.size == (3 * frames.shape[3] + 2 * seams.GAP, 2 * 40 + seams.GAP)
