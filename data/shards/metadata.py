"""What a sample says of itself: its `.json`, and a caption in a `.txt`."""

from collections.abc import Mapping
from typing import Any

from data.shards.format import read_json

CAPTION = "caption"  # may be in a text file of its own


def read_metadata(sample: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a sample of anybody's shard; empty where there are none, or none that can be read."""
    try:
        metadata = read_json(sample.get("json", b"{}"))
    except ValueError:
        return {}
    return metadata if isinstance(metadata, dict) else {}


def with_caption(metadata: Mapping[str, Any], sample: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata, and as its caption the sample's text file where they have none."""
    text = {CAPTION: sample["txt"].decode(errors="replace").strip()} if "txt" in sample else {}
    return text | {name: value for name, value in metadata.items() if value is not None}
