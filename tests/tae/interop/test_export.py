"""Sharing: what is written comes back bit for bit, says how good it is, reaches the hub, and runs without Python."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch

from tae import TemporalAutoencoder, UserError
from tae.export import main
from tae.latents.report import latents_report
from tae.latents.stats import LatentStats
from tae.latents.sums import LatentSums
from tae.model.pretrained import load_model
from tae.runtime.files import file_sha256
from tests.fakes.hub import serve
from tests.tae.interop.trained import config, write_stats


def test_what_was_exported_gives_the_same_bits(run: Path, tmp_path: Path) -> None:
    main(config(ckpt=run / "checkpoints" / "best.ckpt", output=tmp_path / "model"))
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    ours = load_model(run / "checkpoints" / "best.ckpt").model
    theirs = TemporalAutoencoder.from_pretrained(tmp_path / "model").eval()
    clip = torch.rand(1, 3, 9, 19, 24) * 2 - 1
    with torch.no_grad():
        a, b = ours(clip, sample_posterior=False), theirs(clip, sample_posterior=False)
    assert torch.equal(a.reconstruction, b.reconstruction)
    assert torch.equal(a.posterior.logvar, b.posterior.logvar)


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_the_weights_have_the_rights_of_any_new_file(run: Path, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        main(config(ckpt=run / "checkpoints" / "best.ckpt", output=tmp_path / "model"))
    finally:
        os.umask(before)
    assert (tmp_path / "model" / "model.safetensors").stat().st_mode & 0o777 == 0o666 & ~mask


def test_half_precision_halves_the_file_and_rounds_the_weights(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "best.ckpt"
    for dtype in ("fp32", "fp16"):
        main(config(ckpt=checkpoint, output=tmp_path / dtype, dtype=dtype))
    sizes = {dtype: (tmp_path / dtype / "model.safetensors").stat().st_size for dtype in ("fp32", "fp16")}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]  # names take their share of so small a file
    ours, theirs = load_model(checkpoint).model.state_dict(), load_model(tmp_path / "fp16").model.state_dict()
    assert all(torch.equal(theirs[name], ours[name].half().float()) for name in ours)
    assert "rounded to fp16" in (tmp_path / "fp16" / "README.md").read_text()
    with pytest.raises(UserError, match="dtype=int8"):
        main(config(ckpt=checkpoint, output=tmp_path / "int8", dtype="int8"))


def test_the_card_says_how_good_it_is_and_how_that_was_measured(run: Path, tmp_path: Path) -> None:
    main(config(ckpt=run / "checkpoints" / "best.ckpt", output=tmp_path / "name", license="other"))
    card = (tmp_path / "name" / "README.md").read_text()
    for part in (
        "license: other",
        "library_name: temporal-autoencoder",
        "| PSNR (dB) | 31.42 [31.00, 31.80] | 22.50 [22.00, 23.00] |",
        "| SSIM | 0.9235 | - |",
        "Protocol `tae-eval-1`: 1,234 clips, 39,488 frames (32 frames, 256 pixels each way)",
        "`image_vae=owner/vae`, SHA-256 `abc`",
        file_sha256(run / "checkpoints" / "best.ckpt"),
    ):
        assert part in card, card
    assert "LPIPS" not in card  # not measured
    assert "secret" not in card


def test_metrics_of_another_checkpoint_are_not_passed_on(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "best.ckpt"
    other = tmp_path / "run" / "checkpoints" / "other.ckpt"
    other.parent.mkdir(parents=True)
    torch.save(torch.load(checkpoint, weights_only=True) | {"epoch": 7}, other)
    (tmp_path / "run" / "metrics.json").write_text((run / "metrics.json").read_text())
    main(config(ckpt=other, output=tmp_path / "model"))
    assert "Not measured." in (tmp_path / "model" / "README.md").read_text()
    with pytest.raises(UserError, match=r"about another file.*python evaluate\.py ckpt="):
        main(config(ckpt=other, output=tmp_path / "again", metrics_json=run / "metrics.json"))


def test_the_card_says_what_a_generator_will_find(run: Path, tmp_path: Path) -> None:
    sums = LatentSums()
    for _ in range(2):
        sums.add(torch.randn(16, 2, 4, 4), torch.full((16, 2, 4, 4), 0.5))
    report = json.loads(json.dumps(latents_report(sums)))
    metrics = json.loads((run / "metrics.json").read_text()) | {"latents": report}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    main(config(ckpt=run / "checkpoints" / "best.ckpt", output=tmp_path / "m", metrics_json=tmp_path / "metrics.json"))
    card = (tmp_path / "m" / "README.md").read_text()
    assert "## Latents for a generator" in card
    assert "| measured on | 2 clips, 64 positions |" in card
    assert "| of it the posterior's | 0.500 to 0.500 |" in card


def test_statistics_of_the_latents_go_along(run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoints" / "best.ckpt"
    write_stats(tmp_path, file_sha256(checkpoint))
    main(config(ckpt=checkpoint, output=tmp_path / "model", latents=tmp_path))
    assert LatentStats.read(tmp_path / "model").scale == 0.25
    stated = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (stated["scaling_factor"], stated["shift_factor"]) == (0.25, 0.5)
    assert (stated["latents_mean"], stated["latents_std"]) == ([0.5], [2.0])
    before, after = load_model(checkpoint).model, load_model(tmp_path / "model").model
    assert before.architecture == after.architecture
    assert "`(latents - 0.50000) * 0.25000`" in (tmp_path / "model" / "README.md").read_text()
    write_stats(tmp_path, "another")
    with pytest.raises(UserError, match="were made by p, which is not"):
        main(config(ckpt=checkpoint, output=tmp_path / "again", latents=tmp_path))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"format": "tflite"}, "format=tflite is not allowed"),
        ({"push": True}, "push=true needs repo=OWNER/NAME"),
        ({"push": True, "repo": "'a b/c'"}, "no name of a repository"),
    ],
)
def test_mistakes_are_named(run: Path, tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(config(ckpt=run / "checkpoints" / "best.ckpt", output=tmp_path / "model", **wrong))
    assert not (tmp_path / "model").exists()


@pytest.fixture
def hub_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Point huggingface_hub to another address. (It reads its environment at import, which is too early here.)"""

    def point_to(address: str) -> None:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
        path = template[template.index("/{repo_id}") :]
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + path)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", "hf_x")

    return point_to


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own use of its HTTP library
def test_push_uploads_the_folder_and_it_can_be_loaded(
    run: Path, tmp_path: Path, hub_settings: Callable[[str], None]
) -> None:
    with serve() as hub:
        hub_settings(hub.address)
        output = main(config(ckpt=run / "checkpoints" / "best.ckpt", output=tmp_path / "m", push=True, repo="me/model"))
        (created,) = hub.created
        assert created["visibility"] == "private" if "visibility" in created else created["private"]
        assert hub.uploads["me/model"] == {path.name: path.read_bytes() for path in output.iterdir()}
        hub.files = {f"me/model/{name}": content for name, content in hub.uploads["me/model"].items()}
        assert load_model("me/model").sha256 == file_sha256(output / "model.safetensors")
        hub.refusals["me/model"] = (403, "")
        with pytest.raises(UserError, match=r"does not let you write to me/model.*may write to repositories of me"):
            main(config(ckpt=run / "checkpoints" / "best.ckpt", output=tmp_path / "n", push=True, repo="me/model"))


def test_every_refusal_of_the_hub_has_its_own_message(
    run: Path, tmp_path: Path, hub_settings: Callable[[str], None]
) -> None:
    """The same as those of `model.image_vae`, with what a model can be given as in the place of image weights."""
    with serve() as hub:
        hub_settings(hub.address)
        hub.refusals = {
            "gated/anonymous": (401, "GatedRepo"),
            "gated/no-licence": (403, "GatedRepo"),
            "expired/token": (401, ""),
            "narrow/token": (403, ""),
        }
        hub.files["weights/alone/model.safetensors"] = b"weights"
        hub.files["config/alone/config.json"] = b"{}"
        for repo_id, message in {
            "gated/anonymous": f"not logged in: accept its licence at {hub.address}/gated/anonymous",
            "gated/no-licence": "your token's account has no access",
            "expired/token": "does not accept your token: log in again",
            "narrow/token": r"access is forbidden.*hf download narrow/token --local-dir DIR",
            "none/such": r"none/such: neither a local path nor a repository that you can see.*Give a checkpoint \(\.ckpt\)",
            "no--such/name": r"neither a local path nor a repository",
            "like/tae-1.5": r"like/tae-1\.5: neither a local path nor a repository",
            "like/tae-1.5.ckpt": r"no such file or folder",
            "./folder": r"no such file or folder",
            "weights/alone": r"weights/alone holds none of: config\.json",
            "config/alone": r"config/alone holds none of: model\.safetensors",
        }.items():
            with pytest.raises(UserError, match=message):
                load_model(repo_id)


def test_statistics_on_the_hub_are_found(run: Path, tmp_path: Path, hub_settings: Callable[[str], None]) -> None:
    """Latents of another scale than the generator's would decode to garbage without a word."""
    pytest.importorskip("diffusers")
    from tae.interop.diffusers_adapter import DiffusersVAE

    output = main(config(ckpt=run / "checkpoints" / "best.ckpt", output=tmp_path / "model"))
    per_channel = dict.fromkeys(("mean", "std", "posterior_std"), [1.0] * 16)
    counts = dict.fromkeys(("num_clips", "num_latent_frames", "num_positions"), 1)
    stats = {"version": 1, "shift": 0.25, "scale": 0.5, "outlier_rate": 0.0, "checkpoint": {}} | per_channel | counts
    with serve() as hub:
        hub_settings(hub.address)
        for repo in ("me/with", "me/without"):
            hub.files |= {f"{repo}/{path.name}": path.read_bytes() for path in output.iterdir()}
        hub.files["me/with/latent_stats.json"] = json.dumps(stats).encode()
        found = DiffusersVAE.from_pretrained("me/with").config
        assert (found.scaling_factor, found.shift_factor) == (0.5, 0.25)
        assert DiffusersVAE.from_pretrained("me/without").config.scaling_factor == 1.0
