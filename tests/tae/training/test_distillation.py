"""Distilling a decoder: what a run leaves behind, who may use it, and what is refused before it."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from reliability.tiny_run import SETTINGS, assert_same_state
from safetensors.torch import load_file

from tae import TemporalAutoencoder, UserError
from tae.evaluation.run import evaluate
from tae.export import main as export
from tae.losses import FeatureMatching, Objective, Reconstruction
from tae.model.checkpoint_file import read_checkpoint
from tae.model.pretrained import load_model
from tae.model.pretrained_decoder import load_decoder
from tae.planning.planner import make_planner
from tae.reconstruct import main as reconstruct
from tae.runtime.cli import CONFIG_FOLDER
from tae.training.checkpointing import LastCheckpoint
from tae.training.config_checks import check_training
from tae.training.run import train
from tests.references.video import make_video

DATA = ("data=synthetic", *(line for line in SETTINGS if line.startswith("data.")), "data.num_workers=0")
RUN = (
    *("experiment=distill", *DATA, "model.width=4", "model.blocks=1", "precision=fp32", "trainer.accelerator=cpu"),
    *("loss.perceptual.weight=0", "metrics=quick", "ema.decay=0.9", "optimizer.lr=1e-2", "trainer.max_steps=2"),
    *("trainer.val_check_interval=2", "callbacks.progress.refresh_rate=0", "callbacks.videos.num_clips=0"),
    *("page.clips=0", "report.latents=false", "validate_first=false"),
)


def configured(entry: str, *overrides: str, **values: Any) -> DictConfig:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose(entry, overrides=[*overrides, *(f"{key}={value}" for key, value in values.items())])


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthetic")


def distil(output: Path, cache: Path, teacher: Path, *overrides: str) -> dict[str, Any]:
    return train(
        configured("train", *RUN, f"data.cache_dir={cache}", f"output_dir={output}", f"teacher={teacher}", *overrides)
    )


@pytest.fixture(scope="module")
def run(cache: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that distilled the decoder of `checkpoint`."""
    folder = tmp_path_factory.mktemp("distilled")
    distil(folder, cache, checkpoint)
    return folder


def decoder_of(run: Path) -> Path:
    return run / "checkpoints" / "best.ckpt"


def test_a_checkpoint_is_a_decoder_that_names_its_encoder(run: Path, checkpoint: Path) -> None:
    teacher, saved = load_model(checkpoint), read_checkpoint(decoder_of(run))
    parts = {name.removeprefix("model.").partition(".")[0] for name in saved["state_dict"]}
    assert parts == {"decoder", "projections"}
    assert saved["encoder"] == teacher.encoder == load_decoder(decoder_of(run)).encoder
    assert saved["starting_weights"] == {"teacher": str(checkpoint), "sha256": teacher.sha256}
    average, raw = (load_decoder(decoder_of(run), weights).decoder.state_dict() for weights in ("ema", "raw"))
    assert any(not torch.equal(value, raw[name]) for name, value in average.items())
    with pytest.raises(UserError, match="is a tiny decoder, without an encoder"):
        load_model(decoder_of(run))


def test_a_run_ends_with_the_evaluation_of_the_pair(run: Path, cache: Path, checkpoint: Path) -> None:
    document = json.loads((run / "metrics.json").read_text())
    assert document["model"]["class"] == "TinyDecoder with the encoder of TemporalAutoencoder"
    assert document["checkpoint"]["sha256"] == load_decoder(decoder_of(run)).sha256
    compared = evaluate(
        configured(
            "evaluate", *DATA, "metrics=quick", "page.clips=0", "report.latents=false", "report.linear_codec=false",
            **{"ckpt": checkpoint, "decoder": decoder_of(run), "data.cache_dir": cache, "trainer.accelerator": "cpu"},
            output_dir=run / "both",
        )
    )  # fmt: skip
    assert compared["metrics"]["psnr"] == document["metrics"]["psnr"]
    assert compared["own_decoder"]["checkpoint"]["path"] == str(checkpoint)
    assert compared["own_decoder"]["metrics"]["psnr"] != compared["metrics"]["psnr"]
    page = (run / "both" / "index.html").read_text()
    assert all(label in page for label in (f"that of {checkpoint}", str(decoder_of(run))))
    assert json.loads((run / "both" / "metrics.json").read_text()) == compared


def test_an_export_has_the_decoder_alone(run: Path, tmp_path: Path) -> None:
    export(configured("export", ckpt=decoder_of(run), output=tmp_path / "shared"))
    names = set(load_file(tmp_path / "shared" / "model.safetensors"))
    decoder, shared = load_decoder(decoder_of(run)), load_decoder(tmp_path / "shared")
    assert names == set(decoder.decoder.state_dict())
    latents = torch.randn(1, 16, 2, 3, 2)
    with torch.no_grad():
        assert torch.equal(shared.decoder.decode(latents), decoder.decoder.decode(latents))
    assert shared.encoder == decoder.encoder
    card = (tmp_path / "shared" / "README.md").read_text()
    assert "| PSNR" in card
    assert str(decoder.encoder) in card
    with pytest.raises(UserError, match="format=onnx is of a whole autoencoder"):
        export(configured("export", ckpt=decoder_of(run), output=tmp_path / "graphs", format="onnx"))


def test_a_video_is_decoded_by_it_and_only_that_of_its_encoder(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", [24 * i for i in range(9)], size=(32, 32))
    common = {"source": source, "trainer.accelerator": "cpu", "decoder": decoder_of(run)}
    (outcome,) = reconstruct(configured("reconstruct", **common, ckpt=checkpoint, output=tmp_path / "out"))
    (own,) = reconstruct(
        configured("reconstruct", **common | {"decoder": "null"}, ckpt=checkpoint, output=tmp_path / "own")
    )
    assert outcome.psnr != own.psnr
    torch.manual_seed(1)
    other = TemporalAutoencoder(4, (1, 1, 1, 1), encoder_blocks=1, decoder_blocks=1, norm_groups=2)
    other.save_pretrained(tmp_path / "other")
    for entry, command in (("reconstruct", reconstruct), ("evaluate", evaluate)):
        settings = {"decoder": decoder_of(run), "ckpt": tmp_path / "other", "trainer.accelerator": "cpu"}
        place = (
            {"source": source, "output": tmp_path / "x"} if entry == "reconstruct" else {"output_dir": tmp_path / "y"}
        )
        with pytest.raises(UserError, match="decodes the latents of another encoder"):
            command(configured(entry, **settings, **place))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=distill"], "teacher=null: there is nothing to distil"),
        (["experiment=distill", "teacher=diffusers:Wen:x"], "teacher=diffusers:Wen:x: class_name=Wen is unknown. Choose"),
        (["experiment=distill", "teacher=diffusers:Wan"], "give diffusers:CLASS:SOURCE"),
        (["experiment=distill", "teacher=no/such/folder"], "teacher=no/such/folder: no such file or folder"),
        (["experiment=distill", "teacher=tiny", "trainable=decoder"], "trainable=decoder: what is distilled is a decoder"),
        (["experiment=distill", "teacher=tiny", "loss.kl.weight=1"], r"alone loss\.kl would train: add loss\.kl\.weight=0"),
        (["experiment=demo", "teacher=tiny"], "teacher=tiny is not read by this model: add experiment=distill"),
        (["experiment=demo", "loss.features.weight=1"], "loss.features compares a tiny decoder with its teacher"),
    ],
)  # fmt: skip
def test_what_cannot_be_distilled(overrides: list[str], message: str) -> None:
    here = ["data=synthetic", "trainer.accelerator=cpu", "loss.perceptual.weight=0", "output_dir=x"]
    with pytest.raises(UserError, match=message) as caught:
        check_training(configured("train", *overrides, *here))
    assert "\n" not in str(caught.value)


def test_a_plan_counts_the_teacher_too(checkpoint: Path) -> None:
    small = ("model=tiny_decoder", "model.width=4", "model.blocks=1", "loss=distill", "loss.perceptual.weight=0")
    clip = ("precision=fp32", "device=cpu", "data.num_frames=8", "data.resolution=32", f"teacher={checkpoint}")
    planner = make_planner(configured("plan", *small, *clip))
    teacher = sum(parameter.numel() for parameter in load_model(checkpoint).model.parameters())
    assert planner.num_parameters() > teacher
    step = planner.step((1, 8, 32, 32), Objective(features=FeatureMatching(1.0), reconstruction=Reconstruction(1.0)))
    # Forward and backward pass of the student, and the teacher's encoder, are the least that it takes.
    assert step.flops > 3 * planner.decode((1, 8, 32, 32)).flops + planner.encode((1, 8, 32, 32)).flops


@pytest.mark.slow
def test_a_resumed_run_is_the_run_that_was_not_stopped(
    cache: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, save = tmp_path / "run", LastCheckpoint.save

    def save_and_keep(self: LastCheckpoint, trainer: Any) -> None:
        save(self, trainer)
        if trainer.global_step == 3:
            shutil.copytree(run / "checkpoints", tmp_path / "stopped" / "checkpoints", dirs_exist_ok=True)

    monkeypatch.setattr(LastCheckpoint, "save", save_and_keep)
    steps = ("trainer.max_steps=6", "callbacks.last.every_n_steps=1", "resume=auto")
    distil(run, cache, checkpoint, *steps)
    run.rename(tmp_path / "whole")
    (tmp_path / "stopped").rename(run)
    torch.manual_seed(5)
    distil(run, cache, checkpoint, *steps)
    assert_same_state(tmp_path / "whole" / "checkpoints" / "last.ckpt", run / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match=r"model\.teacher was .* and is"):
        distil(run, cache, Path("tiny"), *steps, "trainer.max_steps=8")
    other = shutil.copytree(checkpoint, tmp_path / "teacher")
    torch.manual_seed(1)
    distil(tmp_path / "next", cache, other, *steps)
    TemporalAutoencoder(4, (1, 1, 1, 1), encoder_blocks=1, decoder_blocks=1, norm_groups=2).save_pretrained(other)
    with pytest.raises(UserError, match="learnt to decode the latents of another encoder"):
        distil(tmp_path / "next", cache, other, *steps, "trainer.max_steps=8")
