"""What a broken file can do to the process that checks it. Imports nothing heavy: a fresh process starts with this."""

import os
import time
from pathlib import Path


def hang_or_die(path: Path) -> str:
    """Sleep, end the process or raise where the file's name says so."""
    if path.name == "hangs":
        time.sleep(60)
    if path.name == "dies":
        os._exit(7)
    if path.name == "raises":
        raise ZeroDivisionError(path.name)
    return "checked"
