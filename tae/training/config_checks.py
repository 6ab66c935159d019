"""Checks across config groups, and of what a training needs from this machine, before any long work."""

import os
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf

from data.shards.patterns import missing_shards
from tae.losses.equivariance import smallest_scale
from tae.losses.lpips import BACKBONES, check_available
from tae.model.bundled import BUNDLED
from tae.model.checks import check_architecture, check_front, check_temporal
from tae.model.corruption import check_prefixes
from tae.model.diffusers.autoencoder import DiffusersAutoencoder
from tae.model.diffusers.loading import read_config
from tae.model.inflate import check_source
from tae.model.pretrained import WAYS_TO_GIVE_A_MODEL, class_and_place
from tae.model.trainable import is_frozen
from tae.model.unweighted import unweighted
from tae.planning.planner import shapes_of
from tae.runtime.annotations import shown
from tae.runtime.devices import missing_accelerator
from tae.runtime.errors import UserError, with_full_keys
from tae.runtime.hub import may_be_repository
from tae.runtime.paths import to_path
from tae.runtime.schema import check_config
from tae.runtime.settings import Train


def check_training(cfg: DictConfig) -> None:
    """Refuse settings that are wrong, do not fit together, or ask for what is not here; all of them at once.

    Raises:
        UserError: with one line for each finding.
    """
    check_config(cfg, Train, CONFLICTS)


def starting_weights(cfg: DictConfig) -> str | None:
    """Weights to start from, unless a checkpoint to resume from has them all."""
    if cfg.resume is not None:
        return None
    if cfg.init_from is not None:
        if not is_missing(cfg.init_from):
            return None
        return (
            f"init_from={cfg.init_from}: no such file or folder. Give a checkpoint (.ckpt), a folder that save_pretrained "
            "wrote, or a hub repository id (OWNER/NAME)."
        )
    source = cfg.model.get("image_vae")
    return None if source is None else message_of(lambda: check_source(source), cfg, "model")


def is_missing(source: str) -> bool:
    """Whether weights are asked for by a local path that does not exist; OWNER/NAME may be a hub repository."""
    path = BUNDLED.get(source, to_path(source))
    return not path.exists() and not may_be_repository(source)


def architecture(cfg: DictConfig) -> str | None:
    """Sizes of the model that do not fit together."""
    model = cfg.model
    if "base_channels" not in model or "channel_multipliers" not in model:
        return None
    names = ("latent_channels", "encoder_blocks", "decoder_blocks", "norm_groups", "group_norm")
    widths = [model.base_channels * multiplier for multiplier in model.channel_multipliers]
    front = (model.get("norm", "group"), model.get("frontend", "conv"), model.get("folds", 0))
    temporal = (model.get("temporal_init", "centric"), model.get("temporal_padding", "replicate"))
    checks = (
        lambda: check_architecture(widths, *(model[name] for name in names), norm=front[0]),
        lambda: check_front(widths, *front),
        lambda: check_temporal(*temporal),
        lambda: check_prefixes(model.get("channel_dropout"), model.latent_channels),
    )
    return next((finding for check in checks if (finding := message_of(check, cfg, "model"))), None)


def lpips_weights(cfg: DictConfig) -> str | None:
    """The network that a perceptual term with a weight needs."""
    term = cfg.loss.get("perceptual")
    if term is None or not term.get("weight"):
        return None
    return message_of(lambda: check_available(term.net, term.weights_path), cfg, "loss.perceptual")


def shards(cfg: DictConfig) -> str | None:
    """Shards of every split: those of the test are read when the training has ended."""
    patterns = cfg.data.get("shards")
    if patterns is None:
        return None
    files = entries_of(cfg.data.get("files"))
    named = {
        f"data.shards.{split}": patterns.get(split) for split in ("train", *patterns, "test") if split not in files
    }
    sources = entries_of(cfg.data.get("sources"))
    own = {
        f"data.sources.{name}.shards": source.get("shards")
        for name, source in sources.items()
        if source.get("files") is None
    }
    if sources and None not in own.values():
        named.pop("data.shards.train", None)  # which no source reads
    findings = [missing_shards(given, key) for key, given in (named | own).items() if given is not None]
    needed = {
        "data.shards.train": "there is nothing to train on.",
        "data.shards.test": "the training ends with an evaluation of it.",
    }
    absent = [f"{key} is not set: {why}" for key, why in needed.items() if key in named and named[key] is None]
    return "\n".join([finding for finding in findings if finding is not None] + absent) or None


def plain_files(cfg: DictConfig) -> str | None:
    """Folders and lists of files that are read where they lie, in place of shards."""
    named = {f"data.files.{split}": source for split, source in entries_of(cfg.data.get("files")).items()}
    for name, source in entries_of(cfg.data.get("sources")).items():
        named[f"data.sources.{name}.files"] = source.get("files")
    missing = [key for key, source in named.items() if source is not None and not to_path(source).exists()]
    advice = "does not exist. Give a folder of videos, or a list of them."
    return "\n".join(f"{key}={named[key]} {advice}" for key in missing) or None


def entries_of(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is set."""
    return {name: value for name, value in (settings or {}).items() if value is not None}


def devices(cfg: DictConfig) -> str | None:
    """A GPU, unless the CPU was asked for: full-size steps take minutes there."""
    trainer = cfg.trainer
    if trainer.get("accelerator", "auto") != "auto" or torch.cuda.is_available() or torch.backends.mps.is_available():
        return None
    return (
        "PyTorch finds no GPU on this machine. Give trainer.accelerator=cpu to train on the CPU all the same (model=tiny is "
        "of a size for it); `python train.py` alone shows a training that takes minutes."
    )


def learning_rate(cfg: DictConfig) -> str | None:
    lr = cfg.optimizer.get("lr", 1.0)
    if lr > 0:
        return None
    return f"optimizer.lr={lr} would not train: give a number > 0 (1e-5 is the reference's)."


def steps(cfg: DictConfig) -> str | None:
    """How long to train, and how often to validate."""
    trainer, findings = cfg.trainer, []
    if trainer.get("max_steps", -1) < 1:
        given = trainer.get("max_steps")
        findings.append(f"trainer.max_steps={given} would not train: give a whole number of at least 1.")
    for name in ("accumulate_grad_batches", "val_check_interval"):
        given = trainer.get(name, 1)
        if isinstance(given, str | Mapping):
            continue  # a time between validations, which Lightning reads
        share = isinstance(given, float) and trainer.get("check_val_every_n_epoch") is None  # of no epoch
        if given is None or given <= 0 or share:
            never = " No validation at all: data.shards.val=null." if name.startswith("val") else ""
            findings.append(
                f"trainer.{name}={shown(given)} is not allowed: give a number of batches, 1 or more.{never}"
            )
    return "\n".join(findings) or None


def clipping(cfg: DictConfig) -> str | None:
    """Gradients that cannot be clipped as they are asked to be."""
    trainer = cfg.trainer
    if not trainer.get("gradient_clip_val"):
        return None
    if divides_parameters(cfg) and trainer.get("gradient_clip_algorithm") != "value":
        return (
            "A strategy that divides the parameters among processes cannot be clipped by the norm of all of them here: "
            "set trainer.gradient_clip_val=null or trainer.gradient_clip_algorithm=value, or choose strategy=ddp."
        )
    if str(trainer.get("precision")).startswith("16") and cfg.optimizer.get("fused"):
        return "optimizer.fused=true cannot be clipped under precision=fp16: set optimizer.fused=false."
    return None


def divides_parameters(cfg: DictConfig) -> bool:
    """Whether no process has all parameters."""
    strategy = str(cfg.trainer.get("strategy")).lower()
    return any(name in strategy for name in ("fsdp", "deepspeed", "modelparallel"))


def moving_average(cfg: DictConfig) -> str | None:
    """An average of weights that no process has as a whole."""
    if cfg.ema.decay is None or not divides_parameters(cfg):
        return None
    return (
        f"ema.decay={cfg.ema.decay} averages whole parameters, and this strategy divides them among processes: set "
        "ema.decay=null, or choose strategy=ddp."
    )


def distilled(cfg: DictConfig) -> str | None:
    """A teacher that is missing or that nothing asks for, and terms that would train it."""
    if "teacher" not in cfg.model:
        if cfg.teacher is not None:
            return f"teacher={cfg.teacher} is not read by this model: add experiment=distill, or leave it out."
        if "features" in terms_with_weight(cfg):
            return (
                "loss.features compares a tiny decoder with its teacher: give loss.features.weight=0 for other models."
            )
        return None
    findings = []
    if cfg.teacher is None:
        findings.append(f"teacher=null: there is nothing to distil. {WAYS_TO_GIVE_A_MODEL}")
    else:
        findings += teacher_findings(cfg)
    if cfg.trainable != "all":
        findings.append(f"trainable={cfg.trainable}: what is distilled is a decoder already. Leave it out.")
    if latent := latent_terms(cfg):
        findings.append(
            f"The teacher is frozen, whose encoder alone {' and '.join(f'loss.{name}' for name in latent)} would train: add "
            f"{' '.join(f'loss.{name}.weight=0' for name in latent)}."
        )
    return "\n".join(findings) or None


def teacher_findings(cfg: DictConfig) -> list[str]:
    """A teacher that is not there, or one of diffusers that does not take these clips."""
    try:
        found = class_and_place(cfg.teacher)
        if found is not None:
            class_name, place = found
            with torch.device("meta"):
                return clip_misfits(cfg, DiffusersAutoencoder.from_config(class_name, read_config(class_name, place)))
    except UserError as error:
        return [f"teacher={cfg.teacher}: {error}"]
    return [f"teacher={cfg.teacher}: no such file or folder. {WAYS_TO_GIVE_A_MODEL}"] if is_missing(cfg.teacher) else []


def terms_with_weight(cfg: DictConfig) -> dict[str, Any]:
    """The settings of the terms of the loss that are computed."""
    return {name: term for name, term in cfg.loss.items() if isinstance(term, Mapping) and term.get("weight")}


def latent_terms(cfg: DictConfig) -> list[str]:
    """Terms with a weight that look at latents alone."""
    terms = terms_with_weight(cfg).items()
    return [name for name, term in terms if not getattr(get_object(term["_target_"]), "uses_reconstruction", True)]


def frozen(cfg: DictConfig) -> str | None:
    """Terms that would train what is frozen, or a model that freezes nothing."""
    if cfg.trainable == "all" or "teacher" in cfg.model:
        return None
    if cfg.model.get("trainable") != cfg.trainable:
        return (
            f"trainable={cfg.trainable} is not read by this model: give its config the line `trainable: ${{trainable}}`, as "
            "conf/model/sd35.yaml has it."
        )
    latent = latent_terms(cfg)
    if cfg.trainable != "decoder" or not latent:
        return None
    return (
        f"trainable=decoder freezes the encoder, which alone {' and '.join(f'loss.{name}' for name in latent)} would train: "
        f"add {' '.join(f'loss.{name}.weight=0' for name in latent)}."
    )


def frame_size(cfg: DictConfig) -> str | None:
    """Frames, also those that loss.equivariance makes smaller, that networks beside the model cannot look at."""
    sources = [source for source in (cfg.data.get("sources") or {}).values() if source is not None]
    sides = {source.get("resolution") or cfg.data.get("resolution") for source in sources or [cfg.data]} - {None}
    if not sides or "channel_multipliers" not in cfg.model:
        return None
    side = min(sides)
    term, perceptual = cfg.loss.get("equivariance"), cfg.loss.get("perceptual")
    scale = 1.0 if term is None else smallest_scale(term.weight, term.mode, term.scales)
    factor = 2 ** (len(cfg.model.channel_multipliers) - 1 + cfg.model.get("folds", 0))
    smallest = side if scale == 1 else max(1, round(scale * -(-side // factor))) * factor
    given = f"data.resolution={side}" + ("" if scale == 1 else f", which loss.equivariance.scales makes {smallest}")
    findings = []
    if perceptual is not None and perceptual.get("weight") and smallest < BACKBONES[perceptual.net][0]:
        findings.append(
            f"{given}: too small for loss.perceptual.net={perceptual.net}, which needs {BACKBONES[perceptual.net][0]} "
            "pixels. Give larger frames, or loss.perceptual.weight=0."
        )
    layers = 0 if cfg.adversary is None else cfg.adversary.get("layers", 0)
    if smallest < 2**layers:
        findings.append(
            f"{given}: too small for adversary.layers={layers}, which halve frames to less than a pixel. Give {2**layers} "
            "pixels or more, or fewer layers."
        )
    return "\n".join(findings) or None


def compiler(cfg: DictConfig) -> str | None:
    """torch.compile generates C++ or Triton code, and both call a compiler of C."""
    if not cfg.model.get("compile_blocks"):
        return None
    chosen = [os.environ.get("CXX", "g++"), os.environ.get("CC", "gcc")]
    names = [*(words[0] for words in map(shlex.split, chosen) if words), "clang", "cc"]  # CXX="ccache g++" is a command
    if any(shutil.which(name) for name in names):
        return None
    return (
        "model.compile_blocks=true needs a C++ compiler, and none is found here (g++, clang, or what CXX names): install "
        "one (apt-get install g++), or set model.compile_blocks=false."
    )


def barebones(cfg: DictConfig) -> str | None:
    if not cfg.trainer.get("barebones"):
        return None
    return (
        "trainer.barebones=true leaves out loggers, checkpoints and the progress bar, without which a training leaves "
        "nothing behind: leave it out. `python -m benchmarks.trainer` measures steps alone."
    )


def other_network(cfg: DictConfig) -> str | None:
    """A network of diffusers that cannot be built, does not take these clips, or lacks what a term looks at."""
    if "class_name" not in cfg.model:
        return None
    return message_of(lambda: check_other_network(cfg), cfg, "model")


def check_other_network(cfg: DictConfig) -> None:
    """Build the network without weights, and ask it.

    Raises:
        UserError: with one line for each finding.
    """
    try:
        with torch.device("meta"):
            model = instantiate(unweighted(cfg.model))
    except InstantiationException as error:
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from error
        raise
    findings = clip_misfits(cfg, model)
    terms = {name: get_object(term["_target_"]) for name, term in terms_with_weight(cfg).items()}
    wide = [name for name, term in terms.items() if getattr(term, "needs_variance", False)]
    if wide and not model.is_gaussian:
        findings.append(
            f"{model.name} gives latents without a variance, which {' and '.join(f'loss.{name}' for name in wide)} would "
            f"look at: add {' '.join(f'loss.{name}.weight=0' for name in wide)}."
        )
    latent = latent_terms(cfg)
    if cfg.model.parts and latent and is_frozen(model.encoding_modules):
        findings.append(
            f"model.parts freezes the encoder, which alone {' and '.join(f'loss.{name}' for name in latent)} would train: "
            f"add {' '.join(f'loss.{name}.weight=0' for name in latent)}."
        )
    if findings:
        raise UserError("\n".join(findings))


def clip_misfits(cfg: DictConfig, model: DiffusersAutoencoder) -> list[str]:
    """For each stream of clips that a network does not take as they are, what it takes."""
    findings = []
    for name, shape in shapes_of(cfg).items() if "num_frames" in cfg.data else ():
        if misfits := model.grid.misfits(*shape[1:]):
            where = f"data.sources.{name}" if name else "data"
            findings.append(
                f"{where}.num_frames, {where}.resolution: {model.name} is given clips of {'; '.join(misfits)}."
            )
    return findings


def message_of(check: Callable[[], object], cfg: DictConfig, section: str) -> str | None:
    """What a check of a section's arguments refuses, None if it does not."""
    try:
        check()
    except UserError as error:
        return with_full_keys(str(error), section, map(str, OmegaConf.select(cfg, section)))
    return None


CONFLICTS: Sequence[Callable[[DictConfig], str | None]] = (
    *(missing_accelerator, devices, shards, plain_files, starting_weights, architecture, other_network, lpips_weights),
    *(learning_rate, steps, clipping, distilled, frozen, frame_size, moving_average, compiler, barebones),
)
