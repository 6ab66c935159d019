"""A sweep of a small Hydra application, with runs that fail, ends in one table and one plot."""

import csv
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tae.evaluation.sweep import write_comparison
from tae.evaluation.sweep_page import comparison_page
from tae.evaluation.sweep_runs import read_runs
from tests.fakes.warm import run_warm

APP = """
import json, sys
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.3", config_path=".", config_name="app")
def main(cfg):
    if cfg.opl == 7:
        raise ValueError("the loss is not finite | at step 3\\n  a second line")
    folder = Path(HydraConfig.get().runtime.output_dir)
    psnr = 20.0 + cfg.opl
    metrics = {
        "psnr": {"mean": psnr, "ci95": [psnr - 1, psnr + 0.5]},
        "ssim": {"mean": 0.8, "ci95": None},
        "outlier_rate": {"mean": 0.01 / (1 + cfg.opl)},
        "lpips": {"mean": None, "ci95": None, "reason": "no weights"},
    }
    document = {"metrics": metrics, "training": {"steps": 30, "seconds_per_step": 0.125}}
    document |= {"model": {"class": "A", "input": "any", "latents": [1, 1, 1, 1], "compression": 96.0}}
    document |= {"baselines": {"trilinear": {"psnr": {"mean": 19.0, "ci95": [18.0, 20.0]}}}}
    (folder / "metrics.json").write_text(json.dumps(document))
    (folder / "csv").mkdir()
    rows = "".join(f"{step},,{psnr - 30 / step}\\n{step},0.5,\\n" for step in (10, 20, 30))
    (folder / "csv" / "metrics.csv").write_text("step,train/loss,val/psnr\\n" + rows)

main()
"""

CONFIG = """
opl: 0
seed: 1
hydra:
  callbacks: {comparison: {_target_: tae.evaluation.sweep_callback.SweepComparison}}
  sweep: {dir: sweep, subdir: "${hydra.job.num}"}
  job: {chdir: %s}
"""


def sweep(tmp_path, *arguments, chdir=False):
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "app.yaml").write_text(CONFIG % str(chdir).lower())
    done = run_warm(["app.py", *arguments], tmp_path)
    with (tmp_path / "sweep" / "comparison.csv").open(newline="") as file:
        return done, list(csv.DictReader(file))


def test_every_run_has_a_row_and_the_plot_is_there(tmp_path):
    done, rows = sweep(tmp_path, "-m", "opl=0,1", "seed=3", chdir=True)
    assert done.returncode == 0, done.stderr
    assert rows == [
        {"run": "0", "opl": "0", "psnr": "20.0", "psnr_ci95_low": "19.0", "psnr_ci95_high": "20.5", "ssim": "0.8"}
        | {"ssim_ci95_low": "", "ssim_ci95_high": "", "outlier_rate": "0.01"}
        | {"outlier_rate_ci95_low": "", "outlier_rate_ci95_high": "", "compression": "96.0"}
        | {"s/step": "0.125", "status": "completed"},
        {"run": "1", "opl": "1", "psnr": "21.0", "psnr_ci95_low": "20.0", "psnr_ci95_high": "21.5", "ssim": "0.8"}
        | {"ssim_ci95_low": "", "ssim_ci95_high": "", "outlier_rate": "0.005"}
        | {"outlier_rate_ci95_low": "", "outlier_rate_ci95_high": "", "compression": "96.0"}
        | {"s/step": "0.125", "status": "completed"},
        {"run": "trilinear", "psnr": "19.0", "psnr_ci95_low": "18.0", "psnr_ci95_high": "20.0", "status": "baseline"}
        | dict.fromkeys(["opl", "ssim", "ssim_ci95_low", "ssim_ci95_high", "compression", "s/step"], "")
        | dict.fromkeys(["outlier_rate", "outlier_rate_ci95_low", "outlier_rate_ci95_high"], ""),
    ]
    with Image.open(tmp_path / "sweep" / "comparison.png") as picture:
        assert picture.width > 1200, "three panels of bars and the validation curve"
    text = (tmp_path / "sweep" / "comparison.md").read_text()
    assert "| 1 | 1 | 21.00 [20.00, 21.50] |" in text
    assert "| trilinear |  | 19.00 [18.00, 20.00] |" in text
    assert "20.00" in done.stdout
    assert done.stdout.count("runs of this sweep") == 1, "neither of one run alone, nor the same table twice"
    assert "Warning" not in done.stdout + done.stderr
    assert "sweep/comparison.md" in done.stdout


def test_a_failed_run_has_a_row_with_its_error_and_the_others_finish(tmp_path):
    done, rows = sweep(tmp_path, "-m", "opl=0,7,1")
    assert done.returncode != 0, "the sweep as a whole did not succeed"
    assert [row["psnr"] for row in rows] == ["20.0", "", "21.0", "19.0"]
    assert rows[1]["status"] == "failed: the loss is not finite | at step 3"
    assert "the loss is not finite" in done.stdout + done.stderr
    text = (tmp_path / "sweep" / "comparison.md").read_text()
    assert "failed: the loss is not finite \\| at step 3" in text
    assert (tmp_path / "sweep" / "comparison.png").exists()


@pytest.mark.slow
def test_a_sweep_of_failures_has_a_table(tmp_path):
    _, rows = sweep(tmp_path, "-m", "opl=7", "seed=1,2")
    assert [(row["seed"], row["status"].split(":")[0]) for row in rows] == [("1", "failed"), ("2", "failed")]


def test_a_single_run_compares_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        sweep(tmp_path, "hydra.run.dir=run")
    assert (tmp_path / "run" / "metrics.json").exists()
    assert not list(tmp_path.rglob("run.json"))


LEADS = {
    "better on each": ([(30, 1), (20, 1)], [(29, 1), (19.5, 1)], "+0.75 dB, its 95 % interval +0.50 to +1.00, of one"),
    "not certain": ([(32, 1), (20, 3)], [(29, 1), (20.5, 3)], "+0.38 dB, its 95 % interval -0.50 to +3.00, so which"),
    "one clip": ([(30, 1)], [(29, 1)], "share one clip, where the difference is +1.00 dB"),
    "other lengths": ([(30, 1)], [(29, 2)], "no clip in common"),
    "none": ([(30, 1)], [], "no clip in common"),
}


@pytest.mark.parametrize("name", LEADS)
def test_the_two_best_are_compared_clip_by_clip(name, tmp_path):
    """The clips' own spread, 10 dB, is in both runs and must not hide what differs between them."""
    *clips, expected = LEADS[name]
    for run, (psnr, rows) in enumerate(zip((25, 24), clips, strict=True)):
        folder = tmp_path / str(run)
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"job": run, "overrides": {"opl": str(run)}, "error": None}))
        metrics = {"psnr": {"mean": psnr, "ci95": [psnr - 5, psnr + 5]}}
        (folder / "metrics.json").write_text(json.dumps({"metrics": metrics}))
        lines = [f"clip{i},{frames},{value}" for i, (value, frames) in enumerate(rows)]
        (folder / "per_clip.csv").write_text("\n".join(["key,num_frames,psnr", *lines]) + "\n")
    lead = comparison_page(tmp_path, read_runs(tmp_path))["lead"]
    assert lead.startswith("Highest PSNR: opl=0 with 25.00 dB, then opl=1 with 24.00 dB. ")
    assert expected in lead


def test_a_report_in_a_nested_folder_is_linked_from_the_sweep(tmp_path):
    for run in range(2):
        folder = tmp_path / "lr [high]" / str(run)
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"job": run, "overrides": {"lr": f"1e-{run}"}, "error": None}))
        (folder / "metrics.json").write_text(json.dumps({"metrics": {"psnr": {"mean": 20.0, "ci95": None}}}))
        (folder / "report.md").write_text("# report")
    write_comparison(tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    links = re.findall(r"\[report\]\(<(.*?)>\)", text)
    assert links == ["lr [high]/0/report.md", "lr [high]/1/report.md"]
    assert all((tmp_path / link).is_file() for link in links)


def test_runs_whose_clips_all_have_one_value_are_plotted(tmp_path):
    """The mean of equal values may lie below each of them by rounding: an error bar of -1e-16, which matplotlib refuses."""
    for run, mean in enumerate((25.000000000000004, 24.999999999999996)):
        folder = tmp_path / str(run)
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"job": run, "overrides": {"lr": str(run)}, "error": None}))
        (folder / "metrics.json").write_text(json.dumps({"metrics": {"psnr": {"mean": mean, "ci95": [25.0, 25.0]}}}))
    write_comparison(tmp_path)
    assert (tmp_path / "comparison.png").exists()


def test_the_curve_of_a_resumed_run_has_all_of_its_parts(tmp_path: Path) -> None:
    """Whatever the times of the files: of a copied sweep the newest one was any of them."""
    for version, rows in {2: "29,24.0\n39,25.0\n", 10: "39,26.0\n49,27.0\n", 0: "9,20.0\n19,22.0\n"}.items():
        path = tmp_path / "csv" / f"version_{version}" / "metrics.csv"
        path.parent.mkdir(parents=True)
        path.write_text("step,val/psnr\n" + rows)
    (tmp_path / "run.json").write_text(json.dumps({"job": 0, "overrides": {}, "error": None}))
    (run,) = read_runs(tmp_path)
    assert run.curve == [(9, 20.0), (19, 22.0), (29, 24.0), (39, 26.0), (49, 27.0)]
