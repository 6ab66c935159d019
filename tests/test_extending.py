"""The page "Extending": its files, written outside of the repository, are used by the commands that it shows."""

import csv
import importlib
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tae.losses import Context
from tests.fakes.warm import run_warm
from tests.reliability.tiny_run import SETTINGS

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()
RUN = [
    *(setting for setting in SETTINGS if not setting.startswith(("resume", "data.num_clips"))),
    "data.num_clips={train: 4, val: 2, test: 2}",
    "trainer.max_steps=2",
    "trainer.val_check_interval=2",
    "callbacks.videos.num_clips=0",
    "page.clips=0",
    "report.latents=false",
]


def commands(word: str) -> list[list[str]]:
    """The arguments of the page's commands that name `word`."""
    lines = re.findall(r"^PYTHONPATH=my_folder python (.*)$", PAGE, re.MULTILINE)
    return [line.split() for line in lines if word in line]


def python(folder: Path, *arguments: str) -> str:
    """Run `python ARGUMENTS`, with the folder on its path, and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = run_warm(arguments, ROOT, environment, timeout=560)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def header(path: Path) -> set[str]:
    """The columns of a CSV file."""
    return set(path.read_text().splitlines()[0].split(","))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader's own files."""
    folder = tmp_path_factory.mktemp("my_folder")
    for name, text in re.findall(r'^```python title="(\w+\.py)"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL):
        (folder / name).write_text(text)
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (folder / "experiment").mkdir()
    (folder / "experiment" / "mine.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def sweep(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs with the loss term at weight 0 and 0.5, measured by the metric too."""
    output = tmp_path_factory.mktemp("sweep")
    (arguments,) = [words for words in commands("my_losses") if "-m" in words]
    metric = next(word for words in commands("my_metrics") for word in words if "my_metrics" in word)
    python(folder, *arguments, metric, *RUN, f"data.cache_dir={output}/clips", f"output_dir={output}/sweep")
    return output / "sweep"


def motion_by_frames(clip: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """The page's loss term once more, frame by frame."""
    total = torch.zeros(())
    for i in range(clip.shape[2] - 1):
        change, changed = clip[:, :, i + 1] - clip[:, :, i], reconstruction[:, :, i + 1] - reconstruction[:, :, i]
        total += (changed - change).abs().sum()
    return total / clip.numel()


def test_the_term_is_what_its_text_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    clip, reconstruction = torch.rand(2, 1, 3, 5, 16, 16)
    context = Context(clip, SimpleNamespace(reconstruction=reconstruction), torch.nn.Identity(), step=0)  # type: ignore
    value = importlib.import_module("my_losses").Motion(1.0)(context)
    torch.testing.assert_close(value, motion_by_frames(clip, reconstruction))


def test_a_term_of_ones_own_is_trained_with_and_logged(sweep: Path) -> None:
    logs = [header(sweep / run / "csv" / "version_0" / "metrics.csv") for run in ("0", "1")]
    assert ["train/motion" in names for names in logs] == [False, True], "at weight 0 it is not called"
    first, second = (
        torch.load(sweep / run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in ("0", "1")
    )
    assert any(not torch.equal(first[name], second[name]) for name in first), "it has a part in the gradient"


def test_a_metric_of_ones_own_is_in_every_place(sweep: Path) -> None:
    with (sweep / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    *rows, baseline = rows
    assert [row["loss.motion.weight"] for row in rows] == ["0", "0.5"]
    assert float(baseline["sharpness"]) > 0
    for row in rows:
        run = sweep / row["run"]
        document = json.loads((run / "metrics.json").read_text())
        assert float(row["sharpness"]) == document["metrics"]["sharpness"]["mean"]
        assert document["baselines"]["trilinear"]["sharpness"]["mean"] > 0
        assert document["definitions"]["sharpness"]["label"] == "sharpness"
        assert re.search(r"\| sharpness ↑ \| [\d.]+% \[", (run / "report.md").read_text())
        assert {"sharpness", "trilinear_sharpness"} <= header(run / "per_clip.csv")
        assert {"val/sharpness", "test/sharpness"} <= header(run / "csv" / "version_0" / "metrics.csv")
        assert '"label": "sharpness"' in (run / "index.html").read_text()
    assert '"label": "sharpness"' in (sweep / "index.html").read_text()
    table = (sweep / "comparison.md").read_text()
    assert "| sharpness ↑ |" in table
    assert f"{100 * float(rows[0]['sharpness']):.1f}% [" in table, "written as the metric says"


@pytest.mark.slow
def test_an_evaluation_measures_by_a_metric_of_ones_own(folder: Path, sweep: Path, tmp_path: Path) -> None:
    (arguments,) = [words for words in commands("my_metrics") if words[0] == "evaluate.py"]
    checkpoint = sweep / "1" / "checkpoints" / "last.ckpt"
    printed = python(
        folder, *arguments, f"ckpt={checkpoint}", "trainer.accelerator=cpu", "page.clips=0", f"output_dir={tmp_path}"
    )
    assert re.search(r"│ sharpness ↑ +│ +[\d.]+% │", printed)
    of_training = json.loads((sweep / "1" / "metrics.json").read_text())["metrics"]["sharpness"]["mean"]
    assert json.loads((tmp_path / "metrics.json").read_text())["metrics"]["sharpness"]["mean"] == of_training


def test_an_experiment_of_ones_own_has_both(folder: Path) -> None:
    config = python(folder, "train.py", "--config-dir", str(folder), "experiment=mine", "--cfg", "job")
    assert "_target_: my_losses.Motion" in config
    assert "_target_: my_metrics.sharpness" in config
