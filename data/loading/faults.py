"""Clips that could not be read or decoded: counted, named in a file, and the end of a training that loses too many."""

import json
import math
import zlib
from base64 import b64decode, b64encode
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tae.runtime.errors import UserError

JUDGED_FROM = 1000  # clips: before that one broken file would be a large share; also the length of the recent past
FAILURE = np.dtype([("age", "<u2"), ("shard", "<u4")])  # as it is saved; an age is below JUDGED_FROM
CHANCE = 6.0  # standard deviations by which the recent past may exceed the allowed share


@dataclass(frozen=True)
class FaultPolicy:
    """What clips may cost.

    Args:
        max_skipped: share of clips that may fail before training stops.
        output_dir: where `skipped.jsonl` is written.
        decode_timeout: seconds that a worker process may take over one clip.
    """

    max_skipped: float
    output_dir: Path
    decode_timeout: float = 60.0

    @property
    def file(self) -> Path:
        return self.output_dir / "skipped.jsonl"


class FaultCount:
    """How many of a training's clips failed, in all and in the recent past; of bounded size, so that it can be saved."""

    def __init__(self, split: str, policy: FaultPolicy) -> None:
        self.split = split
        self.policy = policy
        self.taken = 0
        self.failed = 0
        self._recent: deque[tuple[int, int]] = deque()  # (place among the taken clips, shard) of each failure

    def add(self, good: int, faults: Sequence[dict[str, str]]) -> None:
        """Count clips that were taken together, and name the failed ones in the file."""
        self._recent += ((place, _number(fault["shard"])) for place, fault in enumerate(faults, self.taken + good + 1))
        self.taken += good + len(faults)
        self.failed += len(faults)
        while self._recent and self._recent[0][0] <= self.taken - JUDGED_FROM:
            self._recent.popleft()
        if faults:
            self.policy.output_dir.mkdir(parents=True, exist_ok=True)
            with self.policy.file.open("a") as file:
                file.writelines(json.dumps({"split": self.split} | fault) + "\n" for fault in faults)

    def check(self) -> None:
        """Stop a training that would go on with too little of its data.

        Raises:
            UserError: more of all clips failed than is allowed, or far more of the last ones.
        """
        if self.taken < JUDGED_FROM:
            return
        allowed = self.policy.max_skipped
        what_to_do = (
            f"data.max_skipped allows {allowed:.1%}. The reasons are in {self.policy.file}: prepare the data again without "
            "these files, or allow more."
        )
        if self.failed > allowed * self.taken:
            raise UserError(
                f"{self.failed} of {self.taken} clips of {self.split} could not be decoded "
                f"({self.failed / self.taken:.1%}); {what_to_do}"
            )
        # One damaged shard is a single fault, however many clips it holds; an outage hits the next one as well.
        by_shard = Counter(shard for _, shard in self._recent)
        recent = len(self._recent) - max(by_shard.values(), default=0)
        expected = allowed * JUDGED_FROM
        if len(by_shard) > 1 and recent > expected + CHANCE * math.sqrt(expected):
            raise UserError(
                f"{len(self._recent)} of the last {JUDGED_FROM} clips of {self.split} could not be decoded, from "
                f"{len(by_shard)} shards; {what_to_do}"
            )

    def state_dict(self) -> dict[str, Any]:
        """Plain values; the failures of the recent past, a thousand at most, as one short text."""
        recent = np.array([(self.taken - place, shard) for place, shard in self._recent], FAILURE)
        return {"taken": self.taken, "failed": self.failed, "recent": b64encode(recent.tobytes()).decode()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken, self.failed = state["taken"], state["failed"]
        if isinstance(state["recent"], str):
            recent = np.frombuffer(b64decode(state["recent"]), FAILURE).tolist()
            self._recent = deque((self.taken - age, shard) for age, shard in recent)
        else:  # of a checkpoint of version 0.2
            self._recent = deque((place, _number(shard)) for place, shard in state["recent"])


def _number(shard: str) -> int:
    """A number for a shard's address: two shards of a thousand hardly have one."""
    return zlib.crc32(shard.encode())
