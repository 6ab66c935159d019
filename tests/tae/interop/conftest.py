from pathlib import Path

import pytest

from tests.tae.interop.trained import write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training run's folder: a checkpoint, and the metrics of its evaluation."""
    return write_run(tmp_path_factory.mktemp("run"))
