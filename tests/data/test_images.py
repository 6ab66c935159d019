"""Images: read as players show them, refused before memory is taken, prepared and indexed like videos of one frame."""

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data.decode import IMAGE_READER, DecodeError, choose_reader, open_video, read_frames
from data.drawing import draw_clip, encode_mp4
from data.ingest.check import check_content
from data.ingest.indexing import index_shards
from data.loading.samples import read_samples
from data.processes.pool import Engine
from data.sampling.transforms import resize
from data.sampling.types import Clip
from data.shards.index import find_shards
from data.storage.remote import Access
from tests.data.ingest.test_prepare import run

PICTURE = np.stack(np.meshgrid(np.arange(40) * 6, np.arange(30) * 8), -1).astype(np.uint8)  # (30, 40, 2)
PICTURE = np.concatenate([PICTURE, np.full((30, 40, 1), 90, np.uint8)], -1)


def saved(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""
    content = b"\x89PNG\r\n\x1a\n"
    for name, data in (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", b""),
        (b"IEND", b""),
    ):
        content += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return content


@pytest.mark.parametrize("form", ["PNG", "WEBP", "JPEG"])
def test_an_image_is_a_video_of_one_frame(form: str) -> None:
    content = saved(Image.fromarray(PICTURE), form, **({"lossless": True} if form == "WEBP" else {"quality": 100}))
    with open_video(content) as file:
        assert (len(file), file.fps, file.size) == (1, 0.0, (30, 40))
        ((_, frame),) = file.each_frame([0])
        resize(frame, (15, 20))  # torch warns, which is an error in tests, where memory cannot be written
    # JPEG at quality 100 rounds its coefficients, and halves the colours of these slow gradients.
    np.testing.assert_allclose(read_frames(content, [0, 0])[1].astype(int), PICTURE, atol=8 if form == "JPEG" else 0)
    with pytest.raises(DecodeError, match="has 1 frames, frame 1 was asked for"):
        read_frames(content, [1])


def test_pictures_are_turned_blended_and_brought_to_eight_bits() -> None:
    image = Image.fromarray(PICTURE)
    exif = Image.Exif()
    exif[0x0112] = 6  # the first row is on the right
    turned = saved(image, exif=exif)
    with open_video(turned) as file:
        assert file.size == (40, 30)
    np.testing.assert_array_equal(read_frames(turned, [0])[0], np.rot90(PICTURE, -1))
    half = np.dstack([PICTURE, np.full((30, 40), 51, np.uint8)])  # a fifth
    expected = 255 - (255 - PICTURE.astype(float)) / 5
    np.testing.assert_allclose(read_frames(saved(Image.fromarray(half)), [0])[0], expected, atol=1)
    grey = np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50
    np.testing.assert_array_equal(read_frames(saved(Image.fromarray(grey)), [0])[0][..., 2], grey // 256)
    palette = image.quantize(200)
    np.testing.assert_array_equal(read_frames(saved(palette), [0])[0], np.asarray(palette.convert("RGB")))


def test_what_is_no_picture_is_refused_in_one_sentence() -> None:
    whole = saved(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)), "JPEG")
    frames = [Image.fromarray(PICTURE), Image.fromarray(PICTURE[::-1])]
    for content, reason in (
        (bomb(60_000, 60_000), "claims"),
        (bomb(12_000, 12_000), "claims pictures of 12000x12000 pixels"),
        (bomb(9_000, 16), "claims pictures of 9000x16 pixels"),
        (whole[: len(whole) // 2], "damaged: image file is truncated"),
        (bomb(8, 8), "damaged"),
        (saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "an animation of 2 pictures"),
    ):
        found = check_content(content)
        assert isinstance(found, str)
        assert found.startswith(reason)
        assert "\n" not in found
        with pytest.raises(DecodeError):  # in the loader it costs its clip
            read_frames(content, [0])


@pytest.mark.parametrize("decoder", ["auto", "pyav", "decord"])
def test_no_choice_of_a_video_reader_takes_an_image(decoder: str) -> None:
    assert choose_reader(decoder, IMAGE_READER) == IMAGE_READER


def test_images_are_prepared_with_their_own_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "photos" / "cats"
    folder.mkdir(parents=True)
    contents = {"a.png": saved(Image.fromarray(PICTURE)), "b.JPG": saved(Image.fromarray(PICTURE), "JPEG")}
    contents["c.webp"] = saved(Image.fromarray(PICTURE), "WEBP")
    for name, content in contents.items() | {("bomb.png", bomb(60_000, 60_000)), ("film.mp4", b"x"), ("d.jpg", b"")}:
        (folder / name).write_bytes(content)
    outcome = run(tmp_path / "photos", tmp_path / "out", dataset="images", split="none")
    reasons = dict(outcome.rejected)
    assert reasons["cats/film.mp4"] == "not an image by its extension (.mp4)"
    assert reasons["cats/bomb.png"].startswith("claims")
    assert reasons["cats/d.jpg"] == "not a JPEG, PNG or WebP picture"
    (shard,) = find_shards(str(tmp_path / "out/train/*.tar"), "data.shards.train")
    samples = list(read_samples(Clip(number, key, shard) for number, key in enumerate(shard.frames)))
    assert {sample.video for sample in samples} == set(contents.values())
    assert {(s.fault, s.label, s.fps, s.reader) for s in samples} == {("", "cats", 0.0, "pillow")}
    assert set(shard.frames.values()) == {1}
    with tarfile.open(shard.url) as tar:
        assert {name.split(".")[1] for name in tar.getnames()} == {"png", "jpg", "webp", "json"}
        facts = json.loads(tar.extractfile("b.json").read())  # type: ignore[union-attr]
    assert (facts["num_frames"], facts["fps"], facts["width"], facts["codec"]) == (1, 0.0, 40, "jpeg")


def test_image_shards_of_others_are_indexed_and_previews_are_no_images(tmp_path: Path) -> None:
    """A picture beside a video is its preview; alone it is the sample."""
    video = encode_mp4(draw_clip(np.random.default_rng(0), 9, 32, 44))
    picture = saved(Image.fromarray(PICTURE), "JPEG")
    with tarfile.open(tmp_path / "00000.tar", "w") as tar:
        for name, content in {"0.jpg": picture, "1.jpg": picture, "1.mp4": video, "1.txt": b"caption"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    found = index_shards([str(tmp_path / "00000.tar")], tmp_path, False, [], Access(), 60.0, Engine(workers=1))
    assert found.samples == 2
    (shard,) = find_shards(str(tmp_path / "*.tar"), "data.shards.train")
    assert shard.frames == {"0": 1, "1": 9}
    samples = list(read_samples(Clip(number, key, shard) for number, key in enumerate(shard.frames)))
    assert [sample.video for sample in samples] == [picture, video]
    assert [sample.fault for sample in samples] == ["", ""]
