"""Tables and contact sheets of shards."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig
from PIL import Image, ImageDraw, ImageFont, ImageOps
from rich.table import Table

from data.decode import DecodeError, choose_reader, read_frames
from data.ingest.verification import find_folders, named_damage, read_sample_metadata, shards_of
from data.shards.format import media_of
from data.shards.metadata import read_metadata
from data.shards.reader import open_samples
from tae.runtime.console import plain_console
from tae.runtime.errors import UserError
from tae.runtime.paths import to_path
from tae.runtime.schema import check_config
from tae.runtime.settings import Inspect

COMMON = 4  # of the values of a column this many are named
TILE = (240, 180)  # pixels of a picture in the contact sheet
CAPTION_HEIGHT = 16  # pixels of the line below it
SHEET_COLUMNS = 6


def samples_table(folders: Mapping[str, Sequence[Mapping[str, Any]]]) -> Table:
    """A column for each folder's samples."""
    table = Table("", *folders, title="in the shards")
    rows = {name: describe_samples(samples) for name, samples in folders.items()}
    for field in next(iter(rows.values())):
        table.add_row(field, *(row[field] for row in rows.values()))
    return table


def describe_samples(samples: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a column says about samples, given by their metadata."""
    frames = [sample["num_frames"] for sample in samples]
    seconds = [sample["num_frames"] / sample["fps"] if sample["fps"] else 0.0 for sample in samples]  # 0: an image
    return {
        "clips": str(len(samples)),
        "frames": f"{sum(frames):,}",
        "hours": f"{sum(seconds) / 3600:.2f}",
        "frames of a clip": _range(frames, "d"),
        "seconds of a clip": _range(seconds, ".1f"),
        "sizes": _most_common(f"{sample.get('width', '?')}x{sample.get('height', '?')}" for sample in samples),
        "frames per second": _most_common(f"{sample['fps']:.4g}" for sample in samples),
        "codecs": _most_common(str(sample.get("codec", "?")) for sample in samples),
        "labels": _most_common(str(sample.get("label") or "none") for sample in samples),
        "scenes (groups)": str(len({sample.get("group") for sample in samples})),
        "read from the start": str(sum(not sample.get("seekable", True) for sample in samples)),
    }


def _range(values: Sequence[float], form: str) -> str:
    if not values:
        return ""
    return f"{min(values):{form}} to {max(values):{form}}, median {sorted(values)[len(values) // 2]:{form}}"


def _most_common(values: Iterable[str]) -> str:
    counts = Counter(values)
    named = [f"{value} ({number})" for value, number in counts.most_common(COMMON)]
    return "\n".join(named + [f"and {len(counts) - COMMON} others"] * (len(counts) > COMMON))


def contact_sheet(folder: Path, clips: int) -> Image.Image:
    """The middle frames of up to `clips` samples, spread evenly over a folder of shards, with their keys.

    Raises:
        UserError: a shard cannot be read, or has none of them.
    """
    shards = shards_of(folder)
    keys = [(shard, key) for shard in shards for key in shard.frames]
    chosen = [keys[i] for i in np.linspace(0, len(keys) - 1, min(clips, len(keys))).round().astype(int)]
    tiles: list[Image.Image] = []
    for shard in shards:
        if wanted := {key for owner, key in chosen if owner.url == shard.url}:
            with named_damage(shard), open_samples(shard, wanted) as samples:
                tiles += [
                    _tile(s, shard.frames[s["__key__"]], shard.known.get(s["__key__"], (0, ""))[1]) for s in samples
                ]
    if not tiles:
        raise UserError(
            f"{folder}: no sample that the index lists is in the shards. See python -m data.verify shards={folder}"
        )
    width, height = TILE[0], TILE[1] + CAPTION_HEIGHT
    sheet = Image.new(
        "RGB", (width * min(SHEET_COLUMNS, len(tiles)), height * -(-len(tiles) // SHEET_COLUMNS)), "white"
    )
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (width * (number % SHEET_COLUMNS), height * (number // SHEET_COLUMNS)))
    return sheet


def _tile(sample: Mapping[str, Any], num_frames: int, known: str) -> Image.Image:
    """A sample's middle frame with its key; `known` is its reader by the index."""
    tile = Image.new("RGB", (TILE[0], TILE[1] + CAPTION_HEIGHT), "white")
    try:
        (video,) = media_of(sample)
        metadata = read_metadata(sample)
        seekable, reader = metadata.get("seekable", True), choose_reader("auto", known or metadata.get("reader", ""))
        image = ImageOps.contain(Image.fromarray(read_frames(video, [num_frames // 2], seekable, reader)[0]), TILE)
        tile.paste(image, ((TILE[0] - image.width) // 2, (TILE[1] - image.height) // 2))
        caption = sample["__key__"]
    except (DecodeError, ValueError) as error:
        caption = f"{sample['__key__']}: {error}"
    font = ImageFont.load_default(11)
    while font.getlength(caption) > TILE[0] - 4:  # the end of a key tells more than its middle
        caption = f"{caption[: len(caption) // 2 - 2]}…{caption[len(caption) // 2 + 1 :]}"
    ImageDraw.Draw(tile).text((2, TILE[1] + 1), caption, "black", font)
    return tile


def inspect_shards(cfg: DictConfig) -> None:
    """Print the table and write a contact sheet for each folder of `cfg.shards`."""
    check_config(cfg, Inspect)
    folders = [folder for folder in find_folders(to_path(cfg.shards)) if shards_of(folder)]
    if not folders:
        raise UserError(f"shards={cfg.shards}: the index lists no shard.")
    console = plain_console()
    samples = {folder.name: [facts for _, facts in read_sample_metadata(shards_of(folder))] for folder in folders}
    console.print(samples_table(samples))
    for folder in folders:
        path = to_path(cfg.sheets) / f"{folder.name}.png"
        sheet = contact_sheet(folder, cfg.clips)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sheet.save(path)
        except OSError as error:
            raise UserError(f"sheets={cfg.sheets} cannot be written: {error}. Choose another folder.") from error
        console.print(f"{path}: middle frames", soft_wrap=True)
