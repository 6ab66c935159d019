"""The memory of a preparation, so that the same command resumes where it stopped.

`OUTPUT/.prepare/` holds the settings of the run, a hash of its plan, the buckets (`data.ingest.bucket`), which are their own
record of what is done, a lock, and at the end the result.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from tae.runtime.errors import UserError
from tae.runtime.files import check_empty, remove_leftovers, write_text

FOLDER = ".prepare"
FORMAT = 2  # of this folder; in the first one all files were checked before any was written


class Journal:
    """The folder of a preparation, for one process at a time. Use as a context.

    Args:
        output: the folder of the shards.
        settings: what decides the shards: an output is resumed only under the same ones.

    Raises:
        UserError: the output holds something else, was begun with other settings or by an earlier version, is being
            written by another process, or cannot be written.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        self.folder = output / FOLDER
        self.buckets = self.folder / "buckets"
        self._output = output
        self._settings = {"format": FORMAT} | dict(settings)
        self._lock = FileLock(self.folder / "lock")

    def __enter__(self) -> "Journal":
        if not self.folder.is_dir():
            check_empty(self._output)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise UserError(
                f"output={self._output} is being written by another process. Wait for it, or choose another folder."
            ) from error
        try:
            for folder in (self._output, self.folder):
                remove_leftovers(folder)
            self._compare_settings()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._lock.release()

    def settle(self, digest: str) -> None:
        """Before the first file is read: from now on which files the source has is settled.

        Raises:
            UserError: it was settled otherwise before, and files have been written since.
        """
        path = self.folder / "plan"
        if path.exists() and path.read_text(encoding="utf-8") != digest:
            if self.is_published or any(self.buckets.glob("*.tar")):
                raise UserError(
                    f"The source has changed since output={self._output} was begun (files, their sizes or times). "
                    "Remove the output folder or choose another one."
                )
            self.forget()
        write_text(path, digest)
        if not self.is_published:
            self.buckets.mkdir(exist_ok=True)

    def forget(self) -> None:
        """Remove what was checked: the next run begins from the start."""
        shutil.rmtree(self.buckets, ignore_errors=True)

    @property
    def is_published(self) -> bool:
        """Whether shards have begun to move to their final places."""
        return (self.folder / "published").exists()

    def publish(self) -> None:
        """From now on nothing is checked or left out any more."""
        write_text(self.folder / "published", "")

    def read_result(self) -> dict[str, int] | None:
        """The clips of each split, where all is done."""
        path = self.folder / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def end(self, accepted: Mapping[str, int]) -> None:
        """All is done: remember that, and remove the rest."""
        write_text(self.folder / "result.json", json.dumps(dict(accepted)))
        self.forget()

    def _compare_settings(self) -> None:
        path = self.folder / "settings.json"
        if not path.exists():
            write_text(path, json.dumps(self._settings, indent=1) + "\n")
            return
        before = json.loads(path.read_text(encoding="utf-8"))
        if before.get("format") != FORMAT:
            raise UserError(
                f"output={self._output} was begun by an earlier version of data.prepare, which wrote in another way. "
                "Choose another folder, or remove this one to prepare it again; its finished shards can be trained on."
            )
        others = [name for name in self._settings | before if self._settings.get(name) != before.get(name)]
        if others:
            changes = ", ".join(f"{name}={before.get(name)} (now {self._settings.get(name)})" for name in others)
            raise UserError(
                f"output={self._output} was begun with {changes}. Repeat the command as it was to resume, "
                "or choose another folder."
            )
