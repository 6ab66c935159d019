"""Training a part of the model: what stays to the bit, what is refused, and who may use the latents."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from reliability.tiny_run import train_here

from tae import UserError
from tae.encode import main as encode
from tae.model.checkpoint_file import read_checkpoint
from tae.model.encoder_identity import encoder_sha256
from tae.model.frame_conversion import frames_to_clip
from tae.model.inflate import is_temporal
from tae.model.pretrained import load_model
from tae.reconstruct import main as reconstruct
from tae.runtime.cli import CONFIG_FOLDER
from tae.training.config_checks import check_training
from tae.training.resume import check_resumable
from tae.video.reader import VideoReader
from tests.references.video import make_video

RUN = ("trainer.max_steps=2", "trainer.val_check_interval=2", "callbacks.videos.num_clips=0", "page.clips=0")
NO_LATENT_TERMS = ("loss.kl.weight=0", "loss.opl.weight=0")
DECODER = ("trainable=decoder", *NO_LATENT_TERMS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("synthetic")


@pytest.fixture(scope="module")
def runs(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints: of a whole training, and of one of its decoder and one of its temporal parts that start from it."""
    folder = tmp_path_factory.mktemp("runs")
    ckpt = {name: folder / name / "checkpoints" / "last.ckpt" for name in ("all", "decoder", "temporal")}
    train_here(folder / "all", cache, *RUN)
    start = f"init_from={ckpt['all']}"
    train_here(folder / "decoder", cache, *RUN, *DECODER, start, "ema.decay=0.9")
    train_here(folder / "temporal", cache, *RUN, "trainable=temporal", start)
    return ckpt


def changed(before: Path, after: Path) -> set[str]:
    was, now = (load_model(path).model.state_dict() for path in (before, after))
    return {name for name in was if not torch.equal(was[name], now[name])}


def test_what_is_frozen_stays_and_has_no_state(runs: dict[str, Path]) -> None:
    names = set(load_model(runs["all"]).model.state_dict())
    for run, is_trained in (("decoder", lambda name: name.startswith("decoder.")), ("temporal", is_temporal)):
        expected = {name for name in names if is_trained(name)}
        assert changed(runs["all"], runs[run]) == expected, run
        checkpoint = read_checkpoint(runs[run])
        assert len(checkpoint["optimizer_states"][0]["state"]) == len(expected)
    assert set(read_checkpoint(runs["decoder"])["raw_weights"]) == {n for n in names if n.startswith("decoder.")}


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_latents_are_the_same_before_and_after(
    dtype: torch.dtype | None, runs: dict[str, Path], shared_clips: Path
) -> None:
    with VideoReader(sorted((shared_clips / "ucf101").rglob("*.avi"))[0]) as reader:
        frames = np.stack([frame.rgb[:64, :64] for frame, _ in zip(reader.frames(), range(9), strict=False)])
    clip = frames_to_clip(torch.from_numpy(frames)[None])
    latents = {}
    for run, ckpt in runs.items():
        with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype is not None):
            posterior = load_model(ckpt).model.encode(clip)
        latents[run] = torch.stack([posterior.mean, posterior.logvar])
    assert torch.equal(latents["decoder"], latents["all"])
    assert not torch.equal(latents["temporal"], latents["all"])


def test_the_checkpoint_names_the_encoder(runs: dict[str, Path]) -> None:
    named = {run: read_checkpoint(ckpt)["encoder"] for run, ckpt in runs.items()}
    assert named == {run: load_model(ckpt).encoder for run, ckpt in runs.items()}
    assert named["decoder"] == named["all"] != named["temporal"]


def test_a_frozen_encoder_is_hashed_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counting(*args: Any) -> str:
        hashed.append(encoder_sha256(*args))
        return hashed[-1]

    monkeypatch.setattr("tae.training.module.encoder_sha256", counting)
    train_here(tmp_path, cache, *RUN, *DECODER, "callbacks.last.every_n_steps=1")
    saved = {read_checkpoint(path)["encoder"] for path in (tmp_path / "checkpoints").glob("*.ckpt")}
    assert len(hashed) == 1
    assert saved == set(hashed) == {load_model(tmp_path / "checkpoints" / "last.ckpt").encoder}


def command(entry: str, **values: Any) -> Any:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose(entry, overrides=[f"{key}={value}" for key, value in values.items()])


def test_latents_belong_to_every_decoder_of_their_encoder(runs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    for name in ("a.mp4", "b.mp4"):
        make_video(tmp_path / "videos" / name, [24 * i for i in range(9)], size=(32, 32))
    common = {"source": tmp_path / "videos", "trainer.accelerator": "cpu"}
    settings = common | {"output": tmp_path / "latents", "num_workers": 0}
    encode(command("encode", ckpt=runs["all"], **settings))
    stats = encode(command("encode", ckpt=runs["decoder"], **settings))  # the same folder: nothing is begun again
    assert load_model(runs["decoder"]).encoded(stats.checkpoint)
    with pytest.raises(UserError, match="begun with other settings: encoder was"):
        encode(command("encode", ckpt=runs["temporal"], **settings))

    pair = {"ckpt": runs["all"], "decoder": runs["decoder"], "output": tmp_path / "pair"}
    alone = {"ckpt": runs["decoder"], "output": tmp_path / "alone"}
    of_pair, of_one = (reconstruct(command("reconstruct", **common, **choice)) for choice in (pair, alone))
    assert [outcome.psnr for outcome in of_pair] == [outcome.psnr for outcome in of_one]
    with pytest.raises(UserError, match="decodes the latents of another encoder"):
        reconstruct(command("reconstruct", **common, **pair | {"decoder": runs["temporal"]}))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainable=decoder"], r"loss\.kl and loss\.opl would train: add loss\.kl\.weight=0 loss\.opl\.weight=0"),
        (["trainable=encoder"], "trainable=encoder is not allowed: give all, decoder or temporal"),
        (["trainable=decoder", "model.trainable=all", *NO_LATENT_TERMS], "is not read by this model"),
    ],
)
def test_what_cannot_be_trained(overrides: list[str], message: str) -> None:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        cfg = compose("train", overrides=["experiment=demo", *overrides, "output_dir=x"])
    with pytest.raises(UserError, match=message):
        check_training(cfg)


def test_a_run_of_before_the_setting_is_resumed_and_with_another_one_is_not() -> None:
    now = {"trainable": "all", "model": {"trainable": "all"}, "ema": {"decay": None}}
    check_resumable({"config": {}}, now, Path("a.ckpt"))
    with pytest.raises(UserError, match="trainable was 'all' and is 'decoder'"):
        check_resumable({"config": {}}, now | {"trainable": "decoder"}, Path("a.ckpt"))
