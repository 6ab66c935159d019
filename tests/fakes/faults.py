"""What a broken file can do to the process that checks it. Imports nothing heavy: a fresh process starts with this."""

import os
import time
from pathlib import Path
from typing import Any


def hang_or_die(path: Path) -> str:
    """Sleep, end the process or raise where the file's name says so."""
    if path.name == "hangs":
        time.sleep(60)
    if path.name == "dies":
        os._exit(7)
    if path.name == "raises":
        raise ZeroDivisionError(path.name)
    return "checked"


def fill_with_faults(task: Any) -> None:
    """`fill_bucket`, where checking a file is quick, but hangs or ends the process where the file's name says so."""
    from data.ingest import bucket
    from tests.fakes.killed_writers import check_nothing

    def check(video: Any, content: bytes, *_: Any) -> Any:
        hang_or_die(Path(Path(video.path).stem))
        return check_nothing(video, content)

    bucket.make_clips = check
    bucket.fill_bucket(task)
