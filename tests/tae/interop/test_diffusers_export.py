"""A trained network of diffusers becomes a folder that diffusers reads: the same outputs, bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from tae import UserError, load_model
from tae.export import main
from tae.model.diffusers.autoencoder import DiffusersAutoencoder
from tae.model.pretrained import load_autoencoder
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.files import file_sha256
from tae.training.build import build_diffusers
from tests.fakes.diffusers_models import SMALL, make, save_checkpoint

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint(DiffusersAutoencoder(make("AutoencoderKLLTXVideo")), tmp_path / "best.ckpt")


def export(checkpoint: Path, output: Path, *overrides: str) -> None:
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        main(compose("export", overrides=[f"ckpt={checkpoint}", f"output={output}", *overrides]))


def test_exported_is_read_by_diffusers_to_the_same_outputs(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "exported")
    vae = diffusers.AutoencoderKLLTXVideo.from_pretrained(tmp_path / "exported").eval()
    clip = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    with torch.inference_mode():
        ours = load_autoencoder(checkpoint).model(clip, sample_posterior=False).reconstruction
        assert torch.equal(ours, vae(clip).sample)
    card = (tmp_path / "exported" / "README.md").read_text()
    assert 'AutoencoderKLLTXVideo.from_pretrained("exported")' in card
    assert "library_name: diffusers" in card
    # Every file is readable for others as any new file is.
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "exported").iterdir()} == {
        checkpoint.stat().st_mode & 0o777
    }


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name.endswith("Allegro") else name for name in SMALL]
)
def test_a_folder_and_a_checkpoint_give_the_same_model(name: str, tmp_path: Path) -> None:
    """Of every class: weights, config and sizes; what is exported again names no folder of this machine."""
    model = DiffusersAutoencoder(make(name))
    model.save_pretrained(tmp_path / "folder")
    save_checkpoint(model, tmp_path / "a.ckpt")
    for source in (tmp_path / "folder", tmp_path / "a.ckpt"):
        loaded = load_autoencoder(source).model
        assert isinstance(loaded, DiffusersAutoencoder)
        assert loaded.architecture == model.architecture
        assert loaded.grid == model.grid
        weights = model.state_dict()
        assert loaded.state_dict().keys() == weights.keys()
        assert all(torch.equal(value, weights[key]) for key, value in loaded.state_dict().items())
        loaded.save_pretrained(tmp_path / source.stem / "again")
        assert str(tmp_path) not in (tmp_path / source.stem / "again" / "config.json").read_text()


def test_weights_of_half_the_size(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, tmp_path / "half", "dtype=bf16")
    vae = diffusers.AutoencoderKLLTXVideo.from_pretrained(tmp_path / "half", torch_dtype=torch.bfloat16)
    assert vae.dtype == torch.bfloat16
    assert json.loads((tmp_path / "half" / "config.json").read_text())["_class_name"] == "AutoencoderKLLTXVideo"


def test_what_others_networks_cannot_do_here_is_said(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"format=onnx: .*AutoencoderKLLTXVideo of diffusers"):
        export(checkpoint, tmp_path / "graphs", "format=onnx")
    assert not (tmp_path / "graphs").exists()
    with pytest.raises(UserError, match="diffusers itself encodes, tiles and decodes"):  # encode, reconstruct
        load_model(checkpoint)


def test_a_checkpoint_of_another_config_is_refused(checkpoint: Path) -> None:
    """For a fine-tuning of the weights of a training (init_from)."""
    with pytest.raises(UserError, match="holds another network: class_name, config differ"):
        build_diffusers("AutoencoderKLWan", config=SMALL["AutoencoderKLWan"][0], init_from=str(checkpoint))
    config = SMALL["AutoencoderKLLTXVideo"][0]
    model = build_diffusers("AutoencoderKLLTXVideo", config=config, init_from=str(checkpoint))
    assert model.starting_weights == {"init_from": str(checkpoint), "sha256": file_sha256(checkpoint)}
    theirs = load_autoencoder(checkpoint).model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())
