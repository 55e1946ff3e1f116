"""Builds the documentation site: collects its pages in build/docs/, and runs zensical there with warnings as errors.

The pages of docs/ link to files outside of it, as a code-hosting site shows them. In the site, each linked file or
folder has a page of its own below repository/, and every relative link is changed accordingly.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

LOG = logging.getLogger("site")
ROOT = Path(__file__).parents[2]
#: Folder of the collected pages, from which zensical.toml makes the site in the folder SITE.
PAGES = ROOT / "build" / "docs"
SITE = ROOT / "site"
#: The page with which the site begins.
FIRST_PAGE = Path("docs/tutorial/first-event.md")
#: The page whose tables name the public Python names, and the place of the generated page with their docstrings.
PUBLIC_NAMES = Path("docs/reference/public-api.md")
API_PAGE = Path("reference/python.md")
#: Pages outside of docs/ that are in the navigation.
PROJECT_PAGES = tuple(map(Path, ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")))
#: Languages of code blocks, by the ending of a file.
LANGUAGES = {".json": "json", ".py": "python", ".sql": "sql", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml"}
#: Head of a page with code: the search leaves it out, and it is as wide as the window.
CODE_HEAD = "---\nsearch:\n  exclude: true\nhide: [navigation, toc]\n---\n\n"

_CODE_BLOCK = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:)[^)\s#]+")
_FROM_NETWORK = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")


def place(source: Path) -> Path:
    """The place of a file or folder in the site.

    Args:
        source: Its path, relative to the repository.

    Returns:
        The path of its page, or of the image, relative to the folder of the collected pages.
    """
    if source == FIRST_PAGE:
        return Path("index.md")
    if source.is_relative_to("docs"):
        return source.relative_to("docs")
    if (ROOT / source).is_dir():
        return Path("repository", source, "files.md")
    return Path("repository", source if source.suffix in {".md", ".png"} else f"{source}.md")


def collect(folder: Path) -> None:
    """Write all pages of the site, and the files that they need.

    Args:
        folder: Goal; it is created.
    """
    shutil.copytree(ROOT / "docs/site/assets", folder)
    waiting = [page.relative_to(ROOT) for page in (ROOT / "docs").rglob("*.md")]
    waiting += PROJECT_PAGES
    done = set()
    while waiting:
        source = waiting.pop()
        if source not in done:
            done.add(source)
            goal = folder / place(source)
            goal.parent.mkdir(parents=True, exist_ok=True)
            if source.suffix == ".png":
                shutil.copyfile(ROOT / source, goal)
            else:
                text, linked = _page(source)
                goal.write_text(text)
                waiting += linked
    (folder / API_PAGE).write_text(_api_page())


def _page(source: Path) -> tuple[str, list[Path]]:
    """The Markdown text of a page, and the files and folders to which it links."""
    if source.suffix == ".md":
        return _with_new_links((ROOT / source).read_text(), source)
    if (ROOT / source).is_dir():
        names = sorted(file.name for file in (ROOT / source).iterdir() if file.is_file() and file.name[0] != ".")
        lines = "".join(f"* [{name}]({source.name}/{name})\n" for name in names)
        return _with_new_links(f"{CODE_HEAD}# {source}/\n\n{lines}", source)
    code = (ROOT / source).read_text(errors="replace")
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
    return f"{CODE_HEAD}# {source}\n\n{fence}{LANGUAGES.get(source.suffix, 'text')}\n{code}\n{fence}\n", []


def _with_new_links(text: str, source: Path) -> tuple[str, list[Path]]:
    """The text of a page with the links of the site, and the files and folders to which it links."""
    linked = []

    def changed(link: re.Match[str]) -> str:
        target = Path(os.path.normpath(source.parent / link[0]))
        if not (ROOT / target).exists():
            LOG.warning("%s: the link %s leads nowhere", source, link[0])
            return link[0]
        linked.append(target)
        return os.path.relpath(place(target), place(source).parent)

    parts = _CODE_BLOCK.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(changed, part) for part in parts), linked


def _api_page() -> str:
    """A page with the docstrings of the public Python names, under the headings of PUBLIC_NAMES and in its order."""
    python = (ROOT / PUBLIC_NAMES).read_text().split("\n## Python\n")[1].split("\n## ")[0]
    lines = ["# Python API", "The docstrings of the [public names](public-api.md#python)."]
    for part in python.split("\n### ")[1:]:
        names = re.findall(r"^\| `([\w.]+)` \|", part, re.MULTILINE)
        lines += ["## " + part.partition("\n")[0]] if names else []
        for name in names:
            full = name if name.startswith("iu_listen.") else f"iu_listen.{name}"
            lines.append(f"::: {full}\n    options:\n      heading_level: 3")
    return "\n\n".join(lines) + "\n"


def report_network() -> None:
    """Warn about each script, style sheet or image that a page would load from a network: the site works without."""
    for page in SITE.rglob("*.html"):
        for element in _FROM_NETWORK.findall(page.read_text()):
            LOG.warning("%s loads from a network: %s", page.relative_to(SITE), element)


class Problems(logging.Handler):
    """Prints warnings, and counts them: zensical has no strict mode for those of docstrings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Print and count a warning."""
        self.count += 1
        sys.stderr.write(f"{self.format(record)}\n")


def main() -> str | None:
    """Build the site; return the reason of a failure."""
    import zensical  # noqa: PLC0415 only the environment of the site has it

    problems = Problems()
    logging.getLogger().addHandler(problems)
    shutil.rmtree(PAGES, ignore_errors=True)
    collect(PAGES)
    (mermaid,) = find_spec("mmdc").submodule_search_locations
    shutil.copyfile(Path(mermaid, "assets", "mermaid.js"), PAGES / "mermaid.min.js")
    try:
        zensical.build(str(ROOT / "zensical.toml"), {"clean": True, "strict": True})
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    report_network()
    return f"problems: {problems.count}" if problems.count else None


if __name__ == "__main__":
    sys.exit(main())
