"""Training of networks of diffusers: the step, its plan, and what is refused before it."""

import json
import re
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from tae import UserError
from tae.losses import Objective
from tae.losses.kl import KL
from tae.losses.reconstruction import Reconstruction
from tae.losses.step import compute_loss, training_step
from tae.model.diffusers.autoencoder import DiffusersAutoencoder
from tae.model.frame_conversion import frames_to_clip
from tae.model.streaming import encode_stream
from tae.planning.planner import make_planner
from tae.runtime.cli import CONFIG_FOLDER
from tae.training.build import build_diffusers
from tae.training.config_checks import distilled, other_network
from tests.fakes.diffusers_models import SMALL, make

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
WAN = SMALL["AutoencoderKLWan"][0]


def config(entry: str, class_name: str = "AutoencoderKLWan") -> DictConfig:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        overrides = ["model=diffusers", f"model.class_name={class_name}"]
        cfg = compose(entry, overrides=overrides + (["data=synthetic"] if entry == "train" else []))
    OmegaConf.set_struct(cfg, False)
    cfg.model.config = dict(SMALL[class_name][0])
    return cfg


@pytest.fixture(scope="module")
def wan() -> DictConfig:
    """A training of Wan, of clips that fit."""
    cfg = config("train")
    cfg.data.num_frames, cfg.data.resolution = 17, 64
    return cfg


def told(cfg: DictConfig, *settings: str) -> str | None:
    changed = OmegaConf.merge(cfg, OmegaConf.from_dotlist(list(settings)))
    assert isinstance(changed, DictConfig)
    return other_network(changed)


def test_a_few_steps_of_the_decoder_alone_lower_the_loss() -> None:
    model = build_diffusers("AutoencoderKLWan", config=WAN, trainable="decoder")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    frames = torch.randint(0, 255, (1, 5, 16, 16, 3), dtype=torch.uint8)
    loss = Objective(reconstruction=Reconstruction(1.0))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), 1e-2)
    first = compute_loss(model, loss, frames_to_clip(frames)).total
    for _ in range(5):
        training_step(model, loss, optimizer, frames, torch.autocast("cpu", enabled=False))
    assert compute_loss(model, loss, frames_to_clip(frames)).total < 0.95 * first
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith(("vae.decoder.", "vae.post_quant_conv.")) for name in changed)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        (["data.num_frames=16"], "data.num_frames, .* given clips of 16 frames, .* the nearest are 13 and 17"),
        (["data.resolution=36"], "36 rows, .* the nearest are 32 and 40"),
        (["data.sources={images: {num_frames: 2}}"], r"data\.sources\.images\.num_frames.* are 1 and 5"),
        (["model.class_name=AutoencoderKLWam"], "AutoencoderKLWam is unknown. Choose one of: AutoencoderDC"),
        (["model.config.based_im=8"], "makes no AutoencoderKLWan: .*based_im"),
        (["model.parts=[]"], r"^model\.parts=\[\] trains nothing: name parts, or null for all\.$"),
        (["model.parts=[decoder.up]"], "decoder.up names nothing"),
        (["model.parts=[decoder]", "trainable=decoder"], "both say what is trained"),
        (["model.parts=[decoder]"], "add loss.kl.weight=0 loss.opl.weight=0"),
        (["trainable=temporal"], "name parts of it in model.parts"),
        (["model.source=./nothing"], "no such folder"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(settings: list[str], wanted: str, wan: DictConfig) -> None:
    found = told(wan, *settings)
    assert found is not None
    assert re.search(wanted, found), found


def test_what_fits_is_not_refused(wan: DictConfig) -> None:
    assert told(wan) is None
    assert told(wan, "data.num_frames=1") is None
    assert told(wan, "model.parts=[decoder]", "loss.kl.weight=0", "loss.opl.weight=0") is None


@pytest.mark.parametrize("struct", [False, True])
def test_a_folder_to_fine_tune_is_checked_by_its_config(struct: bool, tmp_path: Path) -> None:
    make("AutoencoderKLWan").save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").write_bytes(b"")  # weights are for the training
    cfg = config("train")
    cfg.model.config, cfg.model.source = None, str(tmp_path)
    cfg.data.num_frames, cfg.data.resolution = 17, 64
    OmegaConf.set_struct(cfg, struct)
    assert other_network(cfg) is None
    cfg.data.num_frames = 16
    assert "13 and 17" in str(other_network(cfg))


@pytest.mark.parametrize("prefix", ["diffusers:{name}:", ""])
@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("AutoencoderKLWan", (16, 64), r"16 frames, where it takes 4k\+1 frames: the nearest are 13 and 17"),
        ("AutoencoderKLLTXVideo", (16, 64), r"16 frames, where it takes 8k\+1 frames: the nearest are 9 and 17"),
        ("AutoencoderKLWan", (17, 36), "36 rows, .* the nearest are 32 and 40"),
        ("AutoencoderKLWan", (17, 64), None),
    ],
)
def test_a_teacher_is_given_clips_that_fit(
    name: str, given: tuple[int, int], wanted: str | None, prefix: str, tmp_path: Path
) -> None:
    """Its config alone says so."""
    (tmp_path / "config.json").write_text(json.dumps(SMALL[name][0] | {"_class_name": name}))
    cfg = teacher_config(f"{prefix.format(name=name)}{tmp_path}", *given)
    found = distilled(cfg)
    assert (found is None) if wanted is None else re.search(wanted, str(found)), found


def teacher_config(teacher: str, num_frames: int, resolution: int) -> DictConfig:
    settings = {"teacher": teacher, "data.num_frames": num_frames, "data.resolution": resolution}
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        overrides = ["experiment=distill", "data=synthetic", *(f"{key}={value}" for key, value in settings.items())]
        return compose("train", overrides=overrides)


def test_a_variance_that_is_not_there_is_not_trained() -> None:
    cfg = config("train", "AutoencoderKLCosmos")
    found = told(cfg, "data.num_frames=9", "data.resolution=64")
    assert found == (
        "AutoencoderKLCosmos gives latents without a variance, which loss.kl would look at: add loss.kl.weight=0."
    )


def test_it_is_neither_streamed_nor_tiled() -> None:
    model = DiffusersAutoencoder(make("AutoencoderKLWan"))
    with pytest.raises(UserError, match="AutoencoderKLWan takes clips of certain lengths only"):
        next(encode_stream(model, [torch.zeros(1, 3, 9, 16, 16)]))


@pytest.mark.slow
def test_a_step_is_planned() -> None:
    """With the LTX network, whose step has fewer operations."""
    cfg = config("plan", "AutoencoderKLLTXVideo")
    cfg.device = "cpu"
    planner = make_planner(cfg)
    cost = planner.step((1, 9, 32, 32), Objective(reconstruction=Reconstruction(1.0), kl=KL(1e-6)))
    parameters = planner.num_parameters()
    assert parameters == sum(p.numel() for p in make("AutoencoderKLLTXVideo").parameters())
    assert cost.peak_bytes > 4 * 4 * parameters  # weights, gradients, two moments
    assert cost.flops > 2 * planner.encode((1, 9, 32, 32)).flops
