"""The package as others install it: what the wheel holds, what it needs, and its commands away from the checkout."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tae.runtime.commands import BROUGHT, COMMANDS, ON_REQUEST, missing_package

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the files that git has, beside what a user's checkout holds besides them."""
    source = tmp_path_factory.mktemp("source")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, target, follow_symlinks=False)
    for name in ("datasets/clips/train/shard-000000.tar", "outputs/run/config.yaml", "data/notes/own.py"):
        (source / name).parent.mkdir(parents=True)
        (source / name).touch()
    output = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(output), str(source)], check=True, timeout=300)
    (built,) = output.iterdir()
    return built


def test_the_wheel_holds_everything_and_only_ours(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    configs = {f"tae/{path.relative_to(ROOT)}" for path in (ROOT / "conf").rglob("*.yaml")}
    modules = {str(path.relative_to(ROOT)) for folder in ("tae", "data") for path in (ROOT / folder).rglob("*.py")}
    others = {
        str(path.relative_to(ROOT))
        for pattern in ("tae/py.typed", "tae/evaluation/assets/*", "tae/model/weights/*/*")
        for path in ROOT.glob(pattern)
    }
    assert configs
    assert names == configs | modules | others


def test_every_command_is_declared() -> None:
    assert PROJECT["scripts"] == {f"tae-{name}": "tae.runtime.commands:main" for name in COMMANDS}
    assert set(COMMANDS) == {path.stem for path in (ROOT / "conf").glob("*.yaml")}
    assert {extra for _, extra in COMMANDS.values()} | set(ON_REQUEST.values()) <= set(PROJECT["optional-dependencies"])


def imported_packages() -> set[str]:
    """The top-level names that tae and data import, anywhere in a file."""
    found: set[str] = set()
    for path in [*(ROOT / "tae").rglob("*.py"), *(ROOT / "data").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.partition(".")[0])
    return found - sys.stdlib_module_names - {"tae", "data"}


def test_every_import_has_its_extra_or_a_message_of_its_own() -> None:
    base = {"torch", "numpy", "safetensors", "huggingface_hub"}
    with_own_message = {"triton", "diffusers", "scenedetect", "libarchive", "distributed", "s3fs", "torchcodec"}
    with_own_message |= {"cv2", "pycvvdp", "vmaf_torch"}  # a metric without its package is null, with the reason
    assert imported_packages() - base - with_own_message - set(ON_REQUEST) <= BROUGHT


def test_a_package_that_is_missing_is_named_with_the_extra() -> None:
    def answer(command: str, name: str) -> str | None:
        return missing_package(command, ModuleNotFoundError(name=name))

    assert "'temporal-autoencoder[train]'" in str(answer("train", "lightning.pytorch"))
    assert "'temporal-autoencoder[data]'" in str(answer("prepare", "av"))
    assert "'temporal-autoencoder[wandb]'" in str(answer("train", "wandb"))
    assert answer("train", "my_losses") is None


def closure(names: set[str]) -> set[str]:
    """These distributions and everything that they need, as it is installed here."""
    from packaging.requirements import Requirement

    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            required = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        parsed = [Requirement(line) for line in required]
        waiting += [one.name for one in parsed if one.marker is None or one.marker.evaluate({"extra": ""})]
    return seen


def optional_distributions() -> set[str]:
    """What the extras name."""
    lines = [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    return {re.split(r"[^\w-]", line)[0].lower() for line in lines} - {"temporal-autoencoder"}


def test_inference_imports_only_what_a_plain_install_brings(tmp_path: Path) -> None:
    program = (
        "import json, sys, torch, tae; model = tae.TemporalAutoencoder.from_pretrained('tiny'); "
        "[getattr(tae, name) for name in tae.__all__]; "
        "posterior = model.encode(torch.zeros(1, 3, 3, 16, 16)); "
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("["), "a library printed something"
    owners = importlib.metadata.packages_distributions()
    used = {owner.lower().replace("_", "-") for name in json.loads(done.stdout) for owner in owners.get(name, [])}
    brought = closure({"torch", "numpy", "safetensors", "huggingface_hub"})
    assert used & optional_distributions() <= brought
    assert {name.partition(">")[0] for name in PROJECT["dependencies"]} >= {"numpy", "safetensors", "huggingface_hub"}
    assert len(PROJECT["dependencies"]) == 4


def installed(wheel: Path, folder: Path, *hidden: str) -> dict[str, str]:
    """The environment of a program that finds the wheel installed, away from the checkout and without some packages."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, timeout=300)
    for name in hidden:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError(name={name!r})")
    return os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def call(folder: Path, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_installed_commands_answer_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    environment = installed(wheel, tmp_path / "site")
    program = [sys.executable, str(tmp_path / "site/bin/tae-train")]
    done = call(tmp_path, environment, *program, "experiment=ucf101", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "resolution: 256" in done.stdout
    done = call(tmp_path, environment, *program, "--info", "searchpath")
    assert str(tmp_path / "site/tae/conf") in done.stdout
    assert str(ROOT) not in done.stdout


def test_a_command_without_its_extra_says_what_to_install(wheel: Path, tmp_path: Path) -> None:
    environment = installed(wheel, tmp_path / "site", "lightning", "av")
    for command, arguments, extra in (
        ("tae-encode", ["source=videos"], "eval"),
        ("tae-prepare", ["source=videos"], "data"),
    ):
        done = call(tmp_path, environment, sys.executable, str(tmp_path / "site/bin" / command), *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert f"pip install 'temporal-autoencoder[{extra}]'" in done.stderr
    (tmp_path / "site/omegaconf.py").write_text("raise ModuleNotFoundError(name='omegaconf')")
    done = call(tmp_path, environment, sys.executable, str(tmp_path / "site/bin/tae-train"))
    assert done.returncode == 1
    assert "pip install 'temporal-autoencoder[train]'" in done.stderr
    assert "Traceback" not in done.stderr


SMALL = [
    "trainer.max_steps=2", "trainer.val_check_interval=2", "data.num_clips={train:4,val:2,test:2}",
    "data.clip_frames=10", "data.clip_size=32", "data.cache_dir=cache", "data.num_frames=8", "data.resolution=32",
    "page.clips=1",
]  # fmt: skip


@pytest.mark.slow
def test_an_installed_sweep_trains_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    environment = installed(wheel, tmp_path / "site")
    folder = tmp_path / "empty"
    folder.mkdir()
    program = [sys.executable, str(tmp_path / "site/bin/tae-train")]
    done = call(folder, environment, *program, "-m", "seed=0,1", "output_dir=out", *SMALL)
    assert done.returncode == 0, done.stderr
    assert {path.parent.name for path in folder.glob("out/*/metrics.json")} == {"0", "1"}
    assert (folder / "out/comparison.md").is_file()
    done = call(folder, environment, *program, "output_dir=two", "trainer.devices=2", *SMALL)
    assert done.returncode == 0, done.stderr
    assert (folder / "two/metrics.json").is_file()
