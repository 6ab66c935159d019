"""Named protocols of published tables: what they fix, their rows, and how far a measurement is from them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PublishedTable:
    """The protocol of a published table, and its rows.

    Args:
        source: who measured.
        num_clips: of the test set.
        split: what the recipe of its shards has to say.
        data: settings of the window and its size, by the names under `data` in metrics.json.
        metric: the one that the rows have.
        rows: {autoencoder: value}.
    """

    source: str
    num_clips: int
    split: str
    data: Mapping[str, Any]
    metric: str
    rows: Mapping[str, float]

    def departures(self, document: Mapping[str, Any]) -> list[str]:
        """What of a metrics.json is not as the table was made; nothing where its numbers stand beside the rows."""
        data = document["data"]
        found = [
            f"{name} is {data.get(name)}, there {value}" for name, value in self.data.items() if data.get(name) != value
        ]
        if self.split not in data["split"]:
            found.append(f"the clips are {data['split']}, there those of {self.split}")
        if document["num_clips"] != self.num_clips:
            found.append(f"{document['num_clips']:,} clips, there {self.num_clips:,}")
        if data.get("posterior") != "sampled":
            found.append("the posterior's mode is decoded, there a sample")
        return found

    def beside(self, document: Mapping[str, Any]) -> str:
        """In words, a measurement's value beside the rows, and whether they compare."""
        value = document["metrics"].get(self.metric, {}).get("mean")
        ours = "not measured" if value is None else f"{value:.2f} dB"
        rows = ", ".join(f"{name} {number:.2f}" for name, number in self.rows.items())
        text = f"Float PSNR {ours}; published by {self.source}: {rows}."
        departures = self.departures(document)
        return f"{text} The two do not compare: {'; '.join(departures)}." if departures else text


PUBLISHED_TABLES = {
    "ucf101-17": PublishedTable(
        source="Turbo-VAED (arXiv 2508.09136)",
        num_clips=3783,
        split="split official1",
        data={
            "num_frames": 17,
            "frame_stride": 1,
            "resolution": 256,
            "eval_window": "first",
            "interpolation": "bilinear",
        },
        metric="psnr_float",
        rows={"HunyuanVideo": 36.48, "CogVideoX": 36.23, "Video DC-AE": 34.94, "LTX": 32.40},
    )
}
