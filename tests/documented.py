"""The pages of the documentation, and the commands in them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tae.runtime.cli import nested

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
        return [nested(word) for word in shlex.split(self.text[found.end() :]) if word not in ("-m", "--cfg", "job")]


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
