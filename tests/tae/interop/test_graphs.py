"""Graphs without Python: what they give is what the model gives, and what runs them finds all that it needs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir

from tae import TemporalAutoencoder, Tiling, UserError, decode_stream, encode_stream, frames_to_clip
from tae.export import main
from tae.interop.graphs import check_graph, export_graphs, load_graph
from tae.latents.stats import LatentStats
from tae.model.onnx_codec import OnnxCodec
from tae.model.pretrained import load_model
from tae.reconstruct import main as reconstruct_video
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.files import file_sha256
from tae.video.reader import VideoReader
from tests.references.video import make_video
from tests.tae.interop.trained import config, make_model, write_stats

SIZES = [(1, 8, 8), (2, 16, 9), (8, 24, 40), (9, 37, 50), (16, 8, 64), (19, 33, 17)]


def test_a_network_that_folds_is_refused_before_it_is_traced(tmp_path: Path) -> None:
    """A graph of it would take the path of its example's length, even or odd, for every clip."""
    small = {"base_channels": 8, "channel_multipliers": (1, 2), "norm_groups": 2}
    TemporalAutoencoder(frontend="patch", folds=2, **small).save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"format=onnx is for .* frontend=patch.* format=safetensors"):
        main(config(ckpt=tmp_path / "model", output=tmp_path / "graphs", format="onnx"))
    assert not (tmp_path / "graphs").exists()


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
