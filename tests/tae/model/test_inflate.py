"""An image autoencoder's weights in the video model: every layout, parity with diffusers, what is refused."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from tae import TemporalAutoencoder, UserError, frames_to_clip
from tae.model.inflate import find_weights
from tests.fakes.hub import serve

diffusers = pytest.importorskip("diffusers")

# Stable Diffusion 3.5's shape at an eighth of its width, so that the tests are quick; the full one is in the slow test.
NARROW = {"base_channels": 16, "norm_groups": 4}


def make_image_vae(folder: Path, base: int, groups: int, **changes: object) -> "diffusers.AutoencoderKL":
    """Write diffusers' AutoencoderKL of SD3.5's layout with random weights to `folder`, as it writes real ones."""
    settings = {
        "in_channels": 3,
        "out_channels": 3,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": tuple(base * m for m in (1, 2, 4, 4)),
        "layers_per_block": 2,
        "latent_channels": 16,
        "norm_num_groups": groups,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    vae = diffusers.AutoencoderKL(**(settings | changes)).eval()
    vae.save_pretrained(folder)
    return vae


@pytest.fixture(scope="module")
def image_vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd35") / "vae"
    make_image_vae(folder, base=16, groups=4)
    return folder


def to_original_layout(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Rename diffusers' names to the original ones; written from the two published layouts, not from tae's rules."""
    renamed = {}
    for name, value in state.items():
        new = re.sub(r"encoder\.down_blocks\.(\d)\.resnets\.(\d)", r"encoder.down.\1.block.\2", name)
        new = re.sub(r"encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new)
        new = new.replace("mid_block.attentions.0.group_norm", "mid.attn_1.norm")
        new = new.replace("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out")
        new = re.sub(r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1", new)
        new = new.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
        if "attn_1" in new and new.endswith("weight") and "norm" not in new:
            value = value[:, :, None, None]
        renamed[prefix + new] = value.contiguous()
    return renamed


def assert_same_weights(a: TemporalAutoencoder, b: TemporalAutoencoder) -> None:
    """All that an image autoencoder has; what temporal attention reads before its zero projection is random."""
    spatial = [name for name in a.state_dict() if ".temporal_attention" not in name]
    assert all(torch.equal(a.state_dict()[name], b.state_dict()[name]) for name in spatial)


def assert_image_behaviour(model: TemporalAutoencoder, vae: "diffusers.AutoencoderKL", clip: torch.Tensor) -> None:
    """Latent frame i is the image latent of frame 8 i, and decoding repeats each decoded latent frame 8 times.

    The two run the same float32 arithmetic in other memory layouts: 1.6e-5 was seen. A shifted frame, a missing
    layer or swapped weights differ by more than 0.01.
    """
    _, _, frames, height, width = clip.shape
    padded = F.pad(clip, (0, -width % 8, 0, -height % 8, 0, 0), mode="replicate")
    with torch.no_grad():
        posterior = model.encode(clip)
        decoded = model.decode(posterior.mode(), num_frames=frames, size=(height, width))
        assert posterior.mean.shape[2] == -(-frames // 8)
        for i in range(posterior.mean.shape[2]):
            image = vae.encode(padded[:, :, 8 * i]).latent_dist
            torch.testing.assert_close(posterior.mean[:, :, i], image.mean, rtol=0, atol=1e-4)
            torch.testing.assert_close(posterior.logvar[:, :, i], image.logvar, rtol=0, atol=1e-4)
            picture = vae.decode(posterior.mean[:, :, i]).sample[..., :height, :width]
            for frame in range(8 * i, min(8 * i + 8, frames)):
                torch.testing.assert_close(decoded[:, :, frame], picture, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 32, 32), (9, 37, 50), (16, 24, 40)])
def test_behaves_as_the_image_autoencoder(image_vae_folder: Path, frames: int, height: int, width: int) -> None:
    vae = diffusers.AutoencoderKL.from_pretrained(image_vae_folder).eval()
    model = TemporalAutoencoder.from_image_vae(image_vae_folder, **NARROW).eval()
    assert_image_behaviour(model, vae, torch.rand(1, 3, frames, height, width) * 2 - 1)


@pytest.mark.slow
def test_full_size_behaves_as_the_image_autoencoder_on_a_real_clip(shared_clips: Path, tmp_path: Path) -> None:
    from data.decode import open_video

    video = (shared_clips / "awkward" / "odd_427x241_mpeg4.avi").read_bytes()
    with open_video(video) as reader:
        clip = frames_to_clip(torch.from_numpy(reader.frames(range(11)))[None])[..., :101, :127]
    vae = make_image_vae(tmp_path, base=128, groups=32)
    model = TemporalAutoencoder.from_image_vae(tmp_path).eval()
    assert_image_behaviour(model, vae, clip)


def test_report_tells_what_was_copied_and_created(image_vae_folder: Path) -> None:
    model = TemporalAutoencoder.from_image_vae(image_vae_folder, **NARROW)
    report = model.inflation
    assert len(report.copied) + len(report.created) == len(list(model.parameters()))
    assert all(".temporal" in name for name in report.created)
    assert report.ignored == ()
    assert f"{len(report.copied)} parameters copied" in str(report)


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_original_layout_gives_the_same_weights(image_vae_folder: Path, tmp_path: Path, prefix: str) -> None:
    state = to_original_layout(load_file(find_weights(image_vae_folder)), prefix)
    state["model.diffusion_model.joint_blocks.0.weight"] = torch.zeros(3)
    save_file(state, tmp_path / "sd35.safetensors")
    model = TemporalAutoencoder.from_image_vae(tmp_path / "sd35.safetensors", **NARROW)
    assert_same_weights(model, TemporalAutoencoder.from_image_vae(image_vae_folder, **NARROW))
    assert model.inflation.ignored == ("model.diffusion_model.joint_blocks.0.weight",)


def test_pipeline_folder_and_single_file_give_the_same_weights(image_vae_folder: Path) -> None:
    from_folder = TemporalAutoencoder.from_image_vae(image_vae_folder.parent, **NARROW)  # .../vae/ is found inside
    assert_same_weights(from_folder, TemporalAutoencoder.from_image_vae(find_weights(image_vae_folder), **NARROW))


def test_half_precision_file_is_read(image_vae_folder: Path, tmp_path: Path) -> None:
    state = {name: value.half() for name, value in load_file(find_weights(image_vae_folder)).items()}
    save_file(state, tmp_path / "half.safetensors")
    model = TemporalAutoencoder.from_image_vae(tmp_path / "half.safetensors", **NARROW)
    assert next(model.parameters()).dtype == torch.float32


def test_another_width_is_refused_with_the_first_differences(image_vae_folder: Path) -> None:
    with pytest.raises(UserError, match=r"another architecture.*\n.*conv_in\.weight: file \(16, 3, 3, 3\), model \(32"):
        TemporalAutoencoder.from_image_vae(image_vae_folder, base_channels=32, norm_groups=4)


def test_another_kind_of_image_autoencoder_is_refused(tmp_path: Path) -> None:
    """Stable Diffusion 1's has quant convolutions: ignoring them would give other latents without a word."""
    make_image_vae(tmp_path, base=16, groups=4, use_quant_conv=True, use_post_quant_conv=True)
    with pytest.raises(UserError, match=r"quant_conv\.\w+: file .*, not in the model"):
        TemporalAutoencoder.from_image_vae(tmp_path, **NARROW)


def test_what_is_no_image_autoencoder_is_refused(tmp_path: Path) -> None:
    save_file({"text_model.weight": torch.zeros(2)}, tmp_path / "clip.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{")
    (tmp_path / "vae.ckpt").write_bytes(b"pickle")
    (tmp_path / "empty").mkdir()
    for name, message in {
        "clip.safetensors": "holds no image autoencoder",
        "cut.safetensors": "not a readable",
        "vae.ckpt": "can run code",
        "empty": "holds no diffusion_pytorch_model",
        "missing.safetensors": "no such file",
    }.items():
        with pytest.raises(UserError, match=message):
            TemporalAutoencoder.from_image_vae(tmp_path / name, **NARROW)


# In a process of its own, since huggingface_hub reads its environment when it is imported.
TRY_REPOSITORIES = """
import json, sys
from tae import TemporalAutoencoder, UserError
outcomes = {}
for repository in sys.argv[1:]:
    try:
        model = TemporalAutoencoder.from_image_vae(repository, base_channels=16, norm_groups=4)
        outcomes[repository] = model.starting_weights
    except UserError as error:
        outcomes[repository] = str(error)
print(json.dumps(outcomes))
"""


def try_repositories(repositories: Iterable[str], **environment: str) -> dict[str, Any]:
    """What `from_image_vae` gives or says for each repository, in an environment as a user would set it."""
    command = [sys.executable, "-c", TRY_REPOSITORIES, *repositories]
    root = Path(__file__).parents[3]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")} | environment
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
def test_every_answer_of_the_hub_has_its_own_message(image_vae_folder: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT names a stand-in here, as it names a mirror elsewhere; then its cache serves without a network."""
    weights = find_weights(image_vae_folder).read_bytes()
    refusals = {
        "gated/anonymous": (401, "GatedRepo"),
        "gated/no-licence": (403, "GatedRepo"),
        "private/repository": (401, "RepoNotFound"),
        "expired/token": (401, ""),
        "narrow/token": (403, ""),
        "full/hub": (507, ""),
    }
    with serve() as hub:
        hub.refusals = refusals
        hub.fault = {"bad/short": "short", "bad/hash": "wrong hash"}
        for name in ("good/vae/vae", "good/top", "bad/short/vae", "bad/hash/vae"):
            hub.files[f"{name}/diffusion_pytorch_model.safetensors"] = weights
        hub.files["other/files/README.md"] = b"nothing here"
        repositories = ["good/vae", "good/top", "bad/short", "bad/hash", "other/files", "none/such", *refusals]
        said = try_repositories(repositories, HF_ENDPOINT=hub.address, HF_HOME=str(tmp_path))
    digest = hashlib.sha256(weights).hexdigest()
    assert said["good/vae"] == {"image_vae": "good/vae", "sha256": digest}
    assert said["good/top"] == {"image_vae": "good/top", "sha256": digest}
    for repository, message in {
        "bad/short": "did not come to its end.*try again",
        "bad/hash": r"its SHA-256 is not the one.*Remove .*blobs/" + digest,
        "other/files": "holds none of: vae/diffusion_pytorch_model.safetensors",
        "none/such": "neither a local path nor a repository that you can see",
        "gated/anonymous": f"not logged in: accept its licence at {hub.address}/gated/anonymous.*hf auth login",
        "gated/no-licence": f"has no access.*accept the licence at {hub.address}/gated/no-licence",
        "private/repository": "If it is private, log in",
        "expired/token": "does not accept your token: log in again",
        "narrow/token": "access is forbidden. Give your token the right",
        "full/hub": "answered 507.*try again later, or a mirror with HF_ENDPOINT",
    }.items():
        assert re.search(message, said[repository]), said[repository]

    offline = try_repositories(["good/vae", "never/seen"], HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert offline["good/vae"] == said["good/vae"]
    assert re.search(r"HF_HUB_OFFLINE is set.*hf download never/seen vae/.*image_vae=null", offline["never/seen"])
    gone = try_repositories(["good/vae", "never/seen"], HF_ENDPOINT=hub.address, HF_HOME=str(tmp_path))
    assert gone["good/vae"] == said["good/vae"]  # the server is gone, its cache is not
    assert f"{hub.address} cannot be reached" in gone["never/seen"]
