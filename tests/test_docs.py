"""The documentation: every link, path and setting that it names exists, and the papers keep their form."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.documented import CONF, NAMES, PAGES, PAPERS, ROOT, inline_code, prose


@cache
def settings() -> set[str]:
    """The dotted names of everything that an entry point takes."""
    names: set[str] = set()
    variants = {
        "train": [
            ["data=folder", "adversary=patch", "logger=[csv,tensorboard,wandb]"],
            ["experiment=demo", "strategy=ddp"],
            ["model=diffusers"],
        ]
    }
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
