"""Files that a stranger made: each payload here would leave a trace if anything in it were run, looked up or believed."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from safetensors.torch import save_file

from tae import TemporalAutoencoder, UserError
from tae.evaluation.run import evaluate
from tae.evaluation.stored_config import evaluation_data
from tae.model.checkpoint_file import read_checkpoint
from tae.model.pretrained import load_autoencoder, load_model
from tae.runtime.config import plain
from tae.training.run import find_checkpoint

CONF = Path(__file__).parents[1] / "conf"
ARCHITECTURE = {"base_channels": 4, "channel_multipliers": (1, 2), "latent_channels": 4, "norm_groups": 2}


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = str(trace)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self.trace,)


def composed(entry: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(entry, overrides=list(overrides))


@pytest.fixture(scope="module")
def checkpoint() -> dict[str, Any]:
    """An honest one, made without training."""
    torch.manual_seed(0)
    model = TemporalAutoencoder(**ARCHITECTURE, encoder_blocks=1, decoder_blocks=1)
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    config = plain(composed("train", "experiment=demo", "output_dir=out"))
    return {"state_dict": weights, "architecture": model.architecture, "config": config, "global_step": 1}


def save(checkpoint: dict[str, Any], path: Path, **parts: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint | parts, path)
    return path


def test_the_honest_checkpoint_loads(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    assert load_model(save(checkpoint, tmp_path / "a.ckpt")).config == checkpoint["config"]


@pytest.mark.parametrize("part", ["state_dict", "config", "architecture", "something"])
def test_a_pickled_object_in_a_checkpoint_is_not_built(part: str, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    """Through each of the ways in: evaluation and init_from, resume by name, resume by search."""
    trace = tmp_path / "trace"
    path = save(checkpoint, tmp_path / "checkpoints" / "last.ckpt", **{part: {"x": Payload(trace)}})
    for way_in in (
        lambda: load_model(path),
        lambda: find_checkpoint(composed("train", f"resume={path}", f"output_dir={tmp_path}")),
        lambda: find_checkpoint(composed("train", "resume=auto", f"output_dir={tmp_path}")),
    ):
        with pytest.raises(UserError):
            way_in()
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the payload is none"


def test_a_bare_pickle_is_not_opened(tmp_path: Path) -> None:
    """torch.load takes its old format, without an archive around it, too."""
    trace = tmp_path / "trace"
    path = tmp_path / "a.ckpt"
    path.write_bytes(pickle.dumps(Payload(trace)))
    with pytest.raises(UserError, match="cannot be read"):
        load_model(path)
    assert not trace.exists()


def test_an_archive_that_unpacks_to_more_than_its_size_is_refused(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    path = save(checkpoint, tmp_path / "a.ckpt")
    packed = tmp_path / "packed.ckpt"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
        new.writestr("a/data/bomb", bytes(50_000_000))
    assert packed.stat().st_size < 1_000_000
    with pytest.raises(UserError, match="unpack to more"):
        read_checkpoint(packed)


def nested(depth: int) -> dict[str, Any]:
    return {"a": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("${oc.env:TAE_SECRET}", "interpolation"),
        ({"x": ["https://example.org/${oc.env:TAE_SECRET}.tar"]}, "interpolation"),
        ({"${oc.env:TAE_SECRET}": 1}, "interpolation"),
        (torch.zeros(2), "Tensor"),
        (nested(30), "deeper"),
        (list(range(20_000)), "longer"),
    ],
)
def test_a_config_in_a_checkpoint_is_plain(
    value: Any, message: str, checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    path = save(checkpoint, tmp_path / "a.ckpt", config=checkpoint["config"] | {"extra": value})
    with pytest.raises(UserError, match=message):
        load_model(path)


def test_the_precision_of_a_checkpoint_looks_nothing_up(
    checkpoint: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAE_SECRET", "32-true")
    config = checkpoint["config"] | {"trainer": {"precision": "${oc.env:TAE_SECRET}"}}
    path = save(checkpoint, tmp_path / "a.ckpt", config=config)
    with pytest.raises(UserError, match="interpolation"):
        evaluate(composed("evaluate", f"ckpt={path}", f"output_dir={tmp_path}/out"))


TOUCH = {"_target_": "os.mkdir", "_args_": ["TRACE"]}
DATA = {
    "another class": ({"_target_": "os.mkdir", "path": "TRACE"}, "It is not run"),
    "a call below": ({"shards": {"train": TOUCH}}, "It is not run"),
    "a call in a list": ({"shards": {"test": [[TOUCH]]}}, "It is not run"),
    "a partial": ({"_partial_": True}, "It is not run"),
    "pipes": ({"allow_pipe": True, "shards": {"test": "pipe:mkdir TRACE"}}, "allows pipes"),
    "too large": ({"num_frames": 10**6, "resolution": 10**6}, "batches of"),
    "no size": ({"resolution": "1e9"}, "batches of"),
    "too many": ({"num_clips": {"train": 1}, "shuffle_buffer": 10**15}, "beyond"),
}


@pytest.mark.parametrize("name", DATA)
def test_data_settings_of_a_checkpoint_call_nothing(name: str, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    parts, message = DATA[name]
    trace = tmp_path / "trace"
    parts = json.loads(json.dumps(parts).replace("TRACE", str(trace)))
    config = checkpoint["config"] | {"data": checkpoint["config"]["data"] | parts}
    path = save(checkpoint, tmp_path / "a.ckpt", config=config)
    with pytest.raises(UserError, match=message):
        evaluate(composed("evaluate", f"ckpt={path}", f"output_dir={tmp_path}/out"))
    assert not trace.exists()


def test_the_calls_would_have_been_made(tmp_path: Path) -> None:
    """What the refusals above keep from happening."""
    instantiate({"a": [{"_target_": "os.mkdir", "_args_": [f"{tmp_path}/trace"]}]})
    assert (tmp_path / "trace").exists()


def test_honest_data_settings_pass(checkpoint: dict[str, Any]) -> None:
    cfg = composed("evaluate", "ckpt=a.ckpt", "data.batch_size=3")
    assert evaluation_data(cfg, checkpoint["config"])["batch_size"] == 3


NUMBERS = {
    "many clips": ({"num_clips": {"train": 10**15, "val": 1, "test": 1}}, "beyond"),
    "many pixels": ({"num_clips": {"train": 10**6, "val": 1, "test": 1}}, "in all"),
    "a long clip": ({"num_clips": {"test": 1}, "clip_frames": 10**6, "clip_size": 64}, "in a clip"),
    "no count": ({"num_clips": {"train": 1.5}}, "generated clips"),
    "no clips": ({"num_clips": 3}, "generated clips"),
    "a nested number": ({"augmentation": {"zoom": 1e15}}, "beyond"),
    "no number": ({"augmentation": {"flips": [float("nan")]}}, "beyond"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_a_checkpoint_are_bounded(name: str, checkpoint: dict[str, Any]) -> None:
    """Wherever they stand; nothing is made of them here, which might well fill the disk."""
    parts, message = NUMBERS[name]
    with pytest.raises(UserError, match=message):
        evaluation_data(
            composed("evaluate", "ckpt=a.ckpt"), checkpoint["config"] | {"data": checkpoint["config"]["data"] | parts}
        )


@pytest.mark.parametrize("group", ["synthetic", "folder"])
def test_a_checkpoint_names_no_folder_to_write_to(group: str) -> None:
    stored = {"data": plain(composed("train", f"data={group}", "output_dir=out"))["data"]}
    own = stored["data"]["cache_dir"]
    stored["data"]["cache_dir"] = "somewhere"
    assert evaluation_data(composed("evaluate", "ckpt=a.ckpt"), stored)["cache_dir"] == own
    given = composed("evaluate", "ckpt=a.ckpt", "data.cache_dir=here")
    assert evaluation_data(given, stored)["cache_dir"] == "here"


SIZES = {
    "wide": {"base_channels": 10**9},
    "many levels": {"channel_multipliers": [1] * 1000},
    "many blocks": {"encoder_blocks": 10**9},
    "many latents": {"latent_channels": 10**12},
    "text": {"base_channels": "8"},
    "fraction": {"decoder_blocks": 1.5},
    "no list": {"channel_multipliers": 7},
    "negative": {"base_channels": -4},
    "unknown": {"something": 1},
}


@pytest.mark.parametrize("name", SIZES)
def test_absurd_sizes_are_refused_before_anything_is_allocated(
    name: str, checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    """In a checkpoint, and in the config.json of a folder (which may hold further keys: they are left alone)."""
    sizes = checkpoint["architecture"] | SIZES[name]
    with pytest.raises(UserError):
        load_model(save(checkpoint, tmp_path / "a.ckpt", architecture=sizes))
    if name == "unknown":
        return
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "architecture",
    [
        {"class_name": "system", "config": {}},
        {"class_name": ["AutoencoderKLWan"], "config": {}},
        {"class_name": "AutoencoderKLWan", "config": {}, "more": 1},
        {"class_name": "AutoencoderKLWan", "config": {"num_res_blocks": 10**9}},
        {"class_name": "AutoencoderKLLTXVideo", "config": {"layers_per_block": [10**9] * 5}},
        {"class_name": "AutoencoderKLWan", "config": {"base_dim": 10**12}},
        {"class_name": "AutoencoderKLWan", "config": {"base_dim": 10**5}},
    ],
    ids=["no class of the list", "no name", "unknown", "many blocks", "many layers", "wide", "too many parameters"],
)
def test_a_network_of_diffusers_has_bounds_too(
    architecture: dict[str, Any], checkpoint: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(UserError):
        load_autoencoder(save(checkpoint, tmp_path / "a.ckpt", architecture=architecture))
    if isinstance(architecture["config"].get("base_dim"), int):
        return
    stated = {"_class_name": architecture["class_name"], **architecture["config"]}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    save_file({"x": torch.zeros(1)}, tmp_path / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "null", "7", "[" * 100_000, '{"base_channels": ' + "9" * 5000 + "}"])
def test_a_config_json_that_is_none(content: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(content)
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError):
        load_model(tmp_path)


@pytest.mark.parametrize("weights", ["pytorch_model.bin", "model.pt", "model.safetensors"])
def test_a_pickle_in_a_folder_is_not_opened(weights: str, checkpoint: dict[str, Any], tmp_path: Path) -> None:
    """Under its own name, or under that of the safe format."""
    trace = tmp_path / "trace"
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(checkpoint["architecture"]))
    file = io.BytesIO()
    torch.save({"x": Payload(trace)}, file)
    (folder / weights).write_bytes(file.getvalue())
    with pytest.raises(UserError):
        load_model(folder)
    with pytest.raises(Exception):  # noqa: B017, PT011  (any: what counts is the trace)
        TemporalAutoencoder.from_pretrained(folder)
    assert not trace.exists()


def test_a_hub_repository_without_safetensors_is_refused(
    checkpoint: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub would take pytorch_model.bin instead."""
    from huggingface_hub import hub_mixin
    from huggingface_hub.errors import EntryNotFoundError

    (tmp_path / "config.json").write_text(json.dumps(checkpoint["architecture"]))
    torch.save({"x": Payload(tmp_path / "trace")}, tmp_path / "pytorch_model.bin")

    def download(*, filename: str, **arguments: Any) -> str:
        if not (tmp_path / filename).exists():
            raise EntryNotFoundError(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(hub_mixin, "hf_hub_download", download)
    with pytest.raises(UserError, match="pickle"):
        TemporalAutoencoder.from_pretrained("owner/name")
    assert not (tmp_path / "trace").exists()
