"""Time for each frame and peak memory of streaming encoding and decoding, by length and by size.

    python -m benchmarks.length --device cpu
    python -m benchmarks.length --device cuda --model sd35 --lengths 64 256 1024 4096

Frames are drawn piece by piece and thrown away piece by piece, each case in a fresh process, so that its peak memory is
its own: the allocator's on a GPU, the process' resident memory on a CPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common import DTYPES, MODELS, RESULTS, peak_resident_bytes, publish, synchronize
from tae import TemporalAutoencoder
from tae.model.frame_conversion import frames_to_clip
from tae.model.streaming import decode_stream, encode_stream
from tae.model.tiling import Tiling

PIECE = 8  # pixel frames
# The lightest model that has every part: for what streams, not for what a model costs.
FEATHER = {
    "base_channels": 4, "channel_multipliers": (1, 1, 1, 1), "encoder_blocks": 1, "decoder_blocks": 1, "norm_groups": 2,
}  # fmt: skip
SIZES = {"64": (64, 64), "256": (256, 256), "720p": (720, 1280), "1080p": (1080, 1920), "2160p": (2160, 3840)}


@dataclass(frozen=True)
class Case:
    """One measurement: what runs in its own process."""

    device: str
    model: str
    dtype: str
    num_frames: int
    size: str


def pieces(case: Case) -> Iterator[Tensor]:
    """Random clips (1, 3, at most 8, h, w), made on the device when they are asked for."""
    for start in range(0, case.num_frames, PIECE):
        count = min(PIECE, case.num_frames - start)
        shape = (1, count, *SIZES[case.size], 3)
        yield frames_to_clip(torch.randint(0, 256, shape, dtype=torch.uint8, device=case.device))


@torch.no_grad()
def measure(case: Case) -> dict[str, float]:
    """Run one case; seconds a frame and peak bytes."""
    model = TemporalAutoencoder(**(MODELS | {"feather": FEATHER})[case.model]).to(case.device).eval()
    tiling = Tiling(tile_pixels=512, overlap_pixels=64)
    autocast = torch.autocast(case.device, DTYPES[case.dtype], enabled=case.dtype != "fp32")
    with autocast:
        stream(model, replace(case, num_frames=tiling.tile_pixel_frames), tiling)  # libraries choose their kernels here
        synchronize(case.device)
        start = time.perf_counter()
        stream(model, case, tiling)
        synchronize(case.device)
    elapsed = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() if case.device == "cuda" else peak_resident_bytes()
    return {"ms/frame": 1e3 * elapsed / case.num_frames, "peak GB": peak / 1e9}


def stream(model: TemporalAutoencoder, case: Case, tiling: Tiling) -> None:
    """Encode and decode a whole video, of which nothing is kept."""
    given = 0
    latents = (posterior.mode() for posterior in encode_stream(model, pieces(case), tiling))
    for clip in decode_stream(model, latents, case.num_frames, SIZES[case.size], tiling):
        given += clip.shape[2]
    assert given == case.num_frames


def in_child(case: Case) -> dict[str, Any]:
    """`measure` in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.length", "--child", json.dumps(asdict(case))]
    # A heap that keeps what was freed would grow a little with the number of pieces, by chance.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    row = {"size": case.size, "frames": case.num_frames, **json.loads(done.stdout.splitlines()[-1])}
    print(row, flush=True)
    return row


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if cuda else "cpu")
    parser.add_argument("--model", choices=("feather", *MODELS), default="sd35" if cuda else "feather")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16" if cuda else "fp32")
    parser.add_argument("--lengths", type=int, nargs="+", default=(64, 256, 1024, 4096))
    parser.add_argument("--length-size", choices=tuple(SIZES), default="256" if cuda else "64", help="of all lengths")
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=("256", "720p", "1080p"))
    parser.add_argument("--size-frames", type=int, default=64, help="length of all sizes")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(Case(**json.loads(arguments.child)))))
        return
    common = (arguments.device, arguments.model, arguments.dtype)
    rows = [in_child(Case(*common, frames, arguments.length_size)) for frames in arguments.lengths]
    for row in rows:
        row["memory against shortest"] = row["peak GB"] / rows[0]["peak GB"]
    for size in arguments.sizes:
        row = in_child(Case(*common, arguments.size_frames, size))
        rows.append(row | {"memory against shortest": None})
    publish("length", arguments.device, {"model": arguments.model, "dtype": arguments.dtype}, rows, arguments.output)


if __name__ == "__main__":
    main()
