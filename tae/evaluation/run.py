"""Measure a model by the protocol tae-eval-2, or a named one: metrics, a table, a page with synchronised videos.

python evaluate.py ckpt=outputs/.../checkpoints/best.ckpt
python evaluate.py ckpt=diffusers:AutoencoderKLWan:FOLDER data=ucf101       another autoencoder, measured the same way
python evaluate.py -m ckpt=FOLDER,diffusers:AutoencoderKLWan:FOLDER data=ucf101       both, on one page
python evaluate.py ckpt=FOLDER data=ucf101 data.shards.test='datasets/ucf101/test/*.tar'
python evaluate.py ckpt=FOLDER decoder=PATH data=ucf101      with its own decoder and with another, on one page
python evaluate.py ckpt=FOLDER source=videos data.num_frames=16       plain videos, a folder or a list of them
"""

import math
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data.datamodule import ClipDataModule
from data.loading.faults import JUDGED_FROM
from tae.evaluation.decoder_comparison import OTHER, OWN, compare_decoders
from tae.evaluation.estimate import in_words, seconds_for
from tae.evaluation.floor import evenly_spaced, linear_codec_curve
from tae.evaluation.page import evaluation_page, write_clips, write_page
from tae.evaluation.plain_videos import check_plain_videos, prepare_source
from tae.evaluation.protocol import evaluate_model
from tae.evaluation.report import print_report, write_report
from tae.evaluation.results import ClipFrames, gather
from tae.evaluation.stored_config import evaluation_data, evaluation_precision
from tae.evaluation.sweep_runs import read_curve
from tae.metrics.metric import Metric
from tae.metrics.registry import complete
from tae.model.interface import VideoAutoencoder
from tae.model.pretrained import LoadedModel, load_autoencoder
from tae.model.pretrained_decoder import load_decoder, pair
from tae.runtime.config import plain, write_config
from tae.runtime.devices import missing_accelerator
from tae.runtime.errors import UserError
from tae.runtime.files import remove_leftovers
from tae.runtime.ownership import is_first_process, owned
from tae.runtime.schema import check_config
from tae.runtime.settings import Evaluate
from tae.runtime.signals import EndOnSignal
from tae.runtime.trainer_progress import evaluation_progress

WORTH_SAYING = 10.0  # seconds; what is over sooner needs no announcement


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Evaluate `cfg.ckpt` on the test shards and return what metrics.json holds.

    Raises:
        UserError: a setting is wrong, another run owns the output folder, or nothing could be measured.
    """
    check_config(cfg, Evaluate, [missing_accelerator, check_plain_videos])
    with owned(Path(cfg.output_dir)):
        return load_and_measure(cfg)


def load_and_measure(cfg: DictConfig) -> dict[str, Any]:
    """The evaluation, in an output folder that is this run's own."""
    if is_first_process():
        for folder in ("", "videos"):
            remove_leftovers(Path(cfg.output_dir) / folder)
    loaded = load_autoencoder(cfg.ckpt, cfg.weights)
    if cfg.decoder is None:
        return measure_loaded(loaded, cfg)
    paired = pair(loaded, load_decoder(cfg.decoder))
    return compare_decoders(cfg, {OWN: partial(measure_loaded, loaded), OTHER: partial(measure_loaded, paired)})


def measure_loaded(loaded: LoadedModel, cfg: DictConfig) -> dict[str, Any]:
    """Measure a model with the settings of its training, or those given."""
    metrics = build_metrics(cfg)
    # What is measured goes back into the config, since it is written, shown and shared as the one of this evaluation.
    cfg.trainer.precision = evaluation_precision(cfg, loaded.config)
    settings = evaluation_data(cfg, loaded.config)
    if cfg.source is not None:
        settings = prepare_source(cfg, settings)
    cfg.data = OmegaConf.merge(settings, {"output_dir": cfg.output_dir})
    write_config(cfg)
    data = instantiate(cfg.data)
    return measure(loaded, data, cfg, metrics)


def build_metrics(cfg: DictConfig) -> dict[str, Metric]:
    """The metrics of the group `metrics`, PSNR always among them.

    Raises:
        UserError: an entry does not make a metric.
    """
    metrics = instantiate(cfg.get("metrics") or {}, _convert_="all")
    for name, metric in metrics.items():
        if not isinstance(metric, Metric):
            raise UserError(
                f"metrics.{name} makes a {type(metric).__name__}, not a tae.metrics.metric.Metric: let its _target_ be a "
                "function that returns one. docs/extending.md has an example."
            )
    return complete(metrics)


def measure(
    loaded: LoadedModel,
    data: ClipDataModule,
    cfg: DictConfig,
    metrics: Mapping[str, Metric],
    training: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Run the protocol on every process and write the report on the first.

    Raises:
        UserError: nothing could be measured, or too many clips failed for the mean to be of this set.
    """
    data.prepare_data()
    data.setup("test")
    trainer = L.Trainer(
        **instantiate(
            {key: cfg.trainer[key] for key in ("accelerator", "devices", "num_nodes", "precision", "strategy")}
        ),
        logger=False,
        use_distributed_sampler=False,
        callbacks=[evaluation_progress(), EndOnSignal()],
        default_root_dir=cfg.output_dir,
    )
    data.trainer = trainer
    clips = data.test_dataloader()
    in_all = len(clips.clips)
    if trainer.is_global_zero:
        size = (cfg.data.num_frames, cfg.data.resolution, cfg.data.resolution)
        count = math.ceil(in_all / trainer.world_size)
        seconds = seconds_for(metrics, count, size, trainer.strategy.root_device, in_all)
        if sum(seconds.values()) >= WORTH_SAYING:
            print(in_words(seconds, count), file=sys.stderr)
    result, shown = evaluate_model(
        trainer,
        loaded.model,
        clips,
        lambda keys: data.eval_dataloader("test", only=keys),
        metrics,
        others_shown=cfg.page.clips,
        num_clips=in_all,
        sample_seed=cfg.seed if samples_posterior(cfg) else None,
        about_latents=cfg.report.latents,
    )
    linear_codec = None
    if cfg.report.linear_codec:
        chosen = evenly_spaced([clip.key for clip in result.clips])
        loader = data.eval_dataloader("test", only=chosen)
        linear_codec = linear_codec_curve(loader, chosen, trainer.strategy.root_device)
    skipped = sorted(gather(clips.skipped), key=lambda fault: fault["key"])  # each process met only its own
    document: dict[str, Any] = {}
    if trainer.is_global_zero:
        output_dir = Path(cfg.output_dir)
        document = write_report(
            output_dir,
            result,
            list(shown),
            checkpoint={
                "path": loaded.source,
                "sha256": loaded.sha256,
                "weights": loaded.weights,
                "starting_weights": loaded.model.starting_weights,
            },
            model=describe(loaded.model, next(iter(shown.values()))),
            config=plain(cfg),
            skipped=skipped,
            data=data.describe("test")
            | {"precision": str(cfg.trainer.precision), "posterior": "sampled" if samples_posterior(cfg) else "mode"},
            training=training,
            linear_codec=linear_codec,
        )
        write_page(
            output_dir,
            evaluation_page(document, result, write_clips(output_dir, shown, *result.factors), read_curve(output_dir)),
        )
        print_report(document, result, output_dir)
    document = trainer.strategy.broadcast(document)
    check_skipped(
        skipped, len(result.clips), data.max_skipped, Path(cfg.output_dir)
    )  # the report is there all the same
    return document


def samples_posterior(cfg: DictConfig) -> bool:
    """Whether the protocol decodes a sample; the end of a training measures by the usual one, which does not."""
    return bool(cfg.get("protocol", {}).get("sample_posterior"))


def check_skipped(skipped: Sequence[Mapping[str, str]], measured: int, allowed: float, output_dir: Path) -> None:
    """Refuse a mean over too little of a large test set; as in training, one broken file of a few is no large share.

    Raises:
        UserError: a larger share of the clips failed than `allowed`.
    """
    clips = measured + len(skipped)
    if clips >= JUDGED_FROM and len(skipped) > allowed * clips:
        raise UserError(
            f"{len(skipped)} of {clips} test clips could not be decoded ({len(skipped) / clips:.1%}); data.max_skipped "
            f"allows {allowed:.1%}. The reasons are in {output_dir / 'skipped.jsonl'}: prepare the data again without these "
            "files, or allow more and evaluate again. The report is there, but is not of this test set."
        )


def describe(model: VideoAutoencoder, clip: ClipFrames) -> dict[str, Any]:
    """What was measured: its class, what it takes, and, where it has latents, how much smaller they are than the clip."""
    frames, height, width = clip.original.shape[:3]
    about = {
        "class": model.name,
        "input": model.about_input(frames, height, width),
        "time_factor": model.time_factor,
        "space_factor": model.space_factor,
    }
    if clip.latents is None:
        return about
    return about | {
        "latents": list(clip.latents.shape),
        "compression": clip.original.numel() / clip.latents.numel(),
    }
