"""The latents report of encoded videos: the parts of it that need the latents alone."""

import json
import math
from pathlib import Path
from typing import Any

from tae.latents.dataset import Place, read_places
from tae.latents.file import read_window
from tae.latents.report import latents_report
from tae.latents.sums import LatentSums
from tae.runtime.files import write_text

REPORT = "latents_report.json"
REPORTED_CLIPS = 1024  # evenly spaced over the folder
MAX_LATENT_FRAMES = 64  # of each, from its middle


def write_folder_report(folder: Path) -> dict[str, Any]:
    """Read at most 1,024 clips of a finished folder, write latents_report.json beside them and return its content."""
    places, sums = read_places(folder), LatentSums()
    for place in places[:: math.ceil(len(places) / REPORTED_CLIPS)]:
        add_place(sums, place)
    report = latents_report(sums)
    write_text(folder / REPORT, json.dumps(report, indent=1, allow_nan=False) + "\n")
    return report


def add_place(sums: LatentSums, place: Place) -> None:
    """Count one clip."""
    length = min(place.num_latent_frames, MAX_LATENT_FRAMES)
    start = (place.num_latent_frames - length) // 2
    with place.shard.open("rb") as file:
        file.seek(place.metadata[0])
        metadata = json.loads(file.read(place.metadata[1]))
        windows = []
        for name in ("mean", "std"):
            file.seek(place.latents)
            windows.append(read_window(file, name, start, length).float().movedim(1, 0))
    mean, std = windows
    sums.add(mean, std, key=place.key, label=str(metadata.get("label") or ""))
