"""What an evaluation of three flat clips leaves, for the tests of its page: every frame is known by its colour."""

from pathlib import Path
from typing import Any

import torch

from tae.evaluation.page import evaluation_page, write_clips, write_page
from tae.evaluation.report import write_report
from tae.evaluation.results import ClipFrames, ClipResult, EvaluationResult
from tae.latents.probes import Probed
from tae.latents.report import latents_report
from tae.latents.sums import LatentSums

EVIL = '</script><script>window.injected = 1</script><img src=x onerror="window.injected = 1">\u2028&amp;'
FRAMES, SIZE = 8, 64
COLOURS = {0: (200, 60, 40), 1: (40, 90, 200)}  # of each run's reconstruction


def grey(frame: int) -> int:
    """The original's brightness tells its frame."""
    return 20 + 25 * frame


def flat(values: list[Any]) -> torch.Tensor:
    """Frames (t, h, w, 3) of one colour each."""
    return torch.tensor(values, dtype=torch.uint8).reshape(len(values), 1, 1, -1).expand(-1, SIZE, SIZE, 3).contiguous()


def write_run(folder: Path, run: int = 0, **setting: Any) -> Path:
    """What an evaluation of three clips leaves, of which the first has a name that no page should trust."""
    keys = [EVIL, "v_b", "v_c"]
    rows = [
        ClipResult(
            key,
            FRAMES,
            10.0,
            {"psnr": 20.0 + i * (1 + run), "ssim": 0.8 - i / 10, "outlier_rate": 0.01},
            {"psnr": 19, "ssim": 0.7},
        )
        for i, key in enumerate(keys)
    ]
    latents = torch.randn(16, 2, 8, 8, generator=torch.Generator().manual_seed(run))
    latents[:, 1, 2, 5] = 40.0
    shown = {
        name: ClipFrames(
            key, 10.0, flat([[grey(k)] * 3 for k in range(FRAMES)]), flat([COLOURS[run]] * FRAMES), latents
        )
        for name, key in zip(("worst", "median", "best"), keys, strict=True)
    }
    sums = LatentSums()
    sums.add(latents, torch.full_like(latents, 0.1), torch.rand(3, FRAMES, SIZE, SIZE))
    probed = Probed(keys[0], {"flip": 0.25}, [30.0, 29.0, 28.0, 27.0, 26.0])
    result = EvaluationResult(rows, latents=latents_report(sums, [probed]))
    document = write_report(
        folder,
        result,
        list(shown),
        checkpoint={"path": f"run {run}", "sha256": "ab" * 32},
        config={"output_dir": str(folder), "data": {"cache": f"{folder}/cache"}, **setting},
        skipped=[{"key": "v_bad", "reason": "<b>cannot</b> decode"}],
        data={
            "shards": ["a"],
            "split": "test",
            "num_frames": FRAMES,
            "frame_stride": 1,
            "resolution": SIZE,
            "precision": "32",
        },
        model={
            "class": "A",
            "input": "any",
            "time_factor": 8,
            "space_factor": 8,
            "latents": [16, 1, 8, 8],
            "compression": 96.0 / (1 + run),
        },
        linear_codec={"rate": [1 / 1536, 1 / 96, 1 / 6], "psnr": [15.0, 20.0, 28.0]},
    )
    write_page(folder, evaluation_page(document, result, write_clips(folder, shown, 8, 8)))
    return folder
