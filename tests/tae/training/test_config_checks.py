"""What a training is refused for before anything long, and what it is not."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Checkpoint
from omegaconf import DictConfig

from tae import TemporalAutoencoder, UserError
from tae.runtime.cli import CONFIG_FOLDER, empty_group
from tae.training import checkpointing
from tae.training.build import build_autoencoder
from tae.training.checkpointing import LastCheckpoint
from tae.training.config_checks import architecture, check_training
from tae.training.run import build_trainer, model_to_measure


def demo(*overrides: str) -> DictConfig:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose("train", overrides=["experiment=demo", "output_dir=x", *map(empty_group, overrides)])


def refusal(cfg: DictConfig) -> str:
    with pytest.raises(UserError) as caught:
        check_training(cfg)
    return str(caught.value)


def test_the_demo_is_not_refused() -> None:
    check_training(demo())


@pytest.mark.parametrize("batches", ["0", "-5", "null", "0.5"])  # there is no epoch to take half of
def test_validations_are_counted_in_batches(batches: str) -> None:
    told = refusal(demo(f"trainer.val_check_interval={batches}"))
    assert f"trainer.val_check_interval={batches}" in told
    assert "batches" in told
    assert "data.shards.val=null" in told
    assert "\n" not in told


def test_a_time_between_validations_is_lightnings() -> None:
    cfg = demo("trainer.val_check_interval='00:00:10:00'", "logger=[]")
    check_training(cfg)
    build_trainer(cfg, [])
    half = demo("trainer.val_check_interval=0.5", "trainer.check_val_every_n_epoch=1", "logger=[]")
    check_training(half)
    build_trainer(half, [])


def test_what_lightning_refuses_is_a_sentence() -> None:
    cfg = demo("trainer.val_check_interval=soon", "logger=[]")
    check_training(cfg)
    with pytest.raises(UserError, match=r"^Lightning does not take these settings of trainer: .*val_check_interval"):
        build_trainer(cfg, [])


FSDP = "trainer.strategy={_target_: lightning.pytorch.strategies.FSDPStrategy}"


@pytest.mark.parametrize("strategy", ["trainer.strategy=fsdp", FSDP, "trainer.strategy=deepspeed_stage_2"])
def test_divided_parameters_are_not_clipped_by_a_norm_of_a_part(strategy: str) -> None:
    told = refusal(demo(strategy))
    assert "trainer.gradient_clip_val=null" in told
    assert "\n" not in told
    check_training(demo(strategy, "trainer.gradient_clip_val=null"))
    check_training(demo(strategy, "+trainer.gradient_clip_algorithm=value"))


def test_weights_trained_with_another_group_norm_are_refused() -> None:
    cfg = demo("model.group_norm=clip")
    with pytest.raises(InstantiationException) as caught:
        instantiate(cfg.model, init_from=cfg.init_from)
    assert isinstance(caught.value.__cause__, UserError)
    assert "trained with group_norm=frame, and this model has group_norm=clip" in str(caught.value.__cause__)
    assert "Give model.group_norm=frame" in str(caught.value.__cause__)
    instantiate(demo().model, init_from=cfg.init_from)


def test_weights_trained_with_another_padding_are_refused() -> None:
    """Older checkpoints name no padding, and have that of today's default."""
    cfg = demo("model.temporal_padding=zeros")
    with pytest.raises(InstantiationException) as caught:
        instantiate(cfg.model, init_from=cfg.init_from)
    assert "trained with temporal_padding=replicate, and this model has temporal_padding=zeros" in str(caught.value)
    assert "Give model.temporal_padding=replicate" in str(caught.value)


def test_groups_mean_nothing_to_a_network_without_them(tmp_path: Path) -> None:
    """Neither have they to divide its channels, nor to be those of the weights that it starts with."""
    sizes = {"channel_multipliers": [1, 1], "encoder_blocks": 1, "decoder_blocks": 1, "norm": "rms"}
    TemporalAutoencoder(4, **sizes, norm_groups=3, group_norm="frame").save_pretrained(tmp_path)
    options = {"image_vae": None, "gradient_checkpointing": False, "compile_blocks": False}
    groups = {"norm_groups": 5, "group_norm": "clip"}
    build_autoencoder(init_from=str(tmp_path), base_channels=4, **options, **sizes, **groups)
    cfg = demo("model.norm=rms", "model.norm_groups=7")
    assert architecture(cfg) is None
    with pytest.raises(UserError, match="norm_groups=7 does not divide"):
        TemporalAutoencoder(4, norm_groups=7)


@pytest.fixture
def there(tmp_path: Path) -> str:
    (tmp_path / "shard-000000.tar").touch()
    return f"{tmp_path}/shard-*.tar"


FOLDER = ("data=folder", "model=tiny", "loss.perceptual.weight=0", "trainer.accelerator=cpu", "output_dir=x")


def folder(*overrides: str) -> DictConfig:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose("train", overrides=[*FOLDER, *overrides])


def test_shards_of_the_test_are_asked_for_before_the_training(there: str) -> None:
    """They are read when it has ended."""
    given = [f"data.shards.train={there}", f"data.shards.val={there}"]
    check_training(folder(*given, f"data.shards.test={there}"))
    told = refusal(folder(*given))
    assert "data.shards.test=datasets/folder/test/shard-*.tar" in told
    assert "\n" not in told
    assert "data.shards.test is not set" in refusal(folder(*given, "data.shards.test=null"))
    check_training(folder(*given, "data.shards.val=null", f"data.shards.test={there}"))


def test_shards_of_every_source_are_asked_for_before_the_training(there: str) -> None:
    given = [f"data.shards.{split}={there}" for split in ("val", "test")]
    sources = f"data.sources={{a: {{shards: '{there}'}}, b: {{num_frames: 1, shards: '{there}'}}, c: null}}"
    check_training(folder(*given, sources, "data.shards.train=null"))  # which no source reads
    absent = sources.replace("num_frames: 1, shards", "num_frames: 1, interleave: 2, index").replace(
        "index: '", "index: 'x"
    )
    assert "data.shards.train is not set" in refusal(folder(*given, absent, "data.shards.train=null"))
    assert "data.sources.a.shards=nowhere/*.tar" in refusal(
        folder(*given, sources.replace(f"'{there}'", "'nowhere/*.tar'", 1), "data.shards.train=null")
    )
    told = refusal(
        folder(*given, sources.replace("num_frames: 1", "num_frames: 0, weight: -1"), "data.shards.train=null")
    )
    assert "data.sources.b.num_frames=0 is not allowed: give a whole number, at least 1 or null." in told
    assert "data.sources.b.weight=-1 is not allowed: give a number, greater than 0." in told


@pytest.mark.parametrize(("setting", "said"), [
    ("data.fps=0", "data.fps=0 is not allowed: give a number, greater than 0, a list"),
    ("data.fps=nan", "data.fps=nan is not allowed"),
    ("data.fps=[24,-1]", "data.fps=[24, -1] is not allowed"),
    ("data.frame_stride=[1,0]", "data.frame_stride=[1, 0] is not allowed"),
    ("data.buckets={a: {height: tall}}", "data.buckets.a.height=tall is not allowed: give a whole number"),
])  # fmt: skip
def test_a_rate_or_a_shape_that_is_none_is_a_sentence(setting: str, said: str, there: str) -> None:
    told = refusal(folder(*(f"data.shards.{split}={there}" for split in ("train", "val", "test")), setting))
    assert said in told
    assert "\n" not in told


@pytest.mark.parametrize("never", ["0", "null"])
def test_the_last_checkpoint_need_not_be_written_every_few_steps(never: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = demo(f"callbacks.last.every_n_steps={never}")
    check_training(cfg)
    last = instantiate(cfg.callbacks.last)
    assert isinstance(last, LastCheckpoint)
    saved: list[int] = []
    monkeypatch.setattr(last, "save", lambda trainer: saved.append(trainer.global_step))
    monkeypatch.setattr(last.signals, "agreed", lambda: 0)
    monkeypatch.setattr(checkpointing, "validation_follows", lambda trainer: trainer.global_step == 3)
    for step in range(1, 6):
        last.on_train_batch_end(
            SimpleNamespace(global_step=step, max_steps=100),
            SimpleNamespace(between_steps=False),  # type: ignore[arg-type]
        )
    assert saved == [3], "before a validation all the same"


def test_a_negative_rhythm_is_refused() -> None:
    assert "callbacks.last.every_n_steps=-1" in refusal(demo("callbacks.last.every_n_steps=-1"))


STEPS = ("trainer.max_steps=2", "trainer.log_every_n_steps=1", "trainer.limit_val_batches=0")


class Nothing(L.LightningModule):
    """One weight, for the loop around a training."""

    between_steps = False

    def __init__(self) -> None:
        super().__init__()
        self.model = torch.nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        loss = self.model(batch).sum()
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    "overrides", [["~logger"], ["logger=null"], ["logger=[]"], ["~callbacks"], ["~callbacks", "logger=null"]]
)
@pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning")
@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
def test_nothing_is_a_choice_of_loggers_and_callbacks(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = demo(f"output_dir={tmp_path}/run", *STEPS, *overrides)
    check_training(cfg)
    callbacks = list(instantiate(cfg.get("callbacks") or {}).values())
    trainer = build_trainer(cfg, [callback for callback in callbacks if not hasattr(callback, "num_clips")])
    module: Any = Nothing()
    trainer.fit(module, torch.utils.data.DataLoader(torch.ones(4, 1)))
    assert trainer.global_step == 2
    written = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert ("metrics.csv" in written) is (overrides == ["~callbacks"])
    assert any(isinstance(callback, Checkpoint) for callback in trainer.callbacks) is ("~callbacks" not in overrides)
    if "~callbacks" in overrides:
        assert "last.ckpt" not in written
        measured = model_to_measure([], module, cfg)
        assert measured.model is module.model
        assert measured.sha256 is None


def test_compiled_blocks_need_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    told = refusal(demo("model.compile_blocks=true"))
    assert "needs a C++ compiler" in told
    assert "model.compile_blocks=false" in told
    check_training(demo())
    monkeypatch.setenv("CXX", "ccache mine")
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}" if name in ("ccache", "mine") else None)
    check_training(demo("model.compile_blocks=true"))


def test_barebones_is_a_sentence() -> None:
    told = refusal(demo("+trainer.barebones=true"))
    assert told.startswith("trainer.barebones=true")
    assert "\n" not in told
    check_training(demo("+trainer.barebones=false"))


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["adversary=patch", "adversary.layers=7"], "data.resolution=64: too small for adversary.layers=7"),
        (
            ["adversary=patch", "adversary.layers=5", "loss.equivariance.weight=0.5"],
            "data.resolution=64, which loss.equivariance.scales makes 16: too small for adversary.layers=5",
        ),
        (["loss.perceptual.weight=1", "data.resolution=8"], "data.resolution=8: too small for loss.perceptual.net=vgg"),
        (["model.channel_dropout=[8, 4]"], "model.channel_dropout=[8, 4] is no list"),
    ],
)
def test_frames_and_latents_that_are_too_small_are_refused_before_the_start(overrides: list[str], told: str) -> None:
    assert told in refusal(demo(*overrides))


def test_frames_that_are_large_enough_are_not_refused() -> None:
    check_training(demo("adversary=patch", "adversary.layers=4", "loss.equivariance.weight=0.5"))
    check_training(
        demo("adversary=patch", "adversary.layers=6", "loss.equivariance.weight=0.5", "loss.equivariance.mode=extra")
    )
