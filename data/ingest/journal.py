"""What an interrupted preparation has done, so that the same command resumes where it stopped.

`OUTPUT/.prepare/` holds the settings of the run, a line for every file that was checked, the clips that wait to be
written, and a lock.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from data.ingest.staging import Checked, StagedClip, remove_staged_drafts, write_whole
from tae.runtime.errors import UserError

FOLDER = ".prepare"
EARLIER = {"shuffle": False}  # settings of outputs that were begun before there was a choice


@dataclass(frozen=True)
class Origin:
    """A source file as it was when it was checked; another size or time of change means another file."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, source: Path, path: str) -> "Origin | None":
        """The file as it is now; None where there is none any more."""
        try:
            status = (source / path).stat()
        except OSError:
            return None
        return cls(path, status.st_size, status.st_mtime_ns)


class Journal:
    """The memory of a preparation, for one process at a time. Use as a context.

    Args:
        output: the folder of the shards.
        settings: what decides the shards: an output is gone on with only under the same ones.

    Raises:
        UserError: the output holds something else, was begun with other settings, is being written by another
            process, or cannot be written.
    """

    def __init__(self, output: Path, settings: dict[str, Any]) -> None:
        self.folder = output / FOLDER
        self.clips = self.folder / "clips"
        self._output = output
        self._settings = settings
        self._lock = FileLock(self.folder / "lock")
        self._checked = self.folder / "checked.jsonl"

    def __enter__(self) -> "Journal":
        if self._output.is_dir() and any(self._output.iterdir()) and not self.folder.is_dir():
            raise UserError(f"output={self._output} is not empty. Remove what is in it or choose another folder.")
        self.clips.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise UserError(
                f"output={self._output} is being written by another process. Wait for it, or choose another folder."
            ) from error
        try:
            remove_staged_drafts(self._output)
            self._compare_settings()
            self.results = self._read()
            self._file = self._checked.open("a", encoding="utf-8")
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._file.close()
        self._lock.release()

    def add(self, origin: Origin, result: Checked | str) -> None:
        """Remember what became of a file."""
        self.results[origin] = result
        outcome = {"refused": result} if isinstance(result, str) else {"accepted": result.to_json()}
        self._file.write(json.dumps(vars(origin) | outcome) + "\n")
        self._file.flush()

    def fix(self, plan: Any) -> None:
        """Before the first shard is written: from now on what is in the shards, and in which order, is settled.

        Raises:
            UserError: it differs from what was settled before.
        """
        path = self.folder / "plan"
        digest = hashlib.sha256(json.dumps(plan).encode()).hexdigest()
        if not path.exists():
            write_whole(path, digest.encode())
        elif path.read_text() != digest:
            raise UserError(
                f"The source has changed since the first shards of output={self._output} were written. "
                "Remove the output folder or choose another one."
            )

    def read(self, clip: StagedClip) -> bytes:
        """The content of a clip in the staging folder.

        Raises:
            UserError: it is not what was put there.
        """
        path = self.clips / clip.file_name
        content = path.read_bytes() if path.exists() else b""
        if hashlib.sha256(content).hexdigest() != clip.facts.sha256:
            raise UserError(
                f"{path} is missing or damaged. Remove the folder output={self._output} and prepare it again."
            )
        return content

    def discard(self, clips: Iterable[StagedClip]) -> None:
        """Remove clips that are in a finished shard from the staging folder."""
        for clip in clips:
            (self.clips / clip.file_name).unlink(missing_ok=True)

    def discard_all(self) -> None:
        """Remove the staging folder when all shards are finished."""
        shutil.rmtree(self.clips)

    def _compare_settings(self) -> None:
        path = self.folder / "settings.json"
        if not path.exists():
            write_whole(path, (json.dumps(self._settings, indent=1) + "\n").encode())
            return
        before = EARLIER | json.loads(path.read_text(encoding="utf-8"))
        others = [name for name in self._settings | before if self._settings.get(name) != before.get(name)]
        if others:
            changes = ", ".join(f"{name}={before.get(name)} (now {self._settings.get(name)})" for name in others)
            raise UserError(
                f"output={self._output} was begun with {changes}. Repeat the command as it was to resume, "
                "or choose another folder."
            )

    def _read(self) -> dict[Origin, Checked | str]:
        """The lines of earlier runs; one that was cut off in the middle is dropped, and its file checked again."""
        results: dict[Origin, Checked | str] = {}
        if not self._checked.exists():
            return results
        content = self._checked.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with self._checked.open("r+b") as file:
                file.truncate(len(whole))
        for line in whole.splitlines():
            entry = json.loads(line)
            refused, accepted = entry.pop("refused", None), entry.pop("accepted", None)
            results[Origin(**entry)] = Checked.from_json(accepted) if accepted else refused
        return results
