"""Encoder and decoder as graphs without Python: `torch.export` programs and ONNX files, for any t, h and w.

The graphs do what `TemporalAutoencoder.encode` and `decode` do, padding of height and width included. What they leave to
their user: a decoded clip has 8 frames, rows and columns for each of the latents', the surplus is to be cut off.
`graphs.json` beside them says all that a program needs to run them (`tae.model.onnx_codec`).
"""

import copy
import importlib.util
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config as fx_config
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tae.latents.stats import LatentStats
from tae.model.autoencoder import TemporalAutoencoder
from tae.model.folding import repeat_to_multiple
from tae.model.onnx_codec import GraphsDescription, OnnxGraph
from tae.model.posterior import DiagonalGaussian
from tae.model.pretrained import LoadedModel
from tae.model.tiling import Tiling
from tae.runtime.errors import UserError
from tae.runtime.files import file_sha256

FORMATS = ("torch_export", "onnx")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Beyond what float32 rounds (under 1e-5 was seen on tiny and full models); a wrong frame is off by a tenth and more.
TOLERANCE = 1e-3


class EncoderGraph(nn.Module):
    """(b, 3, t, h, w) in [-1, 1] -> mean and std (b, c, ceil(t / 8), ceil(h / 8), ceil(w / 8)), in float32."""

    def __init__(self, model: TemporalAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        # Always padded, by nothing where nothing is missing: `encode` asks first, which a graph cannot.
        for dim in (3, 4):
            clip = repeat_to_multiple(clip, dim, self.model.space_factor)
        mean, logvar = self.model.encoder(clip).float().chunk(2, dim=1)
        posterior = DiagonalGaussian(mean, logvar)
        return posterior.mean, torch.exp(0.5 * posterior.logvar)


class DecoderGraph(nn.Module):
    """Latents (b, c, t', h', w') -> clip (b, 3, 8 t', 8 h', 8 w'), not clamped."""

    def __init__(self, model: TemporalAutoencoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents: Tensor) -> Tensor:
        return self.model.decoder(latents)


@torch.no_grad()
def export_graphs(model: TemporalAutoencoder, folder: Path, format: str) -> list[Path]:
    """Write `encoder` and `decoder` in this format (.pt2 or .onnx), each checked against the model before it is kept.

    Raises:
        UserError: the packages for ONNX are missing.
        RuntimeError: a graph does not give what the model gives.
    """
    check_format(format)
    # A copy, with its weights in the order of their axes, in which torch.export stores them.
    model = copy.deepcopy(model).eval().cpu().to(memory_format=torch.contiguous_format)
    frames, pixels, channels = model.time_factor, model.space_factor, model.latent_channels
    clips = [
        torch.rand(2, 3, 2 * frames + 3, 5 * pixels + 3, 6 * pixels + 5) * 2 - 1,
        torch.zeros(1, 3, 1, 2 * pixels, pixels),
        # Even where the first one's frames are odd, and the other way about: networks that fold ask for it.
        torch.rand(1, 3, 2 * frames - 2, pixels + 1, pixels + 4) * 2 - 1,
    ]
    latents = [torch.randn(2, channels, 3, 5, 7), torch.randn(1, channels, 1, 2, 1)]
    paths = []
    graphs: tuple[tuple[str, nn.Module, list[Tensor], list[str], list[str]], ...] = (
        ("encoder", EncoderGraph(model), clips, ["clip"], ["mean", "std"]),
        ("decoder", DecoderGraph(model), latents, ["latents"], ["clip"]),
    )
    for name, module, examples, inputs, outputs in graphs:
        program = export_program(module, examples[0])
        if format == "onnx":
            path = folder / f"{name}.onnx"
            write_onnx(program, path, inputs, outputs)
        else:
            path = folder / f"{name}.pt2"
            torch.export.save(program, path)
        check_graph(path, module, examples)
        paths.append(path)
    return paths


def describe_graphs(
    loaded: LoadedModel, stats: LatentStats | None, graphs: Sequence[Path], format: str, tiling: Tiling
) -> GraphsDescription:
    """What a program has to know that runs the graphs of encoder and decoder."""
    model = loaded.model
    return GraphsDescription(
        format=format,
        opset=opset_of(graphs[0]) if format == "onnx" else None,
        files={path.stem: {"path": path.name, "sha256": file_sha256(path)} for path in graphs},
        checkpoint={"sha256": loaded.sha256, "encoder": loaded.encoder},
        time_factor=model.time_factor,
        space_factor=model.space_factor,
        latent_channels=model.latent_channels,
        tiling=asdict(tiling),
        **({} if stats is None else stats.conventions),
    )


def opset_of(path: Path) -> int:
    """The version of ONNX's own operators that a file uses."""
    import onnx

    (version,) = (opset.version for opset in onnx.load(path, load_external_data=False).opset_import if not opset.domain)
    return version


def check_format(format: str) -> None:
    """Refuse a format that is unknown or cannot be written here."""
    if format not in FORMATS:
        raise UserError(f"format={format} is unknown. Choose one of: safetensors, {', '.join(FORMATS)}.")
    missing = [package for package in ONNX_PACKAGES if importlib.util.find_spec(package) is None]
    if format == "onnx" and missing:
        raise UserError(f"format=onnx needs {', '.join(missing)}: pip install 'temporal-autoencoder[export]'.")


def export_program(module: nn.Module, example: Tensor) -> ExportedProgram:
    """A graph with batch, t, h and w left open. The setting keeps sizes of 1 open too, which are otherwise ruled out."""
    dynamic = dict.fromkeys((0, 2, 3, 4), Dim.DYNAMIC)
    with fx_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(module, (example,), dynamic_shapes=(dynamic,), strict=False)


def write_onnx(program: ExportedProgram, path: Path, inputs: list[str], outputs: list[str]) -> None:
    for talkative in ("onnx_ir", "onnxscript"):  # they tell of every constant that they look at
        logging.getLogger(talkative).setLevel(logging.WARNING)
    onnx_program = torch.onnx.export(program, input_names=inputs, output_names=outputs, dynamo=True, verbose=False)
    assert onnx_program is not None
    free_names(onnx_program.model.graph, outputs)
    onnx_program.save(path)


def free_names(graph: Any, outputs: list[str]) -> None:
    """Rename what has the name of an output inside: PyTorch calls values after operations, as `mean`."""
    for node in graph:
        for value in node.outputs:
            if value.name in outputs and not value.is_graph_output():
                value.name = f"{value.name}_inside"


def load_graph(path: Path) -> Callable[[Tensor], list[Tensor]]:
    """A written graph as a function, run by the reference runtime of its format."""
    if path.suffix == ".onnx":
        return OnnxGraph(path)
    # Its guards tell what it was traced with (no size of 1), not what it is right for.
    module = torch.export.load(path).module(check_guards=False)
    return lambda example: as_list(module(example))


def as_list(out: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else list(out)


def check_graph(path: Path, module: nn.Module, examples: Iterable[Tensor]) -> None:
    """Compare a written graph with the module that it was made of.

    Raises:
        RuntimeError: they differ.
    """
    graph = load_graph(path)
    for example in examples:
        for ours, theirs in zip(as_list(module(example)), graph(example), strict=True):
            difference = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else float("inf")
            if not difference < TOLERANCE:
                raise RuntimeError(f"{path} differs from the model by {difference:.2g} on {tuple(example.shape)}.")
