"""The documentation: every command is run or accounted for, every link, path and setting that it names exists."""

import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from tae import TemporalAutoencoder, frames_to_clip
from tae.runtime.cli import chooses
from tae.runtime.config import plain
from tae.train import GROUPS as DEMO_UNLESS
from tests.references.video import make_video

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
PAPERS = [ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/NOTES.md")]
ENTRY = re.compile(r"(?:^|\s)(train\.py|evaluate\.py|-m (?:tae|data)\.\w+)(?=\s|$)")

# What stands for something of the reader's, and what it is in these tests.
PLACEHOLDERS = {
    "outputs/ucf101/.../checkpoints/best.ckpt": "outputs/run/checkpoints/best.ckpt",
    "$SLURM_JOB_NAME": "job",
}
NOT_COMPOSED = {
    "make demo": "installs into .venv and trains for minutes",
    "make test": "these tests",
    "source .venv/bin/activate": "of the shell",
    "hf auth login": "asks for an account's token",
    "tae-": "commands of the installed package; tests/test_installed.py starts them",
    "python -m benchmarks.": "has no config; its options are looked up below, tests/benchmarks/ runs most of them small",
    "python examples/flow_matching.py": "has no config; the slow tests run it",
}
NOT_RUN = {
    "=my_": "files of the reader's own; tests/test_extending.py writes and runs them",
    "torchrun": "several nodes; tests/test_clusters.py starts two on one machine",
    "srun": "SLURM",
    "launcher=": "SLURM",
    "push=true": "uploads to the hub",
    "download=true": "fetches 7 GB",
    "get=": "fetches packages; `make test-network` does",
    "s3://": "no such bucket; tests/data/storage/test_remote.py reads from a local one",
    "diffusers:": "weights of others; tests/tae/evaluation/test_peers.py makes small ones",
}


@dataclass(frozen=True)
class Command:
    """A command line of a page, comments and line breaks taken out."""

    page: str
    text: str

    @property
    def entry(self) -> str:
        """The config of its entry point, "" for other programs."""
        found = ENTRY.search(self.text)
        return found[1].removesuffix(".py").rpartition(".")[2] if found else ""

    @property
    def overrides(self) -> list[str]:
        found = ENTRY.search(self.text)
        assert found, self.text
        return [word for word in shlex.split(self.text[found.end() :]) if word not in ("-m", "--cfg", "job")]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def lines_of(block: str) -> Iterator[str]:
    for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
        if command := re.sub(r"(^|\s+)#.*", "", line):
            yield command


def fill_in(text: str) -> str:
    for placeholder, value in PLACEHOLDERS.items():
        text = text.replace(placeholder, value)
    return text


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def inline_code(page: Path) -> list[str]:
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`\n]+)`", prose(page))]


def listed_commands(page: Path) -> list[Command]:
    """The lines of a page's bash blocks."""
    name = str(page.relative_to(ROOT))
    return [Command(name, fill_in(line)) for block in blocks(page.read_text(), "bash") for line in lines_of(block)]


COMMANDS = [command for page in PAGES for command in listed_commands(page)]
MENTIONED = [
    Command(str(page.relative_to(ROOT)), span) for page in PAGES for span in inline_code(page)
    if span.startswith("python ") and ENTRY.search(span)
]  # fmt: skip


def composed(entry: str, overrides: list[str]) -> list[DictConfig]:
    """The config of each run that a command line asks for."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    choices = [
        [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
        if override.is_sweep_override()
        else [str(override.input_line)]
        for override in parsed
    ]
    if entry == "train" and not chooses(overrides, DEMO_UNLESS):
        choices.append(["experiment=demo"])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return [compose(entry, overrides=list(run)) for run in itertools.product(*choices)]


def test_the_pages_have_commands() -> None:
    assert len(COMMANDS) > 40
    assert {command.entry for command in COMMANDS} >= {path.stem for path in CONF.glob("*.yaml")}


@pytest.mark.parametrize("command", dict.fromkeys(COMMANDS + MENTIONED), ids=lambda c: f"{c.page}: {c.text}")
def test_a_command_composes(command: Command) -> None:
    """Every setting that it names exists, and nothing that has no default is missing."""
    if not command.entry:
        assert any(command.text.startswith(start) for start in NOT_COMPOSED), (
            f"{command.page} has a command that no test looks at: {command.text}. Add it to NOT_COMPOSED with the reason."
        )
        return
    for config in composed(command.entry, command.overrides):
        if "output_dir" in config:
            config.output_dir = "out"
        plain(config)


BENCHMARKS = [command for command in COMMANDS if command.text.startswith("python -m benchmarks.")]


@pytest.mark.parametrize("command", BENCHMARKS, ids=lambda c: f"{c.page}: {c.text}")
def test_the_options_of_a_benchmark_exist(command: Command) -> None:
    """A benchmark parses its arguments when it starts to measure: its options are looked for in its text."""
    _, _, module, *arguments = shlex.split(command.text)
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    options = [argument for argument in arguments if argument.startswith("--")]
    assert [option for option in options if f'add_argument("{option}"' not in re.sub(r"\(\s+", "(", source)] == []


@pytest.mark.parametrize("table", [NOT_COMPOSED, NOT_RUN], ids=["not composed", "not run"])
def test_every_exception_is_needed(table: dict[str, str]) -> None:
    assert [start for start in table if not any(start in command.text for command in COMMANDS)] == []


@cache
def settings() -> set[str]:
    """The dotted names of everything that an entry point takes."""
    names: set[str] = set()
    variants = {"train": [["data=folder", "logger=[csv,tensorboard,wandb]"], ["experiment=demo", "strategy=ddp"]]}
    for path in CONF.glob("*.yaml"):
        for overrides in variants.get(path.stem, [[]]):
            with initialize_config_dir(str(CONF), version_base="1.3"):
                config = compose(path.stem, overrides=overrides)
            names |= set(leaves(OmegaConf.to_container(config)))
    return names


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """`a.b` for every value, and for every dict in between."""
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from leaves(value, f"{prefix}{key}.")


# A row that explains a whole group of settings.
NO_SETTINGS = {"hydra.launcher.NAME"}
SETTING = r"[a-z_]+(?:\.[a-zA-Z_]+)*"


def overrides_in(span: str) -> Iterator[tuple[str, str]]:
    """(name, value) of each override in inline code, as a shell would hand it over; of `a=x|y` both."""
    if "--" in span or "(" in span or not re.search(rf"(^|[ '\"]){SETTING}=", span):
        return
    for word in shlex.split(span):
        if re.match(rf"{SETTING}=(?!True$|False$)", word):  # these are Python's
            yield from ((word.partition("=")[0], value) for value in word.partition("=")[2].split("|"))


def is_code(name: str) -> bool:
    """Whether a dotted name is a module, or something in one: `data.datamodule.ClipDataModule`."""
    parts = name.split(".")
    homes = [ROOT.joinpath(*parts[:length]) for length in range(2, len(parts) + 1)]
    return any(home.is_dir() or home.with_suffix(".py").is_file() for home in homes)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_setting_that_is_named_exists(page: Path) -> None:
    known = settings() | NO_SETTINGS
    wrong = [span for span in inline_code(page) if re.fullmatch(rf"(data|loss|trainer|tiling)\.{SETTING}", span)]
    wrong = [span for span in wrong if span not in known and not is_code(span)]
    for span in inline_code(page):
        for name, value in overrides_in(span):
            OverridesParser.create().parse_override(f"{name}={value}")
            choices = [choice for choice in value.strip("[]").split(",") if choice.islower()]
            is_choice = all((CONF / name / f"{choice}.yaml").is_file() for choice in choices)
            if not (is_choice if (CONF / name).is_dir() else name in known):
                wrong.append(span)
    assert wrong == []


def anchors(page: Path) -> set[str]:
    """How GitHub names the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES + PAPERS, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    text = prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.MULTILINE):
        path, _, anchor = target.partition("#")
        if path.startswith("https://"):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES + PAPERS, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    named = re.findall(r"(?:tae|data|conf|tests|docs|benchmarks|examples)/[\w./-]+\.(?:py|yaml|md)", page.read_text())
    tests = re.findall(r"(?<![\w/])test_\w+\.py", page.read_text())
    assert [path for path in named if not (ROOT / path).is_file()] == []
    assert [name for name in tests if not list((ROOT / "tests").rglob(name))] == []


@pytest.mark.parametrize("page", PAGES + PAPERS, ids=lambda page: page.name)
def test_no_line_is_longer_than_120_characters(page: Path) -> None:
    lines = enumerate(page.read_text().splitlines(), start=1)
    assert [f"line {number} has {len(line)} characters" for number, line in lines if len(line) > 120] == []


def test_the_layers_of_the_architecture_are_those_that_are_checked() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = [[name.replace(".", "/") for name in layer.split(" : ")] for layer in contracts[0]["layers"]]
    drawn = re.findall(r"^\| \w+ \| (.*?) \|", page.partition("## The life")[0], re.MULTILINE)[1:]
    assert [re.findall(r"`([\w/]+)/`", row) for row in drawn[1:]] == layers[1:]
    folders = {path.parent for path in [*(ROOT / "tae").glob("*/__init__.py"), *(ROOT / "data").glob("*/__init__.py")]}
    assert [path.name for path in folders if f"`{path.relative_to(ROOT)}/`" not in page] == []


def test_every_command_is_on_the_page_of_settings() -> None:
    page = (ROOT / "docs" / "reference" / "settings.md").read_text()
    commands = [path.name for path in CONF.glob("*.yaml") if path.name != "hydra_common.yaml"]
    assert [name for name in commands if f"(../../conf/{name})" not in page] == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2].partition("\nplugins:\n")[0]
    named = re.findall(r"[\w/-]+\.md", navigation)
    pages = [name.removeprefix("docs/") for name in NAMES[1:]]
    assert [page for page in pages if named.count(page) != 1] == []


def versions() -> list[str]:
    """The headings of the changelog, newest first."""
    return re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_changelog_keeps_its_form() -> None:
    unreleased, *released = versions()
    assert unreleased == "[Unreleased]"
    found = [re.fullmatch(r"\[(\d+)\.(\d+)\.(\d+)\] - (\d{4}-\d{2}-\d{2})", version) for version in released]
    assert all(found), released
    order = [tuple(map(int, match.groups()[:3])) for match in found if match]
    assert order == sorted(order, reverse=True)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security", "Numerics"}
    for section in re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)[1:]:
        headings = re.findall(r"^### (.*)$", section, re.MULTILINE)
        assert set(headings) <= kinds
        assert len(headings) == len(set(headings))
        assert "Numerics" in headings


def test_the_version_and_the_licence_are_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = OmegaConf.load(ROOT / "CITATION.cff")
    assert citation["version"] == project["version"]
    assert project["version"] in versions()[1], "the newest version of the changelog is another one"
    assert citation["license"] == project["license"] == "Apache-2.0"
    licence = (ROOT / "LICENSE").read_text()
    assert "Version 2.0, January 2004" in licence
    assert licence.rstrip().endswith("limitations under the License.")


def test_extras_and_console_commands_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = "\n".join(page.read_text() for page in PAGES + PAPERS)
    assert {name for names in re.findall(r"\.\[([\w,]+)\]", text) for name in names.split(",")} <= set(
        project["optional-dependencies"]
    )
    quickstart = (ROOT / "docs" / "quickstart.md").read_text()
    assert set(re.findall(r"\btae-[a-z]+", quickstart)) - {"tae-eval"} == set(project["scripts"])


def clips(folder: Path, names: list[str], size: tuple[int, int] = (48, 64)) -> None:
    """Small videos of 36 and more frames; each is of another length, since equal files are taken once."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        make_video(path, list(range(36 + number)), size, time_base=Fraction(1, 25))


SMALL_MODEL = {"model.base_channels": "8", "model.norm_groups": "1", "model": "tiny", "precision": "fp32"}
SMALL_DATA = {"data.num_frames": "8", "data.resolution": "32", "data.batch_size": "1", "data.num_workers": "0"}
SMALL_CLIPS = {"data.num_clips": "{train:4,val:2,test:2}", "data.clip_frames": "10", "data.clip_size": "32"}
ON_CPU = {"trainer.accelerator": "cpu", "trainer.devices": "1"}
LESS = {
    "train": SMALL_MODEL | SMALL_DATA | ON_CPU | {"trainer.max_steps": "2", "trainer.val_check_interval": "2"}
    | {"trainer.num_nodes": "1", "loss.perceptual.weight": "0", "page.clips": "1", "strategy": "auto"},
    "evaluate": ON_CPU | {"page.clips": "1"},
    "plan": SMALL_MODEL | {"data.num_frames": "8", "data.resolution": "32", "loss.perceptual.weight": "0"},
    "encode": ON_CPU | {"num_workers": "1", "tiling.tile_pixels": "null"},
    "reconstruct": {"trainer.accelerator": "cpu"},
    "prepare": {"workers": "2", "min_shot": "8"},
    "verify": {"workers": "2"},
    "synthetic": {"clip_frames": "10", "clip_size": "32"},
}  # fmt: skip


def made_small(command: Command) -> list[str]:
    """The command line with what makes it quick in the place of what the page says."""
    if not command.entry:
        _, script, *arguments = command.text.split()
        return [sys.executable, str(ROOT / script), *arguments, "--steps", "2"]
    entry, given = command.entry, command.overrides
    less = dict(LESS.get(entry, {}))
    chosen = {override.partition("=")[0] for override in given}
    if entry == "train" and not chosen & set(DEMO_UNLESS):
        less["experiment"] = "demo"
    if entry in ("train", "evaluate") and ("data=synthetic" in given or not chosen & {"data", "experiment", "ckpt"}):
        less |= (
            SMALL_DATA
            | SMALL_CLIPS
            | {"data.cache_dir": "cache"}
            | ({"data": "synthetic"} if entry == "evaluate" else {})
        )
    if entry == "train" and "init_from" not in chosen:
        less |= {"init_from": "null"} | (
            {} if "model.channel_multipliers" in chosen else {"model.channel_multipliers": "[1,2,2,2]"}
        )
    if entry == "encode" and "resolution" in chosen:
        less["resolution"] = "32"
    if entry == "evaluate" and "data=folder" in given:
        less |= {"data.num_workers": "0", "data.batch_size": "1"}
    kept = [override for override in given if override.partition("=")[0] not in less]
    flags = ["-m"] if re.search(r"\.py -m ", command.text) else []
    found = ENTRY.search(command.text)
    assert found
    program = [str(ROOT / found[1])] if found[1].endswith(".py") else found[1].split()
    return [sys.executable, *program, *flags, *kept, *(f"{name}={value}" for name, value in less.items())]


def run(arguments: list[str], folder: Path) -> None:
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}"


def run_line(text: str, folder: Path) -> None:
    run(made_small(Command("", text)), folder)


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a reader who has videos and has trained before."""
    folder = tmp_path_factory.mktemp("reader")
    clips(folder / "videos", [f"clip{i}.mp4" for i in range(10)])
    clips(folder / "films", ["first.mp4", "second.mp4"], size=(96, 128))
    names = [f"{label}/v_{label}_g{group:02}_c01.avi" for label in ("Archery", "Bowling") for group in range(1, 4)]
    clips(folder / "UCF-101", names)
    for name in ("film.mp4", "my film (1), cut=2 & more.mp4"):
        shutil.copy(folder / "videos" / "clip0.mp4", folder / name)
    run_line("python train.py output_dir=outputs/run", folder)
    return folder


def to_run(page: str) -> list[Command]:
    commands = [command for command in COMMANDS if command.page == page]
    skipped = (*NOT_RUN, *(start for start in NOT_COMPOSED if "examples/" not in start))
    return [command for command in commands if not any(start in command.text for start in skipped)]


@pytest.mark.slow
@pytest.mark.parametrize("page", [name for name in NAMES if to_run(name)])
def test_the_commands_of_a_page_run(page: str, reader: Path, tmp_path: Path) -> None:
    """One after the other, as they stand, small: what one leaves the next one finds."""
    folder = tmp_path / "reader"
    shutil.copytree(reader, folder)
    commands = to_run(page)
    text = " ".join(command.text for command in commands)
    if "data.prepare" not in text:
        run_line("python -m data.prepare dataset=folder source=videos/", folder)
        run_line("python -m data.prepare dataset=ucf101 source=UCF-101/", folder)
    for command in commands:
        run(made_small(command), folder)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the Python examples load: models under the names that they use, and latents."""
    from tae.encode import main

    folder = tmp_path_factory.mktemp("models")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = TemporalAutoencoder(base_channels=8, channel_multipliers=(1, 2, 2, 2), norm_groups=1)
    for name in ("outputs/model", "my-tae"):
        model.save_pretrained(folder / name)
    clips(folder / "videos", ["a.mp4", "b.mp4"])
    given = {"ckpt": "my-tae", "source": "videos", "output": "latents"}
    small = {"trainer.accelerator": "cpu", "num_workers": 0, "resolution": 32, "tiling.tile_pixels": "null"}
    paths = {name: str(folder / value) for name, value in given.items()}
    main(composed("encode", [f"{name}={value}" for name, value in (paths | small).items()])[0])
    return folder


PYTHON = [(name, number, text) for page, name in zip(PAGES, NAMES, strict=True)
          for number, text in enumerate(blocks(page.read_text(), "python"))]  # fmt: skip


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
@pytest.mark.parametrize(("page", "number", "text"), PYTHON, ids=[f"{name}-{number}" for name, number, _ in PYTHON])
def test_python_examples_run(
    page: str, number: int, text: str, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_folder)
    frames = torch.randint(0, 256, (1, 9, 32, 40, 3), dtype=torch.uint8)
    clip = frames_to_clip(frames)

    class Pipeline:
        vae: Any = None

    names: dict[str, Any] = {
        "frames": frames,
        "video": clip,
        "generated": torch.randn(1, 16, 2, 4, 5),
        "pipeline": Pipeline(),
        "pieces": clip.split(4, dim=2),
        "height": 32,
        "width": 40,
    }
    if "diffusers_adapter" in text:
        pytest.importorskip("diffusers")
    exec(compile(text, f"{page}[{number}]", "exec"), names)
    if page == "README.md":
        assert names["frames"].shape == frames.shape
