"""A model to share: weights, config and a card that says how good it is, in a folder and on the hub.

python -m tae.export ckpt=PATH output=DIR
python -m tae.export ckpt=PATH output=DIR format=onnx
python -m tae.export ckpt=PATH output=DIR push=true repo=OWNER/NAME
"""

import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, ModelCardData, constants
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id
from omegaconf import DictConfig

from tae.checkpoint import LoadedModel, load_model
from tae.cli import hydra_main
from tae.config import plain
from tae.errors import UserError, first_line
from tae.files import check_writable, write_text
from tae.graphs import check_format, export_graphs
from tae.latents import DTYPES, STATS, LatentStats
from tae.report import LABELS, interval_text, markdown_table

CARD = "README.md"
USE = """```python
from tae import TemporalAutoencoder, clip_to_frames, frames_to_clip

model = TemporalAutoencoder.from_pretrained("{name}")
clip = frames_to_clip(frames)  # uint8 (b, t, h, w, 3) -> (b, 3, t, h, w) in [-1, 1]
latents = model.encode(clip).mode()  # (b, {channels}, ceil(t / {factor}), ceil(h / {factor}), ceil(w / {factor}))
frames = clip_to_frames(model.decode(latents, num_frames=clip.shape[2], size=clip.shape[3:]))
```"""


def main(cfg: DictConfig) -> Path:
    """Write the folder `cfg.output` and, where asked, upload it.

    Raises:
        UserError: a setting is wrong, the metrics are another checkpoint's, or the hub refuses.
    """
    plain(cfg)
    output = Path(cfg.output).expanduser()
    if cfg.dtype not in DTYPES:
        raise UserError(f"dtype={cfg.dtype} is unknown. Choose one of: {', '.join(DTYPES)}.")
    if cfg.format != "safetensors":
        check_format(cfg.format)
    if output.is_dir() and any(output.iterdir()):
        raise UserError(f"output={output} is not empty. Remove what is in it or choose another folder.")
    stats = None if cfg.latents is None else LatentStats.read(cfg.latents)
    check_writable(output, "output")
    loaded = load_model(cfg.ckpt)
    metrics = find_metrics(loaded, cfg.metrics)
    check_stats(loaded, stats, cfg.latents)
    if cfg.push:
        prepare_repository(cfg.repo, cfg.private)  # a refusal should come before the work
    output.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(loaded.model).to(DTYPES[cfg.dtype]).save_pretrained(output)
    share(output / "model.safetensors")
    graphs = [] if cfg.format == "safetensors" else export_graphs(loaded.model, output, cfg.format)
    if stats is not None:
        shutil.copy(Path(cfg.latents).expanduser() / STATS, output / STATS)
    write_text(
        output / CARD, model_card(loaded, metrics, stats, graphs, cfg.repo or output.name, cfg.license, cfg.dtype)
    )
    print(f"{output}: {', '.join(sorted(path.name for path in output.iterdir()))}")
    if cfg.push:
        upload(output, cfg.repo)
    return output


def share(path: Path) -> None:
    """Give a file the rights of a new one; safetensors makes its file for its owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod(0o666 & ~mask)


def find_metrics(loaded: LoadedModel, given: str | None) -> dict[str, Any] | None:
    """The metrics of an evaluation of this very file: the given ones, else those of the run that it lies in.

    Raises:
        UserError: the given file cannot be read, or speaks of another checkpoint.
    """
    source = Path(loaded.source).expanduser()
    nearby = (
        [source / "metrics.json"] if source.is_dir() else [folder / "metrics.json" for folder in source.parents[:2]]
    )
    for path in [Path(given).expanduser()] if given else [path for path in nearby if path.is_file()]:
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            evaluated = metrics["checkpoint"]["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"metrics={path} is not what an evaluation writes ({error!r}).") from error
        if evaluated == loaded.sha256:
            return metrics
        if given:
            raise UserError(
                f"metrics={path} is about another file (SHA-256 {str(evaluated)[:12]}..., ckpt={loaded.source} has "
                f"{str(loaded.sha256)[:12]}...). Evaluate this one: python evaluate.py ckpt={loaded.source}"
            )
        print(f"{path} is about another checkpoint, and is left out.")
    print("No metrics of this checkpoint are at hand, the card will have none: evaluate it, or give metrics=PATH.")
    return None


def check_stats(loaded: LoadedModel, stats: LatentStats | None, folder: str | None) -> None:
    """Refuse statistics of another model's latents."""
    if stats is not None and stats.checkpoint["sha256"] != loaded.sha256:
        raise UserError(f"latents={folder} were made by {stats.checkpoint['path']}, which is not ckpt={loaded.source}.")


def model_card(
    loaded: LoadedModel,
    metrics: Mapping[str, Any] | None,
    stats: LatentStats | None,
    graphs: list[Path],
    name: str,
    license: str | None,
    dtype: str,
) -> str:
    """The README of the folder: what it is, how to use it, how it was measured, what it was made from."""
    model = loaded.model
    header = ModelCardData(license=license, library_name="temporal-autoencoder", tags=["video", "autoencoder", "vae"])
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sections = [
        f"---\n{header.to_yaml()}\n---\n\n# {name}",
        f"A Temporal Autoencoder ([Movie Gen](https://arxiv.org/abs/2410.13720)): compresses video {model.factor}x in time, "
        f"height and width into {model.latent_channels} channels, and back. {parameters / 1e6:.2f} M parameters.",
        USE.format(name=name, channels=model.latent_channels, factor=model.factor),
        "## Quality\n\n" + ("Not measured." if metrics is None else quality(metrics)),
    ]
    if stats is not None:
        sections.append(
            f"## Latents\n\nOver {stats.num_clips:,} clips, samples of the posterior have mean 0 and variance 1 after "
            f"`(latents - {stats.shift:.5f}) * {stats.scale:.5f}` (`shift_factor`, `scaling_factor`; `{STATS}` has each "
            f"channel). Outlier rate {stats.outlier_rate:.3%}."
        )
    if graphs:
        sections.append(
            f"## Without Python\n\n`{graphs[0].name}`: `clip` to `mean` and `std`; `{graphs[1].name}`: `latents` to `clip`. "
            "Batch, time, height and width are free; cut a decoded clip to the size that went in."
        )
    sections.append("## Origin\n\n" + origin(loaded) + ("" if dtype == "fp32" else f"\n- weights rounded to {dtype}"))
    return "\n\n".join(sections) + "\n"


def quality(metrics: Mapping[str, Any]) -> str:
    """The table of an evaluation beside its baseline, and how it was measured."""
    baseline = metrics["baselines"]["trilinear"]
    rows = [
        (LABELS.get(key, key), interval_text(key, value), interval_text(key, baseline.get(key)))
        for key, value in metrics["metrics"].items()
        if value["mean"] is not None
    ]
    data = metrics["config"].get("data", {})
    words = {"num_frames": "{} frames", "resolution": "{} pixels each way", "frame_stride": "stride {}"}
    window = ", ".join(text.format(data[key]) for key, text in words.items() if data.get(key) is not None)
    skipped = len(metrics["skipped"])
    return markdown_table(["metric", "this model", "trilinear 8x8x8"], rows) + (
        f"\n\nProtocol `{metrics['protocol']}`: {metrics['num_clips']:,} clips, {metrics['num_frames']:,} frames"
        f"{f' ({window})' if window else ''}, mean [95 % interval over clips]; {skipped} clips could not be read. The "
        "posterior's mode is decoded, both sides are rounded to uint8, each metric is the mean over frames. The baseline "
        "resamples trilinearly on the same grid and learns nothing."
    )


def origin(loaded: LoadedModel) -> str:
    """The file that was exported, and what its training started from."""
    lines = [f"- exported from a file with SHA-256 `{loaded.sha256}`"]
    if start := loaded.model.starting_weights:
        (kind, source), (_, digest) = start.items()
        name = Path(source).name if source and Path(source).exists() else source  # no paths of one's own machine
        lines.append(f"- training started from `{kind}={name}`, SHA-256 `{digest}`")
    return "\n".join(lines)


def prepare_repository(repo: str | None, private: bool) -> None:
    """Make sure that there is a repository to upload to.

    Raises:
        UserError: no or an impossible name, no token, or the hub refuses.
    """
    if repo is None:
        raise UserError("push=true needs repo=OWNER/NAME.")
    try:
        validate_repo_id(repo)
        HfApi().create_repo(repo, private=private, exist_ok=True)
    except HFValidationError as error:
        raise UserError(f"repo={repo} is no name of a repository: {error}") from error
    except Exception as error:  # of the hub, or of the HTTP library that it happens to use
        raise UserError(why_not_pushed(error, repo)) from error


def upload(folder: Path, repo: str) -> None:
    """Upload a folder in one commit.

    Raises:
        UserError: the hub refuses or cannot be reached; the folder stays.
    """
    try:
        commit = HfApi().upload_folder(repo_id=repo, folder_path=folder, commit_message="Upload model")
    except Exception as error:
        raise UserError(f"{why_not_pushed(error, repo)} What was exported is in {folder}.") from error
    print(f"uploaded: {commit.commit_url}")


def why_not_pushed(error: Exception, repo: str) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403) or isinstance(error, LocalTokenNotFoundError):
        return (
            f"{constants.ENDPOINT} does not let you write to {repo}: log in with `hf auth login` or set HF_TOKEN, with a "
            f"token that may write to repositories of {repo.partition('/')[0]}."
        )
    reason = f"it answered {status}" if status else first_line(error).rstrip(".")
    return f"{repo} could not be written to {constants.ENDPOINT}: {reason}. Try again later."


if __name__ == "__main__":
    hydra_main("export")(main)()
