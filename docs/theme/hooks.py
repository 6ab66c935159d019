"""Hooks of mkdocs: files of the repository that pages link to, and the settings, become pages of the site.

Pages are written to be read in the repository as well, so their links lead to files: `../benchmarks/NOTES.md`.
"""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"
REPOSITORY = "repository"  # the folder of the site with pages of files outside of docs/
SETTINGS = "reference/settings.md"
ALWAYS = [
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/NOTES.md",
]  # in the navigation, whether or not a page links to it
LINK = re.compile(r"(?<=\]\()([^)\s#:]+)(#[^)\s]*)?(?=\))")
FENCES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".sh": "bash"}


def source_of(path: Path) -> str:
    """A file of the repository as Markdown."""
    text = path.read_text()
    if path.suffix == ".md":
        return text
    if path.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        return "\n\n".join(source if kind == "markdown" else fenced(source, "python") for kind, source in cells)
    return f"# {path.name}\n\n{fenced(text, FENCES.get(path.suffix, 'text'))}\n"


def fenced(code: str, language: str) -> str:
    """Code as a block of Markdown."""
    return f"```{language}\n{code}\n```"


def place_of(path: Path) -> str:
    """Where the site has a file of the repository."""
    if path == ROOT / "README.md":
        return "index.md"
    if path.is_relative_to(ROOT / "docs"):
        return path.relative_to(ROOT / "docs").as_posix()
    if path.is_relative_to(CONF):
        return SETTINGS
    name = path.relative_to(ROOT).as_posix()
    return f"{REPOSITORY}/{name}" if path.suffix == ".md" else f"{REPOSITORY}/{name}.md"


def linked_files(text: str, folder: Path) -> set[Path]:
    """The files outside of docs/ and conf/ that a page in `folder` links to."""
    targets = {(folder / match[1]).resolve() for match in LINK.finditer(text)}
    return {path for path in targets if path.is_file() and place_of(path).startswith(REPOSITORY)}


def rewritten(text: str, folder: Path, place: str) -> str:
    """A page of `folder` with its links as the site, which has it at `place`, needs them."""

    def replace(match: re.Match[str]) -> str:
        path, anchor = (folder / match[1]).resolve(), match[2] or ""
        if not path.is_relative_to(ROOT) or not path.exists() or path.suffix in (".png", ".svg", ".json"):
            return match[0]
        if path.is_relative_to(CONF) and path.is_file():
            anchor = "#" + path.relative_to(ROOT).as_posix().replace("/", "").replace(".", "")
        return posixpath.relpath(place_of(path), posixpath.dirname(place) or ".") + anchor

    return LINK.sub(replace, text)


def settings_files() -> str:
    """Every file of conf/ with its comments, which are the reasons of the settings."""
    parts = []
    for title, pattern in (("Commands", "*.yaml"), ("Groups", "*/*.yaml"), ("Ablation", "experiment/*/*.yaml")):
        parts.append(f"## {title}\n")
        for path in sorted(CONF.glob(pattern)):
            parts.append(f"### {path.relative_to(ROOT)}\n\n{fenced(path.read_text().rstrip(), 'yaml')}\n")
    return "\n".join(parts)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside of docs/ that pages link to, and those that these link to."""
    waiting = {ROOT / name for name in ALWAYS}
    for page in files.documentation_pages():
        if page.abs_src_path:
            path = Path(page.abs_src_path)
            waiting |= linked_files(path.read_text(), path.parent)
    done: set[Path] = set()
    while waiting:
        path = waiting.pop()
        done.add(path)
        place = place_of(path)
        text = source_of(path)
        if path.suffix in (".md", ".ipynb"):
            waiting |= linked_files(text, path.parent) - done
            text = rewritten(text, path.parent, place)
        files.append(File.generated(config, place, content=text, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Let links that leave docs/ lead to the pages of the site; show the files of conf/ on the page of settings."""
    if page.file.generated_by:
        return markdown
    markdown = rewritten(markdown, (ROOT / "docs" / page.file.src_uri).parent, page.file.src_uri)
    return markdown + "\n" + settings_files() if page.file.src_uri == SETTINGS else markdown


def on_page_content(html: str, **_: Any) -> str:
    """Give each formula on a line of its own a box that scrolls: a wide one would widen the page on a phone."""
    return re.sub(r'<math display="block".*?</math>', r'<div class="formula">\g<0></div>', html, flags=re.DOTALL)
