"""Time and memory of one training step: forward, the four losses, backward, clipping, AdamW.

    python -m benchmarks.step --device cuda --dtype bf16 --size 32 256 256
    python -m benchmarks.step --device cpu --dtype fp32 --size 16 96 96 --variants naive shipped

Every variant starts from the same weights and sees the same clip and the same noise. Beside its speed stands how far its
loss and its gradient are from the first variant's; beyond `BOUNDS` the command fails. Name the naive port first: FLOPs are
counted on the first variant, and what Triton computes is not seen.
"""

import argparse
import gc
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.common import DTYPES, MODELS, RESULTS, interleaved, matmul_rate, publish, spread
from benchmarks.naive import NaiveAutoencoder
from tae import TemporalAutoencoder
from tae.losses import KL, Objective, OutlierPenalty, Perceptual, Reconstruction
from tae.losses.step import compute_loss, update
from tae.planning.meter import Meter

VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")
SEED = 0
# Relative differences that rounding explains: of the loss, and of the gradient by its norm. Two ways of plain PyTorch (naive
# and conv3d) differ by a third of the gradients' in bf16 on a GPU; LPIPS' max-pooling amplifies what differs at ties.
BOUNDS = {"fp32": (1e-5, 2e-3), "bf16": (1e-3, 0.1), "fp16": (1e-3, 0.1)}


def random_vgg16(folder: Path) -> Path:
    """A file of random VGG-16 weights in torchvision's layout: their values do not matter to the time of a step."""
    state, layer, channels = {}, 0, 3
    for width in VGG16:
        if width == "pool":
            layer += 1
            continue
        weight = torch.empty(int(width), channels, 3, 3)
        state[f"features.{layer}.weight"] = nn.init.kaiming_normal_(weight, nonlinearity="relu")
        state[f"features.{layer}.bias"] = torch.zeros(int(width))
        channels, layer = int(width), layer + 2
    torch.save(state, folder / "vgg16.pth")
    return folder / "vgg16.pth"


def build_loss(lpips: bool) -> Objective:
    """The objective of the reference's run; LPIPS with random weights, or without LPIPS."""
    with tempfile.TemporaryDirectory() as folder:
        weights = str(random_vgg16(Path(folder)))
        perceptual = Perceptual(weight=1.0 if lpips else 0.0, net="vgg", weights_path=weights)
    return Objective(
        reconstruction=Reconstruction(1.0), perceptual=perceptual, kl=KL(1e-6), opl=OutlierPenalty(1.0, r=3.0)
    )


def shipped(architecture: dict[str, Any]) -> nn.Module:
    return TemporalAutoencoder(**architecture)


def checkpointed(architecture: dict[str, Any]) -> nn.Module:
    model = TemporalAutoencoder(**architecture)
    model.gradient_checkpointing = True
    return model


def compiled(architecture: dict[str, Any]) -> nn.Module:
    model = TemporalAutoencoder(**architecture)
    model.compile_blocks()
    return model


VARIANTS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "naive": lambda architecture: NaiveAutoencoder(**architecture, temporal="conv1d"),
    "conv3d": lambda architecture: NaiveAutoencoder(**architecture, temporal="conv3d"),
    "shipped": shipped,
    "checkpointed": checkpointed,
    "compiled": compiled,
}


@dataclass
class Step:
    """A model with its optimizer, ready to take training steps on one clip."""

    model: nn.Module
    loss: Objective
    clip: Tensor
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, weight_decay=0.0, fused=True)

    def forward(self) -> Tensor:
        """The objective, in the step's precision."""
        with torch.autocast(self.clip.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self.compute_loss()

    def compute_loss(self) -> Tensor:
        return compute_loss(self.model, self.loss, self.clip).total

    def __call__(self) -> Tensor:
        """Take the step; returns the loss before it."""
        total = self.forward()
        update(self.model, self.optimizer, total)
        return total.detach()

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """One backward pass from a fixed seed, without a step: the loss, and the gradient in one vector on the CPU."""
        torch.manual_seed(SEED)
        total = self.forward()
        total.backward()
        parameters = dict(self.model.named_parameters())  # whose order differs between the variants
        gradient = torch.cat([parameters[name].grad.float().flatten() for name in sorted(parameters)]).cpu()
        self.optimizer.zero_grad(set_to_none=True)
        return total.item(), gradient


def state_dict(architecture: dict[str, Any]) -> dict[str, Tensor]:
    """Weights that every variant starts from: a fresh model whose temporal parts are no longer the identity."""
    torch.manual_seed(SEED)
    model = TemporalAutoencoder(**architecture)
    for name, parameter in model.named_parameters():
        if "temporal" in name and parameter.ndim > 1:
            parameter.data += 0.02 * torch.randn_like(parameter)
    return model.state_dict()


def measure_memory(step: Step) -> float:
    """Peak of one step in GB (1e9 bytes), as if this were the only model on the device."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    own = sum(p.numel() * p.element_size() for p in step.model.parameters()) * 3  # weights, two moments
    return (torch.cuda.max_memory_allocated() - before + own) / 1e9


def count_flops(step: Step) -> int:
    """Floating-point operations of one forward and backward pass; of a matrix product or convolution alone."""
    with Meter() as meter:
        step.forward().backward()
    step.optimizer.zero_grad(set_to_none=True)
    return meter.flops


def relative_difference(vector: Tensor, reference: Tensor) -> float:
    return ((vector - reference).norm() / reference.norm()).item()


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the variants; one row each."""
    device, dtype = arguments.device, DTYPES[arguments.dtype]
    torch.manual_seed(SEED)
    architecture = MODELS[arguments.model] | {"group_norm": arguments.group_norm}
    clip = torch.rand(arguments.batch, *arguments.size, 3, device=device).movedim(-1, 1) * 2 - 1
    loss, weights = build_loss(arguments.lpips), state_dict(architecture)
    rate = matmul_rate(device, dtype)

    steps = {}
    for name in arguments.variants:
        model = VARIANTS[name](architecture)
        model.load_state_dict(weights)
        inputs = clip.contiguous() if isinstance(model, NaiveAutoencoder) else clip
        steps[name] = Step(model.to(device), loss, inputs, dtype)

    agreement = {name: step.loss_and_gradient() for name, step in steps.items()}
    baseline = next(iter(steps.values()))
    exact = replace(baseline, dtype=torch.float32).loss_and_gradient()[1] if arguments.float32_gradient else None
    flops = count_flops(baseline)
    times = interleaved(dict(steps), device, arguments.warmup, arguments.repeats)
    memory = {name: measure_memory(step) if device == "cuda" else None for name, step in steps.items()}
    reference = next(iter(steps))
    rows = []
    for name in steps:
        found, (value, gradient) = spread(times[name]), agreement[name]
        base_value, base_gradient = agreement[reference]
        rows.append({
            "variant": name,
            "s/step": found["median"],
            "p25": found["p25"],
            "p75": found["p75"],
            f"times faster than {reference}": spread(times[reference])["median"] / found["median"],
            "peak GB": memory[name],
            "TFLOP/s": flops / found["median"] / 1e12,
            "of matmul rate": flops / found["median"] / rate,
            "loss, rel. difference": abs(value / base_value - 1),
            "gradient, rel. difference": relative_difference(gradient, base_gradient),
            "gradient, from float32": None if exact is None else relative_difference(gradient, exact),
        })  # fmt: skip
    arguments.tflop, arguments.matmul_tflops = round(flops / 1e12, 2), round(rate / 1e12, 1)
    del steps
    gc.collect()
    return rows


def check_agreement(rows: Sequence[dict[str, Any]], dtype: str) -> None:
    """Fail where a variant computes something else than the first one."""
    for row in rows:
        differences = (row["loss, rel. difference"], row["gradient, rel. difference"])
        if any(not difference <= bound for difference, bound in zip(differences, BOUNDS[dtype], strict=True)):
            raise SystemExit(
                f"{row['variant']}: loss and gradient differ by {differences}, allowed are {BOUNDS[dtype]}."
            )


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="bf16", help="of autocast; fp32 is without")
    parser.add_argument("--model", choices=tuple(MODELS), default="sd35")
    parser.add_argument("--group-norm", choices=("frame", "clip"), default="frame")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, nargs=3, default=(32, 256, 256), metavar=("FRAMES", "HEIGHT", "WIDTH"))
    parser.add_argument("--lpips", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument(
        "--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS), help="the first is the baseline"
    )
    parser.add_argument(
        "--float32-gradient", action="store_true", help="also compare with the baseline's gradient without autocast"
    )
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def main() -> None:
    arguments = parse()
    torch.backends.cudnn.benchmark = True
    rows = run(arguments)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"}
    publish("step", arguments.device, settings, rows, arguments.output)
    check_agreement(rows, arguments.dtype)


if __name__ == "__main__":
    main()
