"""Graphs without Python: what they give is what the model gives, and what runs them finds all that it needs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from tae import TemporalAutoencoder, Tiling, UserError, decode_stream, encode_stream, frames_to_clip
from tae.export import main
from tae.interop.graphs import check_graph, export_graphs, export_program, load_graph
from tae.latents.stats import LatentStats
from tae.model.folding import AveragingDownsample, Folding, repeat_to_even, repeat_to_multiple
from tae.model.layers import RMSNorm
from tae.model.onnx_codec import OnnxCodec
from tae.model.pretrained import load_model
from tae.reconstruct import main as reconstruct_video
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.files import file_sha256
from tae.video.reader import VideoReader
from tests.references.video import make_video
from tests.tae.interop.trained import config, make_model, write_stats

Graph = Callable[[torch.Tensor], list[torch.Tensor]]
SIZES = [(1, 8, 8), (2, 16, 9), (8, 24, 40), (9, 37, 50), (16, 8, 64), (19, 33, 17)]


FOLDING: dict[str, Any] = {
    "base_channels": 4, "channel_multipliers": (1, 2), "latent_channels": 2, "encoder_blocks": 1, "decoder_blocks": 1,
    "norm_groups": 1, "frontend": "haar", "folds": 2,
}  # fmt: skip


def folding_model(**changes: Any) -> TemporalAutoencoder:
    model = TemporalAutoencoder(**FOLDING | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval().to(memory_format=torch.contiguous_format)


def check_for_every_length(model: TemporalAutoencoder, encoder: Graph, decoder: Graph) -> None:
    """Lengths of both parities at each of the three levels, and sizes that are no multiple of 8."""
    for frames in range(1, 10):
        for batch, height, width in ((1, 8, 8), (2, 17, 29)):
            clip = torch.rand(batch, 3, frames, height, width) * 2 - 1
            with torch.no_grad():
                posterior = model.encode(clip)
            mean, std = encoder(clip)
            torch.testing.assert_close(mean, posterior.mean, atol=5e-5, rtol=0)
            torch.testing.assert_close(std, (0.5 * posterior.logvar).exp(), atol=5e-5, rtol=1e-4)
    for size in ((1, 1, 1), (2, 3, 2), (3, 2, 5)):
        latents = torch.randn(2, model.latent_channels, *size)
        with torch.no_grad():
            torch.testing.assert_close(decoder(latents)[0], model.decode(latents), atol=1e-4, rtol=0)


@pytest.mark.parametrize("frontend", ["haar", "patch"])
def test_one_graph_folds_clips_of_any_length(frontend: str) -> None:
    """Of front end and resampling alone, which is all that asks whether a length is even: two levels."""
    parts = torch.nn.Sequential(Folding(frontend, 1), AveragingDownsample(3 * 8, 3 * 8))
    with torch.no_grad():
        torch.nn.init.normal_(parts[1].conv.temporal.weight)  # frames have neighbours then
        program = export_program(parts, torch.rand(2, 3, 7, 11, 13)).module(check_guards=False)
        for frames in range(1, 10):
            clip = torch.rand(1, 3, frames, frames + 8, 17 - frames)
            torch.testing.assert_close(program(clip), parts(clip), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("factor", [2, 8])
def test_a_repeated_end_is_that_of_the_model(factor: int) -> None:
    for length in range(1, 18):
        x = torch.rand(1, 2, length)
        expected = torch.cat([x, *[x[:, :, -1:]] * (-length % factor)], 2)
        assert torch.equal(repeat_to_multiple(x, 2, factor), expected)
        assert factor != 2 or torch.equal(repeat_to_even(x, 2), expected)


def test_rms_norm_of_graphs_is_that_of_the_model() -> None:
    x = torch.randn(2, 6, 3, 4, 5)
    for silu in (False, True):
        layer = RMSNorm(6, silu)
        torch.nn.init.normal_(layer.weight)
        with torch.no_grad():
            torch.testing.assert_close(layer.normalize_for_export(x), layer(x), atol=5e-6, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("format", ["torch_export", "onnx"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"frontend": "patch", "norm": "rms"},
        {"folds": 1, "channel_multipliers": (1, 1, 4), "norm": "rms"},
        {"folds": 1, "channel_multipliers": (1, 1, 2), "frontend": "patch", "group_norm": "clip"},
        {"temporal_padding": "zeros"},
    ],
    ids=str,
)
def test_graphs_of_a_network_that_folds_are_right_for_every_length(
    changes: dict[str, Any], format: str, tmp_path: Path
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxruntime")
    model = folding_model(**changes)
    encoder, decoder = (load_graph(path) for path in export_graphs(model, tmp_path, format))
    check_for_every_length(model, encoder, decoder)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("group_norm", ["frame", "clip"])
def test_graphs_give_what_the_model_gives(group_norm: str, tmp_path: Path) -> None:
    """Another order of summation in float32: 5e-6 was seen. One wrong frame, row or column would be off by 0.1 and more."""
    model = make_model(group_norm)
    encoder, decoder = (load_graph(path) for path in export_graphs(model, tmp_path, "torch_export"))
    for batch, size in enumerate(SIZES, start=1):
        clip = torch.rand(batch, 3, *size) * 2 - 1
        with torch.no_grad():
            posterior = model.encode(clip)
            expected = model.decode(posterior.mode())
        mean, std = encoder(clip)
        torch.testing.assert_close(mean, posterior.mean, atol=5e-5, rtol=0)
        torch.testing.assert_close(std, (0.5 * posterior.logvar).exp(), atol=5e-5, rtol=1e-4)
        torch.testing.assert_close(decoder(mean)[0], expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_export_reconstructs_as_the_checkpoint_does(run: Path, tmp_path: Path) -> None:
    """With onnxruntime, through the same tiles. A level of uint8 is 2 / 255 here; torch and ONNX sum in another order."""
    pytest.importorskip("onnxruntime")
    checkpoint, export = run / "checkpoints" / "best.ckpt", tmp_path / "model"
    tiling = Tiling(tile_pixel_frames=16, overlap_pixel_frames=8, tile_pixels=32, overlap_pixels=8)
    tiles = {f"tiling.{name}": size for name, size in vars(tiling).items()}
    main(config(ckpt=checkpoint, output=export, format="onnx", **tiles))
    model, codec = load_model(checkpoint).model, OnnxCodec(export)
    for batch, size in enumerate(SIZES, start=1):
        clip = torch.rand(batch, 3, *size) * 2 - 1
        with torch.no_grad():
            posterior, exported = model.encode(clip), codec.encode(clip)
            torch.testing.assert_close(exported.mean, posterior.mean, atol=5e-5, rtol=0)
            torch.testing.assert_close(exported.logvar, posterior.logvar, atol=1e-4, rtol=1e-4)
            kept = {"num_frames": size[0], "size": (size[1], size[2])}
            decoded = codec.decode(posterior.mean, **kept), model.decode(posterior.mean, **kept)
            torch.testing.assert_close(*decoded, atol=1e-4, rtol=0)
    source = make_video(tmp_path / "a.mkv", [40 * i for i in range(37)], size=(44, 60))
    outcomes = []
    with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
        settings = [f"{key}={value}" for key, value in tiles.items()] + [f"source={source}"]
        for name, ckpt in (("torch", checkpoint), ("onnx", export)):
            given = [*settings, f"runtime={name}", f"ckpt={ckpt}", f"output={tmp_path / name}"]
            outcomes += reconstruct_video(compose("reconstruct", overrides=given))
    assert outcomes[0].num_frames == outcomes[1].num_frames == 37
    assert outcomes[0].psnr == pytest.approx(outcomes[1].psnr, abs=1e-3)  # a few values are rounded to another level
    with VideoReader(source) as reader:
        clip = frames_to_clip(torch.from_numpy(np.stack([frame.rgb for frame in reader.frames()]))[None])
    ours, theirs = (
        torch.cat(list(decode_stream(each, (p.mode() for p in encode_stream(each, [clip], tiling)), tiling=tiling)), 2)
        for each in (codec, model)
    )
    assert (ours - theirs).abs().max() <= 1 / 255


def test_what_a_program_needs_stands_beside_the_graphs(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing takes minutes; here the graphs are made by hand."""
    pytest.importorskip("onnx")
    from tests.references.exported import write_export

    made = write_export(tmp_path / "made")
    names = ("encoder.onnx", "decoder.onnx")
    copied = lambda model, folder, format: [Path(shutil.copy(made / name, folder)) for name in names]  # noqa: E731
    monkeypatch.setattr("tae.interop.export.export_graphs", copied)
    checkpoint, output = run / "checkpoints" / "best.ckpt", tmp_path / "model"
    write_stats(tmp_path, file_sha256(checkpoint))
    tiles = {"tiling.tile_pixel_frames": 48, "tiling.tile_pixels": "null"}
    main(config(ckpt=checkpoint, output=output, format="onnx", latents=tmp_path, **tiles))
    described = json.loads((output / "graphs.json").read_text())
    expected = {
        "version": 1,
        "format": "onnx",
        "opset": 18,
        "files": {name[:7]: {"path": name, "sha256": file_sha256(output / name)} for name in names},
        "checkpoint": {"sha256": file_sha256(checkpoint), "encoder": load_model(checkpoint).encoder},
        "tiling": {"tile_pixel_frames": 48, "overlap_pixel_frames": 16, "tile_pixels": None, "overlap_pixels": 64},
        "time_factor": 8,
        "space_factor": 8,
        "latent_channels": 16,
        "dtype": "float32",
        "value_range": [-1.0, 1.0],
        "latents_mean": [0.5],
        "latents_std": [2.0],
        "scaling_factor": 0.25,
        "shift_factor": 0.5,
    }
    assert {name: described[name] for name in expected} == expected
    with pytest.raises(UserError, match=r"tile_pixel_frames=20 .* multiples of 8"):
        main(config(ckpt=checkpoint, output=tmp_path / "no", format="onnx", **{"tiling.tile_pixel_frames": 20}))
    main(config(ckpt=output, output=tmp_path / "again"))  # what is known of a model stays with it
    assert LatentStats.read(tmp_path / "again").scale == 0.25


def test_a_graph_that_differs_is_not_kept_quiet(tmp_path: Path) -> None:
    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    example = torch.ones(3)
    torch.export.save(torch.export.export(Double(), (example,)), tmp_path / "double.pt2")
    check_graph(tmp_path / "double.pt2", Double(), [example])
    with pytest.raises(RuntimeError, match="differs from the model by 1"):
        check_graph(tmp_path / "double.pt2", torch.nn.Identity(), [example])


def test_exporting_takes_the_path_without_branches() -> None:
    """What a graph computes for time is the definition, for odd lengths too, and equals what the model computes."""
    from tae.model.temporal_conv import replicate_padded_conv, replicate_padded_conv_for_export

    for frames in (1, 2, 5):
        for stride, upsample, taps in ((1, False, 3), (2, False, 3), (2, True, 4)):
            x, weight, bias = torch.randn(2, 4, frames, 3, 5), torch.randn(4, 4, taps, 1), torch.randn(4)
            expected = replicate_padded_conv(x, weight, bias, None, stride, upsample)
            ours = replicate_padded_conv_for_export(x, weight, bias, None, stride, upsample)
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)  # 12 products of a few units in float32
