"""What a model costs before anything is run: parameters, FLOPs, peak memory, and the largest clip that fits.

python -m tae.plan model=sd35 data.num_frames=32 data.resolution=256 data.batch_size=1 precision=bf16 memory_gb=80

Nothing is estimated by formula. The training code itself runs on fake tensors, which have shapes and no values, and
every allocation and release that it makes is counted; so the figures follow the code. No GPU is needed to plan for one.
Tensors are counted, and not what the libraries need beside them: a GPU's context, cuDNN's workspaces, compiled kernels.
"""

import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn

from data.sampling.mixture import make_streams, plain_stream
from tae.adversarial.adversary import PatchAdversary
from tae.losses import Objective
from tae.losses.equivariance import SCALES
from tae.losses.step import training_step
from tae.model.average import WeightAverage
from tae.model.frame_conversion import frames_to_clip
from tae.model.interface import VideoAutoencoder
from tae.model.unweighted import unweighted
from tae.planning.meter import Cost, Meter, rehearsal
from tae.runtime.config import plain
from tae.runtime.errors import UserError
from tae.runtime.progress import stage
from tae.runtime.schema import check_config
from tae.runtime.settings import Plan

AUTOCAST = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
DEVICES = ("cuda", "cpu")
GB = 1e9
Shape = tuple[int, int, int, int]  # b, t, h, w


@dataclass(frozen=True)
class Planner:
    """Rehearses steps, encoding and decoding of one model on one device.

    Args:
        make_model: builds the model; called on the meta device, so that no real weights are made.
        make_optimizer: builds the optimizer of the parameters.
        device: "cuda" or "cpu".
        autocast: what convolutions run in, None for float32.
        ema_decay: of a moving average of the weights, None for none.
        make_adversary: builds the adversary, None where there is none.
    """

    make_model: Callable[[], VideoAutoencoder]
    make_optimizer: Callable[[Any], torch.optim.Optimizer]
    device: str
    autocast: torch.dtype | None
    ema_decay: float | None = None
    make_adversary: Callable[[], PatchAdversary] | None = None

    def step(self, shape: Shape, loss: Objective, with_adversary: bool = False) -> Cost:
        """A whole training step: forward, losses, backward, clipping, update; with the adversary as in its last phase."""
        with self.rehearsal() as (meter, model):
            trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
            optimizer = self.make_optimizer(trained)
            make_moments(optimizer)
            adversary = self.make_adversary() if with_adversary and self.make_adversary is not None else None
            if adversary is not None:
                make_moments(adversary.optimizer)
            average = None if self.ema_decay is None else WeightAverage(model, self.ema_decay)
            meter.start()
            frames = torch.empty(*shape, 3, dtype=torch.uint8)
            step = 0 if adversary is None else adversary.start + adversary.alone + adversary.ramp
            training_step(model, loss, optimizer, frames, self.precision(), average, adversary, step)
            return meter.cost

    @torch.no_grad()
    def encode(self, shape: Shape) -> Cost:
        """Encoding a clip, weights included."""
        with self.rehearsal() as (meter, model), self.precision():
            meter.start()
            model.encode(fake_clip(shape))
            return meter.cost

    @torch.no_grad()
    def decode(self, shape: Shape) -> Cost:
        """Decoding the latents of a clip of this shape, weights included."""
        with self.rehearsal() as (meter, model), self.precision():
            meter.start()
            batch, *size = shape
            model.decode(torch.empty(batch, *model.latent_shape(*size)), size[0], (size[1], size[2]))
            return meter.cost

    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.on_meta().parameters())

    def on_meta(self) -> VideoAutoencoder:
        """The model without weights."""
        with torch.device("meta"):
            return self.make_model()

    @contextmanager
    def rehearsal(self) -> Iterator[tuple[Meter, VideoAutoencoder]]:
        """A rehearsal whose meter has counted the model's parameters."""
        model = self.on_meta()
        with rehearsal(self.device) as meter:
            for module in model.modules():
                for name, parameter in module.named_parameters(recurse=False):
                    values = torch.empty_strided(parameter.shape, parameter.stride(), dtype=parameter.dtype)
                    module.register_parameter(name, nn.Parameter(values, parameter.requires_grad))
            yield meter, model

    def precision(self) -> torch.autocast:
        return torch.autocast("cpu", self.autocast, enabled=self.autocast is not None)


def make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Take a first step: from then on the moments are there, as in every step but the first."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def fake_clip(shape: Shape) -> Tensor:
    """(b, 3, t, h, w), from frames as the data road gives them."""
    return frames_to_clip(torch.empty(*shape, 3, dtype=torch.uint8))


def largest(peak: Callable[[int], int], memory: float, start: int, unit: int, power: int) -> int:
    """The largest multiple of `unit` whose peak fits into `memory` bytes; 0 where not even one does.

    Args:
        peak: bytes at a size.
        start: a size to start from.
        power: how the peak grows with the size, beside what is constant: 1 for frames, 2 for a square's side.
    """
    start = max(start // unit, 1) * unit
    low, high = peak(start), peak(2 * start)
    per_size = (high - low) / ((2 * start) ** power - start**power)
    room = memory - low + per_size * start**power
    size = int(max(room / per_size, 0) ** (1 / power)) // unit * unit
    while size > 0 and peak(size) > memory:
        size -= unit
    while size > 0 and peak(size + unit) <= memory:
        size += unit
    return size


def random_lpips_weights(folder: Path) -> Path:
    """A VGG-16 file in torchvision's layout: memory and FLOPs do not depend on its values."""
    from safetensors.torch import save_file
    from torchvision.models import vgg16

    with torch.device("meta"):
        shapes = {name: p.shape for name, p in vgg16().state_dict().items() if name.startswith("features.")}
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, folder / "vgg16.safetensors")
    return folder / "vgg16.safetensors"


def has_lpips(cfg: DictConfig) -> bool:
    """Whether the objective has a perceptual term with a weight."""
    return bool(cfg.get("perceptual") and cfg.perceptual.weight)


def build_losses(cfg: DictConfig) -> dict[str, Objective]:
    """The configured objective with LPIPS and without."""
    most = settings_of_the_largest_step(cfg)
    with tempfile.TemporaryDirectory() as folder:
        losses = {"without LPIPS": instantiate(cfg, perceptual=None, **most)}
        if has_lpips(cfg):
            weights = str(random_lpips_weights(Path(folder)))
            losses["with LPIPS"] = instantiate(cfg, perceptual={"net": "vgg", "weights_path": weights}, **most)
    return losses


def settings_of_the_largest_step(cfg: DictConfig) -> dict[str, Any]:
    """What to change in an objective whose steps differ in size, so that each is of the largest."""
    term = cfg.get("equivariance")
    if not term or not term.weight:
        return {}
    if term.mode == "replace":
        return {"equivariance": None}  # a plain step decodes more
    return {"equivariance": {"scales": [max(term.scales or SCALES[term.mode])]}}


def check_plan(cfg: DictConfig) -> None:
    """Refuse what cannot be planned.

    Raises:
        UserError: a size that is not positive, or a device or precision that is not known.
    """
    check_config(cfg, Plan)
    if has_lpips(cfg.loss) and cfg.loss.perceptual.net != "vgg":
        raise UserError(
            f"loss.perceptual.net={cfg.loss.perceptual.net} is not planned: give vgg, or weight 0 for none."
        )


def make_planner(cfg: DictConfig) -> Planner:
    cfg.model = unweighted(cfg.model)  # where the weights come from does not matter to what they cost
    return Planner(
        make_model=partial(instantiate, cfg.model),
        make_optimizer=instantiate(cfg.optimizer),
        device=cfg.device,
        autocast=AUTOCAST[cfg.trainer.precision],
        ema_decay=cfg.ema.decay,
        make_adversary=None if cfg.adversary is None else partial(instantiate, cfg.adversary),
    )


def plan(cfg: DictConfig) -> dict[str, Any]:
    """Every figure of `python -m tae.plan`.

    Returns:
        {"parameters": n, "costs": {what: Cost}, "largest": {what: (t, side)}}, the `shape` that these are of and, where
        batches are of several streams, the `peaks` of each (bytes) and the `worst`, whose shape that is.
    """
    check_plan(cfg)
    planner, losses = make_planner(cfg), build_losses(cfg.loss)
    tasks, shapes = tasks_of(planner, losses), shapes_of(cfg)
    peaks = {} if len(shapes) == 1 else find_peaks(tasks, shapes)
    worst = max(peaks, key=lambda name: peaks[name], default=next(iter(shapes)))
    shape = shapes[worst]
    costs = {name: rehearse(name, partial(task, shape)) for name, task in tasks.items()}
    if planner.device == "cuda":  # its Triton kernels are not launched, so what they compute is counted elsewhere
        plainly = tasks_of(replace(planner, device="cpu"), losses)
        flops = {name: rehearse(f"the arithmetic of {name}", partial(plainly[name], shape)).flops for name in costs}
        costs = {name: replace(cost, flops=flops[name]) for name, cost in costs.items()}
    largest_clips = find_largest(cfg, planner, tasks, shape)
    return {
        **{"parameters": planner.num_parameters(), "costs": costs, "largest": largest_clips},
        **{"shape": shape, "peaks": peaks, "worst": worst},
    }


def shapes_of(cfg: DictConfig) -> dict[str, Shape]:
    """The shape of a batch of each stream that a training takes batches of."""
    data = plain(cfg.data)
    base = plain_stream(data["num_frames"], data["resolution"], data["batch_size"])
    return {stream.name: stream.shape[:4] for stream in make_streams(base, data["sources"], data["buckets"])}


def find_peaks(tasks: dict[str, Callable[[Shape], Cost]], shapes: dict[str, Shape]) -> dict[str, int]:
    """Peak bytes of the objective's own training step with a batch of each stream."""
    *_, own = tasks
    return {
        name: rehearse(f"{own}, of {name}", partial(tasks[own], shape)).peak_bytes for name, shape in shapes.items()
    }


def rehearse(name: str, task: Callable[[], Cost]) -> Cost:
    with stage(f"rehearsing {name} on fake tensors"):
        return task()


def tasks_of(planner: Planner, losses: dict[str, Objective]) -> dict[str, Callable[[Shape], Cost]]:
    """What is planned, by name."""
    tasks: dict[str, Callable[[Shape], Cost]] = {"encoding": planner.encode, "decoding": planner.decode}
    steps = {f"training step, {name}": partial(planner.step, loss=loss) for name, loss in losses.items()}
    if planner.make_adversary is not None:
        name, own = list(steps.items())[-1]
        steps[f"{name} and adversary"] = partial(own, with_adversary=True)
    return tasks | steps


def find_largest(
    cfg: DictConfig, planner: Planner, tasks: dict[str, Callable[[Shape], Cost]], shape: Shape
) -> dict[str, tuple[int, int]]:
    """{task: (most frames, largest square)} that fit into `memory_gb`; of training steps only the objective's own.

    Looked for in steps of a latent frame, and of two latent rows and columns.
    """
    if cfg.memory_gb is None:
        return {}
    memory = cfg.memory_gb * GB
    batch, frames, *size = shape
    side = math.isqrt(math.prod(size))
    model = planner.on_meta()
    found = {}
    for name in ("encoding", "decoding", list(tasks)[-1]):

        @cache
        def peak(t: int, s: int, task: Callable[[Shape], Cost] = tasks[name]) -> int:
            return task((batch, t, s, s)).peak_bytes

        with stage(f"looking for the largest clip for {name} in {cfg.memory_gb} GB"):
            most_frames = largest(partial(peak, s=side), memory, frames, unit=model.time_factor, power=1)
            largest_side = largest(partial(peak, frames), memory, side, unit=2 * model.space_factor, power=2)
        found[name] = (most_frames, largest_side)
    return found
