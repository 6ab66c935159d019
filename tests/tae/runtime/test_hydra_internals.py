"""What we replace of Hydra's private parts is there, and a config is the same with it."""

import copy
import os
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import OmegaConf

from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.hydra_internals import shorten_start


@pytest.fixture(autouse=True)
def shortened() -> None:
    shorten_start()


def composed(folder: str, name: str, *overrides: str) -> str:
    with initialize_config_dir(folder, version_base="1.3"):
        return OmegaConf.to_yaml(compose(name, overrides=list(overrides)))


def test_a_file_is_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SourcesRegistry.instance().resolve("file")
    parsed: list[str] = []

    def parse(self: object, config_path: str) -> object:
        parsed.append(config_path)
        return original(self, config_path)

    original = source.parse  # type: ignore[attr-defined]
    monkeypatch.setattr(source, "parse", parse)
    monkeypatch.setattr(source, "parsed", {})
    first = composed(CONFIG_FOLDER, "train", "output_dir=x")
    assert len(parsed) == len(set(parsed)) > 10
    assert composed(CONFIG_FOLDER, "train", "output_dir=x") == first
    assert len(parsed) == len(set(parsed))
    monkeypatch.setattr(source, "load_config", original)
    assert composed(CONFIG_FOLDER, "train", "output_dir=x") == first


def test_a_file_that_changed_is_read_again_and_a_missing_one_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: 1\n")
    assert composed(str(tmp_path), "a") == "x: 1\n"
    assert composed(str(tmp_path), "a", "x=5") == "x: 5\n"
    assert composed(str(tmp_path), "a") == "x: 1\n"  # what is given does not get into what is kept
    (tmp_path / "a.yaml").write_text("x: 2\n")
    os.utime(tmp_path / "a.yaml", (1, 1))
    assert composed(str(tmp_path), "a") == "x: 2\n"
    with pytest.raises(HydraException, match="Cannot find primary config 'b'"):
        composed(str(tmp_path), "b")


def test_hydra_may_share_its_store() -> None:
    """Commands do not let it be copied, since each group of `--help` would: what is loaded from it has to be a copy."""
    store = ConfigStore.instance()
    assert copy.deepcopy(store) is store
    assert store.load("hydra/config.yaml").node is not store.load("hydra/config.yaml").node
