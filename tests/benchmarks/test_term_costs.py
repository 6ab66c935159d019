"""The tables of what terms cost and of what they do to latents."""

import argparse
from pathlib import Path

import pytest

from benchmarks import latent_terms
from benchmarks.terms import PLAIN, ROWS, run
from benchmarks.trainings import make_parser


@pytest.mark.slow
def test_a_term_that_decodes_again_costs_more_and_one_of_differences_does_not() -> None:
    chosen = {name: ROWS[name] for name in (PLAIN, "temporal", "equivariance, extra", "only the decoder")}
    arguments = argparse.Namespace(model="tiny", planned_for="cpu", size=(2, 16, 16), warmup=0, repeats=1)
    plain, temporal, extra, decoder = run(arguments, chosen)
    assert (plain["memory"], plain["arithmetic"], plain["time"]) == (1, 1, 1)
    assert temporal["arithmetic"] == pytest.approx(1, abs=0.01)
    assert 1.05 < extra["arithmetic"] < 2  # a decoding of latents of half the size or a quarter, and its gradient
    assert decoder["arithmetic"] < 0.9
    assert decoder["memory"] < 1
    assert all(row["time"] > 0 for row in (temporal, extra, decoder))


def test_the_trainings_differ_by_their_term_alone(tmp_path: Path) -> None:
    given = ["--train", "train-*.tar", "--test", "test-*.tar", "--state", str(tmp_path), "--device", "cpu"]
    arguments = make_parser(None).parse_args(given)
    plain = latent_terms.training(PLAIN, arguments).configure(arguments, 2)
    for name in latent_terms.CHOSEN:
        cfg = latent_terms.training(name, arguments).configure(arguments, 2)
        cfg.output_dir = plain.output_dir
        changed = {
            f"{group}.{key}"
            for group in ("loss", "model", "data", "optimizer", "trainer")
            for key in cfg[group]
            if cfg[group][key] != plain[group][key]
        }
        asked = {".".join(override.split("=")[0].split(".")[:2]) for override in ROWS.get(name, ())}
        assert changed == (asked or ({"optimizer.lr"} if name == latent_terms.UNTRAINED else set()))
