"""An exported autoencoder that is made by hand, in milliseconds, beside what it does in PyTorch."""

from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, save
from torch import Tensor

from tae.model.onnx_codec import GraphsDescription
from tae.model.posterior import DiagonalGaussian
from tae.runtime.files import file_sha256

FACTOR = 8


class Pooling:
    """Averages of 8x8x8 pixels as latents, each of which is all of its pixels again."""

    time_factor = space_factor = FACTOR
    latent_channels = 3
    device = torch.device("cpu")

    def encode(self, clip: Tensor) -> DiagonalGaussian:
        padding = [pad for extent in reversed(clip.shape[2:]) for pad in (0, -extent % FACTOR)]
        mean = F.avg_pool3d(F.pad(clip, padding), FACTOR, divisor_override=FACTOR**3)
        return DiagonalGaussian(mean, 2 * mean)

    def decode(self, latents: Tensor, num_frames: int | None = None, size: tuple[int, int] | None = None) -> Tensor:
        height, width = size or (latents.shape[3] * FACTOR, latents.shape[4] * FACTOR)
        return F.interpolate(latents, scale_factor=FACTOR)[:, :, :num_frames, :height, :width]


def write_export(folder: Path, frames: str | int = "t", **changes) -> Path:
    """`Pooling` as `tae.export format=onnx` would write it.

    Args:
        frames: of a clip; a number where the graph takes that many alone.
        **changes: of its description.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kernel = {"kernel_shape": [FACTOR] * 3, "strides": [FACTOR] * 3}
    shape, eight = ["b", 3, frames, "h", "w"], [FACTOR]
    pads = ["Shape", "Slice", "Neg", "Mod", "Concat", "Pad"]  # (0, 0, 0, 0, 0, 0, 0, -t % 8, -h % 8, -w % 8)
    constants = {"zeros": [0] * 7, "from": [2], "to": [5], "eight": eight}
    inputs = [
        ["clip"],
        ["shape", "from", "to"],
        ["sizes"],
        ["negated", "eight"],
        ["zeros", "missing"],
        ["clip", "pads"],
    ]
    outputs = ["shape", "sizes", "negated", "missing", "pads", "padded"]
    nodes = [helper.make_node(kind, ins, [out]) for kind, ins, out in zip(pads, inputs, outputs, strict=True)]
    nodes[4].attribute.append(helper.make_attribute("axis", 0))
    nodes += [
        helper.make_node("AveragePool", ["padded"], ["mean"], count_include_pad=1, **kernel),
        helper.make_node("Exp", ["mean"], ["std"]),
    ]
    write_graph(folder / "encoder.onnx", nodes, ("clip", shape), ["mean", "std"], constants)
    resize = helper.make_node(
        "Resize", ["latents", "", "scales"], ["clip"], mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="asymmetric",
    )  # fmt: skip
    scales = {"scales": [1.0, 1.0, *[float(FACTOR)] * 3]}
    write_graph(folder / "decoder.onnx", [resize], ("latents", ["b", 3, "t", "h", "w"]), ["clip"], scales)
    files = {
        name: {"path": f"{name}.onnx", "sha256": file_sha256(folder / f"{name}.onnx")}
        for name in ("encoder", "decoder")
    }
    tiling = {"tile_pixel_frames": 16, "overlap_pixel_frames": 8, "tile_pixels": 24, "overlap_pixels": 8}
    description = GraphsDescription("onnx", 18, files, {"sha256": "a", "encoder": "b"}, FACTOR, FACTOR, 3, tiling)
    replace(description, **changes).write(folder)
    return folder


def write_graph(path: Path, nodes: list, taken: tuple[str, list], given: list[str], constants: dict[str, list]) -> None:
    initializers = [
        helper.make_tensor(
            name, TensorProto.FLOAT if isinstance(values[0], float) else TensorProto.INT64, [len(values)], values
        )
        for name, values in constants.items()
    ]
    x = helper.make_tensor_value_info(taken[0], TensorProto.FLOAT, taken[1])
    outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 5) for name in given]
    graph = helper.make_graph(nodes, "graph", [x], outs, initializers)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
