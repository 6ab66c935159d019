"""Exported graphs behind the interface of a model: the same tiles, the same streams, and what does not fit is refused."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from tae import Tiling, UserError
from tae.model.codec import TileableCodec
from tae.model.onnx_codec import OnnxCodec
from tae.model.streaming import decode_stream, encode_stream
from tae.reconstruct import main
from tae.runtime.cli import CONFIG_FOLDER
from tests.references.video import make_video

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.references.exported import Pooling, write_export

TILING = Tiling(tile_pixel_frames=16, overlap_pixel_frames=8, tile_pixels=24, overlap_pixels=8)


def config(**values: object) -> DictConfig:
    tiles = [f"tiling.{name}={size}" for name, size in vars(TILING).items()]
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        return compose("reconstruct", overrides=["runtime=onnx", *tiles, *(f"{k}={v}" for k, v in values.items())])


def moments_and_clip(codec: TileableCodec, clip: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    posteriors = list(encode_stream(codec, clip.split(5, 2), TILING))
    latents = [posterior.mode() for posterior in posteriors]
    frames = decode_stream(codec, latents, clip.shape[2], (clip.shape[3], clip.shape[4]), TILING)
    return torch.cat([torch.cat([p.mean, p.logvar], 1) for p in posteriors], 2), torch.cat(list(frames), 2)


def test_tiles_and_streams_are_those_of_a_model_in_torch(tmp_path: Path) -> None:
    """Of several tiles in time, height and width, the last ones shorter; the tolerance is float32's."""
    codec = OnnxCodec(str(write_export(tmp_path)))
    clip = torch.rand(1, 3, 37, 30, 45, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for ours, theirs in zip(moments_and_clip(codec, clip), moments_and_clip(Pooling(), clip), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"takes latents \(b, 3, t, h, w\)"):
        codec.decode(torch.zeros(1, 4, 1, 1, 1))
    with pytest.raises(ValueError, match="asked for"):
        codec.decode(torch.zeros(1, 3, 1, 1, 1), num_frames=9)


def test_the_command_runs_an_export(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", [24 * i for i in range(19)], size=(44, 60))
    export = write_export(tmp_path / "export")
    (outcome,) = main(config(ckpt=export, source=source, output=tmp_path / "out"))
    assert (outcome.num_frames, outcome.size) == (19, (44, 60))
    assert 10 < outcome.psnr < 40  # averages of cells: neither the clip nor something else


def change(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + b" ")


@pytest.mark.parametrize(
    ("spoil", "settings", "message"),
    [
        (lambda folder: (folder / "graphs.json").unlink(), {}, r"export has no graphs\.json.*tae\.export format=onnx"),
        (
            lambda folder: (folder / "graphs.json").write_text("[]"),
            {},
            r"graphs\.json does not describe exported graphs",
        ),
        (lambda folder: (folder / "decoder.onnx").unlink(), {}, r"decoder\.onnx is missing.*copy the whole folder"),
        (change("encoder.onnx"), {}, r"encoder\.onnx is not the file that was exported: its SHA-256 is"),
        (
            lambda folder: write_export(folder, format="torch_export"),
            {},
            "holds graphs of format=torch_export.*format=onnx",
        ),
        (lambda folder: write_export(folder, frames=8), {}, r"encoder\.onnx takes frames=8 alone, and tiles"),
        (
            None,
            {"tiling.tile_pixel_frames": 32, "tiling.tile_pixels": "null"},
            r"^tiling.tile_pixel_frames=32 tiling.tile_pixels=null is not .*: give tiling.tile_pixel_frames=16 "
            r"tiling.tile_pixels=24, or export them again",
        ),
        (None, {"precision": "bf16", "weights": "ema"}, "leave out weights=ema, trainer.precision=bf16-mixed"),
        (None, {"ckpt": "tiny"}, r"tiny has no graphs\.json"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(
    spoil: Callable[[Path], object] | None, settings: dict[str, object], message: str, tmp_path: Path
) -> None:
    source = make_video(tmp_path / "a.mp4", [0])
    export = write_export(tmp_path / "export")
    if spoil is not None:
        spoil(export)
    with pytest.raises(UserError, match=message) as error:
        main(config(**({"ckpt": export, "source": source, "output": tmp_path / "out"} | settings)))
    assert "\n" not in str(error.value)


FILE = {"path": "a.onnx", "sha256": "ab"}


@pytest.mark.parametrize(
    "damaged",
    [
        *({"files": files} for files in ({}, None, [], {"encoder": FILE}, {"encoder": "a", "decoder": "b"})),
        *({"files": {"encoder": file, "decoder": FILE}} for file in (FILE | {"size": 1}, FILE | {"path": 1}, {}, None)),
        *({"tiling": tiling} for tiling in (None, {}, {"tile": 1}, vars(TILING) | {"tile_pixels": "x"})),
        *({"time_factor": 0}, {"latent_channels": "3"}, {"space_factor": None}, {"checkpoint": None}),
    ],
    ids=str,
)
def test_a_damaged_description_is_refused(damaged: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\A[^\n]*graphs\.json does not describe exported graphs[^\n]*\Z"):
        OnnxCodec(write_export(tmp_path, **damaged))


def test_a_missing_onnxruntime_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name))
    with pytest.raises(UserError, match=r"needs onnxruntime: pip install 'temporal-autoencoder\[export\]'"):
        OnnxCodec(write_export(tmp_path))
