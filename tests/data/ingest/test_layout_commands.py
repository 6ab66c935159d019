"""The commands of docs/layouts.md on samples of the layouts."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from data.ingest.run import prepare_shards
from tests.documented import COMMANDS, CONF, Command
from tests.fakes.killed_writers import one_after_the_other

LAYOUTS = [command for command in COMMANDS if command.page == "docs/layouts.md" and "films" not in command.text]
CAPTIONED = {"captions", "huggingface", "finetrainers", "opensora", "openvid", "webvid", "something", "panda70m"}


@pytest.mark.slow
@pytest.mark.parametrize("command", LAYOUTS, ids=lambda command: command.text.rpartition("/")[2])
def test_the_command_of_a_layout_prepares_it(
    command: Command, shared_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = shared_clips.parent / "layouts"
    if not samples.is_dir():
        pytest.skip(f"{samples} is not there")
    name = command.text.rpartition("/")[2]
    monkeypatch.chdir(samples)
    monkeypatch.setattr("data.ingest.pipeline.run_isolated", one_after_the_other)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        prepare_shards(compose("prepare", [*command.overrides, f"output={tmp_path / 'out'}"]))
    indexes: list[dict[str, Any]] = [json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/index.json")]
    assert sum(shard["samples"] for index in indexes for shard in index["shards"]) > 0
    assert all(("caption" in index.get("columns", {})) == (name in CAPTIONED) for index in indexes)
    with (tmp_path / "out" / "rejected.csv").open() as file:
        reasons = {row["reason"] for row in csv.DictReader(file)}
    allowed = ("not a video by its extension", "not a numbered picture", "read for the rate", "not in the lists")
    assert [reason for reason in reasons if not reason.startswith(allowed)] == []
