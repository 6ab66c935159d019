"""Networks from scratch at an equal budget: quality after equal steps, and after equal time.

    python -m benchmarks.equal_budget --train 'datasets/folder/train/shard-*.tar' --test 'datasets/ucf101/test/shard-*.tar'
    python -m benchmarks.equal_budget --train ... --test ... --device cuda --precision bf16 --num-frames 33 \\
        --resolution 128 --batch 4 --steps 5000 --lpips vgg

All have about 4 M parameters, random weights, latents of 1/96 of the values of a clip, the same losses (L1 and LPIPS; no KL,
since Cosmos has no variance), the same clips in the same order and the same optimizer. The moving average of their weights
is measured. Those that downsample time by 4 have 8 channels in place of 16, LTX at its 32x32x8 has 256. Clips have 8k + 1
frames, which all take: this project's networks then compute 7 frames more, which counts against their time. One network
occurs twice, the second time from a linear start in place of random weights (`tae.pca`).

The time of a step is that of the processor (of a GPU: of the wall), of all networks in turns before the first training.
Each is then trained for as many steps as the first one, and for as many as take the first one's time. The linear codec is
fitted to the training clips, not trained by steps. The command resumes from `--state`.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from hydra import compose, initialize_config_dir
from matplotlib.figure import Figure

from benchmarks.common import interleaved
from benchmarks.linear_codec import fit, measure, open_clips
from benchmarks.terms import Step
from benchmarks.trainings import Training, make_parser, publish_trainings, spread_over_seeds
from tae.metrics.linear_codec import BLOCK_VALUES
from tae.metrics.registry import METRICS, MORE_METRICS
from tae.model.pretrained import WEIGHTS_FILE
from tae.pca import main as linear_start
from tae.planning.meter import Meter
from tae.runtime.cli import CONFIG_FOLDER
from tae.runtime.files import write_text

OURS = ("model=sd35", "model.image_vae=null", "model.gradient_checkpointing=false", "model.norm_groups=2")
HAAR = ("model=haar", "model.norm_groups=2", "model.base_channels=26")
PEERS: dict[str, dict[str, Any]] = {
    "Wan": {"class": "AutoencoderKLWan", "base_dim": 17, "z_dim": 8},
    "HunyuanVideo": {
        "class": "AutoencoderKLHunyuanVideo",
        "latent_channels": 8,
        "block_out_channels": [16, 32, 64, 64],
        "norm_num_groups": 2,
    },
    "CogVideoX": {
        "class": "AutoencoderKLCogVideoX",
        "latent_channels": 8,
        "block_out_channels": [18, 36, 36, 72],
        "norm_num_groups": 2,
    },
    "Cosmos": {
        "class": "AutoencoderKLCosmos",
        "encoder_block_out_channels": [24, 48, 96, 96],
        "decode_block_out_channels": [48, 96, 96, 96],
    },
    "LTX": {
        "class": "AutoencoderKLLTXVideo",
        "latent_channels": 256,
        "block_out_channels": [12, 24, 48, 48],
        "decoder_block_out_channels": [12, 24, 48, 48],
    },
}


def of_diffusers(settings: Mapping[str, Any]) -> tuple[str, ...]:
    config = {name: value for name, value in settings.items() if name != "class"}
    written = json.dumps(config).replace('"', "")
    return ("model=diffusers", f"model.class_name={settings['class']}", f"model.config={written}")


NETWORKS: dict[str, tuple[str, ...]] = {
    "full": (*OURS, "model.base_channels=24"),
    "haar, 1 level": (*HAAR, "model.folds=1", "model.channel_multipliers=[1,2,4]"),
    "haar, 2 levels": HAAR,
    "haar, 2 levels, rms": (*HAAR, "model.norm=rms"),
    "haar, linear start": HAAR,
    **{name: of_diffusers(settings) for name, settings in PEERS.items()},
}
STARTED = "haar, linear start"  # two levels, from the linear codec of the training clips (tae.pca)
COMMON = (
    "loss.kl.weight=0", "loss.opl.weight=0", "ema.decay=0.99", "metrics=[psnr,ssim,lpips,rfvd]", "scheduler=constant",
)  # fmt: skip
LINEAR = "linear codec"
BUDGETS = ("steps", "time")
SHOWN = {"psnr": "dB", "ssim": "SSIM", "lpips": "LPIPS", "rfvd": "rFVD"}  # metrics and their titles
Rows: TypeAlias = list[dict[str, Any]]


def training(name: str, seed: int, every: int = 1, start: Path | None = None) -> Training:
    """The training of a network that is validated every so many steps, from random weights or those in `start`."""
    looks = (f"trainer.val_check_interval={every}", f"callbacks.last.every_n_steps={every}")
    weights = () if start is None else (f"init_from={start}",)
    return Training(name, seed, (*COMMON, *NETWORKS[name], *weights, *looks))


def write_start(arguments: argparse.Namespace) -> Path:
    """The linear codec as a network, fitted once on the training clips."""
    folder = Path(arguments.state) / "linear_start"
    if not folder.joinpath(WEIGHTS_FILE).exists():
        settings = {
            "data.shards": json.dumps({"train": arguments.train, "val": None, "test": None}).replace('"', ""),
            "data.num_frames": arguments.num_frames,
            "data.resolution": arguments.resolution,
            "clips": arguments.fit_clips,
            "output": folder,
        }
        with initialize_config_dir(CONFIG_FOLDER, version_base="1.3"):
            overrides = [*NETWORKS[STARTED], *(f"{key}={value}" for key, value in settings.items())]
            linear_start(compose("pca", overrides=overrides))
    return folder


def measure_costs(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Parameters, multiply-adds and seconds of a step of each network; kept in `--state`, since budgets follow from it."""
    size = f"{arguments.batch}x{arguments.num_frames}x{arguments.resolution}"
    kept = Path(arguments.state) / f"costs_{arguments.device}_{size}_{arguments.lpips}_{arguments.precision}.json"
    found = json.loads(kept.read_text()) if kept.exists() else {}
    if set(found) >= set(arguments.networks):
        return found
    shape = (arguments.batch, arguments.num_frames, arguments.resolution, arguments.resolution)
    steps = {name: Step(training(name, 0).configure(arguments, 1), shape) for name in arguments.networks}
    clock = "processor" if arguments.device == "cpu" else "wall"
    times = interleaved(dict(steps), arguments.device, arguments.warmup, arguments.repeats, clock)
    found = {}
    for name, step in steps.items():
        with Meter() as meter:
            step()
        found[name] = {
            "parameters": sum(parameter.numel() for parameter in step.model.parameters()),
            "GMAC": meter.flops / 2e9,
            "seconds": median(times[name]),
        }
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_text(kept, json.dumps(found, indent=1) + "\n")
    return found


def cost_rows(costs: Mapping[str, Mapping[str, float]], networks: Sequence[str]) -> Rows:
    """A row for each network; times against the first one's."""
    first = costs[networks[0]]["seconds"]
    return [
        {
            "network": name,
            "parameters": int(costs[name]["parameters"]),
            "GMAC a step": costs[name]["GMAC"],
            "s/step": costs[name]["seconds"],
            f"times faster than {networks[0]}": first / costs[name]["seconds"],
        }
        for name in networks
    ]


def budgets(arguments: argparse.Namespace, costs: Mapping[str, Mapping[str, float]], name: str) -> dict[str, int]:
    """Steps of a network within each budget."""
    reference = costs[arguments.networks[0]]["seconds"]
    found = {"steps": arguments.steps, "time": max(1, round(arguments.steps * reference / costs[name]["seconds"]))}
    return {budget: found[budget] for budget in arguments.equal}


def quality(documents: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Cells of trainings that differ in their seed: the mean, and its interval over the test clips of the first."""
    cells: dict[str, Any] = {}
    for metric, title in SHOWN.items():
        values = [document["metrics"][metric]["mean"] for document in documents]
        cells[title] = None if None in values else spread_over_seeds(values)
    low, high = documents[0]["metrics"]["psnr"]["ci95"]
    return cells | {"dB, 95 % over clips": f"{low:.2f} to {high:.2f}"}


def measure_network(arguments: argparse.Namespace, name: str, costs: Mapping[str, Mapping[str, float]]) -> Rows:
    """A row for each budget; the smaller one is on the way to the larger one."""
    cost, rows, within = costs[name], [], budgets(arguments, costs, name)
    every = max(1, max(within.values()) // arguments.looks)
    start = write_start(arguments) if name == STARTED else None
    for budget, steps in sorted(within.items(), key=lambda item: item[1]):
        documents = [training(name, seed, every, start).run(arguments, steps) for seed in arguments.seeds]
        spent = {"s/step": cost["seconds"], "minutes": steps * cost["seconds"] / 60, "TMAC": steps * cost["GMAC"] / 1e3}
        head = {"network": name, "equal": budget, "parameters": int(cost["parameters"]), "steps": steps}
        rows.append(head | spent | quality(documents))
    return rows


def measure_linear(arguments: argparse.Namespace) -> dict[str, Any]:
    """The row of 16 principal components of each block of 8x8x8 pixels."""
    data = open_clips(arguments.train, arguments.test, arguments.num_frames, arguments.resolution, arguments.state)
    metrics = {name: (METRICS | MORE_METRICS)[name] for name in SHOWN}
    codec = fit(data, arguments.fit_clips, numbers=16)
    (row,) = measure({LINEAR: codec}, data, metrics, time_factor=8)
    cells = {title: row.get(metric) for metric, title in SHOWN.items()}
    return {"network": LINEAR, "equal": "fitted", "parameters": 17 * BLOCK_VALUES} | {
        title: None if value is None else f"{value:.4g}" for title, value in cells.items()
    }


def draw(arguments: argparse.Namespace, costs: Mapping[str, Mapping[str, float]], linear: Mapping[str, Any]) -> None:
    """dB and LPIPS of each validation against the time and against the multiply-adds that training took until then."""
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    for row, (metric, title) in zip(figure.subplots(2, 2), list(SHOWN.items())[::2][:2], strict=True):
        for axes, unit, factor in ((row[0], "minutes", ("seconds", 60)), (row[1], "TMAC", ("GMAC", 1e3))):
            for name in arguments.networks:
                points = training(name, arguments.seeds[0]).curve(arguments, metric)
                spent = [step * costs[name][factor[0]] / factor[1] for step, _ in points]
                axes.plot(spent, [value for _, value in points], marker=".", label=name)
            if linear[title] is not None:
                axes.axhline(float(linear[title]), color="gray", linestyle="--", label=LINEAR)
            axes.set(xlabel=f"{unit} of training", ylabel=title, xscale="log")
            axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    figure.savefig(arguments.plot, dpi=110)


def main() -> None:
    parser = make_parser(
        __doc__, num_frames=17, batch=2, lr=5e-4, lpips="alex", looks=5, state=Path("outputs/equal_budget")
    )
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--equal", nargs="+", choices=BUDGETS, default=list(BUDGETS), help="which budgets")
    parser.add_argument("--fit-clips", type=int, default=512, help="random windows that the linear codec is fitted on")
    parser.add_argument("--warmup", type=int, default=1, help="steps of each network before its time is taken")
    parser.add_argument("--repeats", type=int, default=5, help="steps of each network whose time is taken")
    parser.add_argument("--costs", action="store_true", help="publish what a step costs, and train nothing")
    parser.add_argument("--plot", type=Path, help="where to draw quality against time and multiply-adds")
    arguments = parser.parse_args()
    costs = measure_costs(arguments)
    if arguments.costs:
        publish_trainings("equal_budget_costs", arguments, cost_rows(costs, arguments.networks))
        return
    linear = measure_linear(arguments)
    rows = [row for name in arguments.networks for row in measure_network(arguments, name, costs)]
    if arguments.plot is not None:
        draw(arguments, costs, linear)
    publish_trainings("equal_budget", arguments, [*rows, dict.fromkeys(rows[0]) | linear])


if __name__ == "__main__":
    main()
