"""A decoder beside the one of the autoencoder whose latents it decodes: two evaluations on the same clips, and one page."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tae.evaluation.sweep import write_comparison
from tae.evaluation.sweep_runs import Run
from tae.runtime.config import write_config
from tae.runtime.files import write_text
from tae.runtime.ownership import is_first_process

OWN, OTHER = "own_decoder", "decoder"  # folders of the two evaluations


def compare_decoders(
    cfg: DictConfig, measure_with: Mapping[str, Callable[[DictConfig], dict[str, Any]]]
) -> dict[str, Any]:
    """Measure with each decoder, then write a table, a plot and a page of both.

    Args:
        measure_with: {`OWN` and `OTHER`: the evaluation, by a config with an output folder of its own}.

    Returns:
        what metrics.json of `cfg.output_dir` holds: that of the other decoder, and the own one's metrics as `own_decoder`.
    """
    folder = Path(cfg.output_dir)
    write_config(cfg)
    documents = {}
    for name, measure in measure_with.items():
        of_one = cfg.copy()
        of_one.output_dir = str(folder / name)
        documents[name] = measure(of_one)
    document = documents[OTHER] | {OWN: {key: documents[OWN][key] for key in ("checkpoint", "metrics")}}
    if is_first_process():
        write_text(folder / "metrics.json", json.dumps(document, indent=2) + "\n")
        labels = {OWN: f"that of {cfg.ckpt}", OTHER: cfg.decoder}
        runs = [
            Run(folder / name, {"decoder": labels[name]}, "completed", None, document, curve=[])
            for name, document in documents.items()
        ]
        write_comparison(folder, runs)
        print(f"Both decoders: {folder / 'index.html'}; PSNR {difference(documents)}")
    return document


def difference(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """How far the other decoder's PSNR is from the own one's."""
    own, other = (documents[name]["metrics"]["psnr"]["mean"] for name in (OWN, OTHER))
    return f"{other:.2f} dB, {other - own:+.2f} against the encoder's own decoder"
