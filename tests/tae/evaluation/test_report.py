"""The files that an evaluation leaves behind, read back by other software."""

import csv
import json
import math

import pytest
from rich.console import Console

from tae.evaluation.page import details, evaluation_page, facts
from tae.evaluation.report import print_report, verdict, write_report
from tae.evaluation.results import ClipResult, EvaluationResult
from tae.losses.backbones import VGG
from tae.metrics.registry import METRICS, definitions

DATA = {"shards": ["test/*.tar"], "split": "test of ucf101 (split group)", "num_frames": 8, "frame_stride": 2} | {
    "resolution": 64,
    "precision": "bf16-mixed",
}


def make_result(model=24.0, trilinear=22.0, spread=0.5, clips=6):
    def clip(i):
        ours = {"psnr": model + spread * i, "ssim": 0.8, "ssim_uniform": 0.79, "outlier_rate": 0.001}
        theirs = {"psnr": trilinear + spread * (clips - i), "ssim": 0.7, "ssim_uniform": 0.69}
        return ClipResult(f"v_Run_g0{i}", 8, 29.97, ours, theirs)

    return EvaluationResult([clip(i) for i in range(clips)], reasons={"lpips": VGG.how_to_get()})


def write(tmp_path, result, **arguments):
    defaults = {"checkpoint": {"path": "last.ckpt", "sha256": "ab" * 32}, "config": {"seed": 1}, "skipped": []}
    return write_report(tmp_path, result, ["best"], **(defaults | arguments))


def no_constants(name):
    raise AssertionError(f"{name} is not JSON")


def test_metrics_json_holds_the_schema(tmp_path):
    skipped = [{"key": "v_Bad_g01", "reason": "cannot decode"}]
    document = write(tmp_path, make_result(), skipped=skipped, training={"steps": 3, "seconds_per_step": math.nan})
    read = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=no_constants)
    assert read == document
    assert read["protocol"] == "tae-eval-1"
    assert (read["num_clips"], read["num_frames"]) == (6, 48)
    assert read["metrics"]["psnr"]["mean"] == pytest.approx(25.25)
    assert read["baselines"]["trilinear"]["ssim"]["ci95"] == [pytest.approx(0.7), pytest.approx(0.7)]
    assert read["metrics"]["lpips"]["mean"] is None
    assert "weights" in read["metrics"]["lpips"]["reason"]
    assert read["baselines"]["trilinear"]["lpips"] == read["metrics"]["lpips"]
    assert read["skipped"] == skipped
    assert read["training"] == {"steps": 3, "seconds_per_step": None}
    assert {"torch", "python", "device", "git_commit"} <= set(read["environment"])
    assert set(read) >= {"checkpoint", "config"}


def test_metrics_json_says_how_its_numbers_are_written(tmp_path):
    """A sweep or a model card reads them without the code that measured."""
    document = json.loads(json.dumps(write(tmp_path, make_result())))
    read = definitions(document)
    assert {name: metric.heading for name, metric in read.items()} == {
        "psnr": "PSNR (dB) ↑",
        "ssim": "SSIM ↑",
        "ssim_uniform": "SSIM (uniform) ↑",
        "lpips": "LPIPS (VGG) ↓",
        "outlier_rate": "outlier rate ↓",
    }
    assert read["outlier_rate"].text(0.00125) == "0.125%"
    del document["definitions"]  # as version 0.1 wrote it
    assert {name: metric.heading for name, metric in definitions(document).items()} == {
        name: METRICS[name].heading for name in read
    }


def test_an_evaluation_alone_has_no_training(tmp_path):
    assert "training" not in write(tmp_path, make_result())


def test_per_clip_csv_has_every_clip(tmp_path):
    result = make_result()
    write(tmp_path, result)
    with (tmp_path / "per_clip.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [clip.key for clip in result.clips]
    assert float(rows[2]["trilinear_psnr"]) == result.clips[2].trilinear["psnr"]


def test_report_md_tells_and_links(tmp_path):
    write(tmp_path, make_result(), skipped=[{"key": "v_Bad_g01", "reason": "cannot decode"}])
    text = (tmp_path / "report.md").read_text()
    for expected in ("25.25 [", "(videos/best.mp4)", "v_Bad_g01", "last.ckpt", verdict(make_result())):
        assert expected in text
    assert "videos/worst.mp4" not in text, "no link to a video that was not written"
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("model", "spread", "words"),
    [(30.0, 0.5, "above it by"), (10.0, 0.5, "BELOW it by 12.5 dB in PSNR"), (22.0, 1.0, "not clearly different")],
)
def test_the_verdict_is_honest(model, spread, words):
    assert words in verdict(make_result(model=model, trilinear=22.0, spread=spread))


def test_the_table_on_the_terminal(tmp_path):
    console = Console(record=True, width=120)
    document = write(tmp_path, make_result(), data=DATA)
    print_report(document, make_result(), tmp_path, console)
    text = console.export_text()
    assert "trilinear" in text
    assert "25.25" in text
    assert "above it" in text
    assert "LPIPS (VGG): not measured, the weights of VGG-16" in text


def test_what_was_measured_stands_beside_the_number(tmp_path):
    """A number says nothing without clips, window, size, shards, split and precision; no Python syntax, no 15 digits."""
    checkpoint = {"path": "a.ckpt", "sha256": "ab", "starting_weights": {"init_from": "tiny", "sha256": "cd"}}
    training = {"steps": 3, "seconds_per_step": 0.12345678901234}
    document = write(tmp_path, make_result(), data=DATA, checkpoint=checkpoint, training=training)
    stated = {"6", "48", "8 frames, stride 2", "64x64", "test/*.tar", "test of ucf101 (split group)", "bf16-mixed"}
    report = (tmp_path / "report.md").read_text()
    assert all(f"| {text} |" in report for text in stated)
    assert stated <= {text for _, text in facts(document)}
    assert "init_from tiny, sha256 cd" in report
    assert "0.1235" in report
    assert "{'" not in report + str(details(document)[2])
    assert "0.12345678" not in report


def test_the_report_says_whether_training_helped(tmp_path):
    training = {"steps": 200, "seconds_per_step": 0.1, "validation_psnr_before": 24.1, "validation_psnr_best": 23.95}
    document = write(tmp_path, make_result(), training=training)
    said = "Training for 200 steps took the validation PSNR from 24.10 to 23.95 dB at best (-0.15)."
    assert said in (tmp_path / "report.md").read_text()
    assert said in evaluation_page(document, make_result(), [], [(100, 23.95)])["lead"]
    assert evaluation_page(document, make_result(), [], [(100, 23.95)])["runs"][0]["curve"] == [[100, 23.95]]
    assert "Training" not in (evaluation_page(write(tmp_path, make_result()), make_result(), []))["lead"]
