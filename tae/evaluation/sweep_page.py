"""The page of a sweep: its runs' numbers, settings, curves and clips beside one another."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from tae.evaluation.page import (
    SHOWN_CLIPS,
    details,
    facts,
    latents_charts,
    latents_table,
    metric_columns,
    page_clip,
    read_pictures,
    short,
)
from tae.evaluation.pictures import mosaic, mosaic_columns, reduced, reduction
from tae.evaluation.report import latents_text
from tae.evaluation.results import summarise
from tae.evaluation.sweep_runs import (
    Run,
    common_baseline,
    differing,
    measured_by,
    read_json_or,
    read_per_clip,
    run_label,
)
from tae.runtime.config import flat
from tae.video.writer import write_video

PerClip = Mapping[str, Mapping[str, str]]  # a run's per_clip.csv by key


def comparison_page(folder: Path, runs: Sequence[Run]) -> dict[str, Any]:
    """The page's data for a sweep, and the videos that show a clip as every run gives it."""
    labels = short_labels([run_label(run, differing(runs)) for run in runs])
    complete = [run for run in runs if run.document]
    first: Mapping[str, Any] = complete[0].document if complete else {}
    measurements = [read_per_clip(run) for run in runs]
    return {
        "title": f"Comparison of {len(runs)} runs",
        "lead": _leader(runs, labels, measurements),
        "facts": facts(first) if "num_clips" in first else [],
        "metrics": metric_columns(measured_by(runs)),
        "runs": [
            {
                "label": label,
                "href": f"{run.folder.relative_to(folder).as_posix()}/index.html" if _has_page(run) else None,
                "note": latents_text(run.document.get("model", {})),
                "metrics": run.metrics,
                "error": run.error,
                "curve": run.curve,
                "latents": latents_charts(run.latents),
            }
            for run, label in zip(runs, labels, strict=True)
        ],
        "baseline": common_baseline(runs),
        "advantage": None,
        "settings": {"rows": _different_settings(runs)},
        "latents": latents_table([run.latents for run in runs]),
        "rates": rates(runs),
        "rows": [_page_row(key, measurements, list(measured_by(runs))) for key in sorted(set().union(*measurements))],
        "clips": _write_clips(folder, runs, labels),
        "skipped": [],
        "details": details(first) if "environment" in first else [],
    }


def rates(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Numbers in the latents for each value of a clip, and PSNR: of the models, and of linear codecs as the floor."""
    models = [
        {"run": i, "rate": 1 / run.compression, "psnr": run.metrics["psnr"]["mean"]}
        for i, run in enumerate(runs)
        if run.compression and "psnr" in run.metrics
    ]
    if not models:
        return None
    floors = []
    trilinear = sorted(
        {
            (run.baseline_rate, run.baseline["psnr"]["mean"])
            for run in runs
            if run.baseline_rate and "psnr" in run.baseline
        }
    )
    if trilinear:
        floors.append({"label": "trilinear", "line": False, "points": trilinear})
    linear = next((run.document["linear_codec"] for run in runs if run.document.get("linear_codec")), None)
    if linear and linear["psnr"]:
        floors.append(
            {
                "label": "principal components",
                "line": True,
                "points": list(zip(linear["rate"], linear["psnr"], strict=True)),
            }
        )
    return {"models": models, "floors": floors}


def short_labels(labels: Sequence[str]) -> list[str]:
    """The labels without the folders that all of them start and end with: paths are long, and differ in the middle."""
    parts = [label.split("/") for label in labels]
    for _ in range(2):  # from the front, then from the back
        shortest = min(map(len, parts), default=1)
        same = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False)))
        parts = [part[min(same, shortest - 1) :][::-1] for part in parts]
    return ["/".join(part) for part in parts]


def _has_page(run: Run) -> bool:
    return run.error is None and (run.folder / "index.html").exists()


def _leader(runs: Sequence[Run], labels: Sequence[str], measurements: Sequence[PerClip]) -> str:
    """In words, which run has the highest PSNR, and how sure it is that it is better than the next one."""
    ranked = sorted(
        (
            (run.metrics["psnr"]["mean"], label, clips)
            for run, label, clips in zip(runs, labels, measurements, strict=True)
            if "psnr" in run.metrics
        ),
        key=lambda entry: entry[0],
        reverse=True,
    )
    if len(ranked) < 2:
        return "There are no two runs to compare."
    (best, first, clips), (second, next_best, others) = ranked[:2]
    sentence = f"Highest PSNR: {first} with {best:.2f} dB, then {next_best} with {second:.2f} dB."
    return f"{sentence} {_clip_by_clip(clips, others)}"


def _clip_by_clip(best: PerClip, second: PerClip) -> str:
    """The difference on the same clips: whether two intervals overlap says little, as all runs find the same clips hard."""
    shared = [key for key in sorted(best) if key in second and best[key]["num_frames"] == second[key]["num_frames"]]
    if not shared:
        return "The two were measured on no clip in common, so this does not tell which is better."
    differences = [{"psnr": float(best[key]["psnr"]) - float(second[key]["psnr"])} for key in shared]
    interval = summarise(differences, [int(best[key]["num_frames"]) for key in shared])["psnr"]
    if interval["ci95"] is None:
        return f"They share one clip, where the difference is {interval['mean']:+.2f} dB: that says nothing of others."
    low, high = interval["ci95"]
    judgement = "so which is better is not certain" if low <= 0 <= high else "of one sign"
    return (
        f"On the {len(shared)} clips that both have, the difference is {interval['mean']:+.2f} dB, its 95 % interval "
        f"{low:+.2f} to {high:+.2f}, {judgement}."
    )


def _different_settings(runs: Sequence[Run]) -> list[list[str | None]]:
    """[key, value in each run ...] of every setting in the resolved configs that is not the same in all runs."""
    configs = [_as_text(flat(_without_folder(run.document.get("config", {}), run))) for run in runs]
    if not any(configs):
        return [[key, *(run.overrides.get(key) for run in runs)] for key in differing(runs)]
    known = [config for config in configs if config]  # a failed run has no results and so no config to compare
    keys = dict.fromkeys(key for config in known for key in config)
    unequal = [key for key in keys if len({config.get(key) for config in known}) > 1]
    return [
        [key, *(config.get(key, run.overrides.get(key)) for config, run in zip(configs, runs, strict=True))]
        for key in unequal
    ]


def _without_folder(node: Any, run: Run) -> Any:
    """The same config with every path below the run's own folder written as ${output_dir}."""
    own = node.get("output_dir") if isinstance(node, Mapping) else None

    def walk(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: walk(item) for key, item in value.items()}
        return value.replace(own, "${output_dir}") if own and isinstance(value, str) else value

    return walk(node)


def _as_text(settings: Mapping[str, Any]) -> dict[str, str]:
    return {key: "null" if value is None else str(value) for key, value in settings.items()}


def _page_row(key: str, measurements: Sequence[PerClip], names: Sequence[str]) -> dict[str, Any]:
    """One clip's line of the page: every run's values, and the baseline's of the first run that has the clip."""
    rows = [of_run.get(key) for of_run in measurements]
    first = next(row for row in rows if row is not None)
    return {
        "key": key,
        "frames": int(first["num_frames"]),
        "runs": [
            None if row is None else {name: short(float(row[name])) for name in names if row.get(name)} for row in rows
        ],
        "baseline": {
            name: short(float(first[f"trilinear_{name}"])) for name in names if first.get(f"trilinear_{name}")
        },
    }


def _write_clips(folder: Path, runs: Sequence[Run], labels: Sequence[str]) -> list[dict[str, Any]]:
    """One video for each clip that all runs show, the original and every run's picture in it.

    A clip that only some show, such as one run's worst, is left out, unless there is no other.
    """
    indexes = [
        {clip["key"]: clip for clip in read_json_or(run.folder / SHOWN_CLIPS, [])} if run.error is None else {}
        for run in runs
    ]
    leading = next((index for index in indexes if index), {})
    rows = [(clip, [_same_shape(index.get(key), clip) for index in indexes]) for key, clip in leading.items()]
    most = max((sum(map(bool, of_runs)) for _, of_runs in rows), default=0)
    clips: list[dict[str, Any]] = []
    for clip, of_runs in rows:
        showing = [(run, label, entry) for run, label, entry in zip(runs, labels, of_runs, strict=True) if entry]
        if len(showing) < most:
            continue
        size = clip["height"] * clip["scale"], clip["width"] * clip["scale"]
        pairs = [read_pictures(run.folder / entry["video"], *size) for run, _, entry in showing]
        pictures = [pairs[0][0], *(reconstruction for _, reconstruction in pairs)]
        factor = reduction(len(pictures), *size)
        pictures = [reduced(picture, factor) for picture in pictures]
        name = f"clip{len(clips)}"
        write_video(folder / f"videos/{name}.mp4", mosaic(pictures, mosaic_columns(len(pictures))), clip["fps"])
        folders = [f"{run.folder.relative_to(folder).as_posix()}/" for run in runs]
        shown = ["original", *(label for _, label, _ in showing)]
        smaller = {"height": size[0] // factor, "width": size[1] // factor, "scale": 1}
        clips.append(page_clip(clip | {"name": name} | smaller, f"videos/{name}.mp4", of_runs, shown, folders))
    return clips


def _same_shape(entry: Mapping[str, Any] | None, as_in: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The entry, unless its run saw the clip at another length, size or rate: then they cannot be laid side by side."""
    return entry if entry and all(entry[name] == as_in[name] for name in ("frames", "height", "width", "fps")) else None
