"""Images to latents: from a folder, from our own shards and from shards of others that were indexed."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.ingest.indexing import index_shards
from data.processes.pool import Engine
from data.shards.writer import ShardWriter
from data.storage.remote import Access
from tae import TemporalAutoencoder
from tae.encode import main
from tae.model.frame_conversion import frames_to_clip
from tests.data.ingest.test_indexing import pack
from tests.tae.latents.test_encode import config, rejected_of, samples_of

PICTURES = np.random.default_rng(0).integers(0, 256, (2, 24, 40, 3), np.uint8)


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def write_source(folder: Path, kind: str) -> None:
    """Two pictures and one whose end is missing."""
    files = {f"picture{number}": png(picture) for number, picture in enumerate(PICTURES)}
    files["broken"] = files["picture0"][:500]
    if kind == "folder":
        folder.mkdir()
        for key, content in files.items():
            (folder / f"{key}.png").write_bytes(content)
    elif kind == "prepared":
        metadata = {"num_frames": 1, "fps": 0.0, "width": 40, "height": 24, "label": "noise", "sha256": ""}
        with ShardWriter(folder, "train", {}, shard_bytes=10**6) as writer:
            for key, content in files.items():
                writer.write(key, "png", content, metadata)
    else:
        pack(folder / "0.tar", [(f"{key}.png", content) for key, content in files.items()])
        index_shards([str(folder / "0.tar")], folder, False, [], Access(), 60, Engine(workers=1))


@pytest.mark.parametrize("kind", ["folder", "prepared", "of others"])
def test_images_are_clips_of_one_frame(checkpoint: Path, tmp_path: Path, kind: str) -> None:
    write_source(tmp_path / "source", kind)
    main(config(ckpt=checkpoint, source=tmp_path / "source", output=tmp_path / "latents", dtype="fp32"))
    samples = samples_of(tmp_path / "latents")
    assert set(samples) == {"picture0", "picture1"}
    if kind != "of others":  # there it is left out of the index
        ((name, reason),) = rejected_of(tmp_path / "latents").items()
        assert "broken" in name
        assert "damaged" in reason
    model = TemporalAutoencoder.from_pretrained(checkpoint)
    for number, picture in enumerate(PICTURES):
        tensors, metadata = samples[f"picture{number}"]
        with torch.no_grad():
            expected = model.encode(frames_to_clip(torch.from_numpy(picture)[None, None])).mean
        torch.testing.assert_close(tensors["mean"], expected[0].movedim(1, 0))
        found = {name: metadata[name] for name in ("num_frames", "fps", "height", "width")}
        assert found == {"num_frames": 1, "fps": 0.0, "height": 24, "width": 40}
