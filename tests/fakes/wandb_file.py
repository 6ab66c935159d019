"""The records of an offline W&B run: LevelDB's log format, with the messages that the package itself defines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
FULL, FIRST, _, LAST = 1, 2, 3, 4


def read_records(path: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    content = path.read_bytes()
    assert content[:4] == b":W&B"
    position, parts = 7, b""
    while position + 7 <= len(content):
        if BLOCK - position % BLOCK < 7:  # no header fits into the rest of a block
            position += BLOCK - position % BLOCK
            continue
        length, kind = int.from_bytes(content[position + 4 : position + 6], "little"), content[position + 6]
        body = content[position + 7 : position + 7 + length]
        parts = body if kind in (FULL, FIRST) else parts + body
        position += 7 + length
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
