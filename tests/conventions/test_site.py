"""The documentation site: its navigation, and the links of its collected pages.

`make docs` builds the site with warnings as errors; it takes too long for these tests.
"""

from __future__ import annotations

import re
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conventions.files import ROOT

BUILD = runpy.run_path(str(ROOT / "docs/site/build.py"))
CODE_BLOCK = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
DOCS = [page.relative_to(ROOT) for page in (ROOT / "docs").rglob("*.md")]


def leaves(entry: Any) -> Iterator[str]:
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    else:
        for part in entry.values() if isinstance(entry, dict) else entry:
            yield from leaves(part)


def test_every_page_is_in_the_navigation():
    """The navigation begins with the first page, and has each page of docs/ once, and no other but generated ones.

    Fails when: a page is added to docs/ and not to zensical.toml, or the reverse.
    """
    pages = list(leaves(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))
    sources = [*DOCS, *BUILD["PROJECT_PAGES"]]

    assert sorted(pages) == sorted(str(place) for place in (*map(BUILD["place"], sources), BUILD["API_PAGE"]))
    assert pages[0] == str(BUILD["place"](Path("docs/tutorial/first-event.md"))) == "index.md"


def test_make_and_ci_build_the_site():
    """The Makefile has the target docs, CI calls it, and CONTRIBUTING.md describes it."""
    assert re.search(r"^docs: .*## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "run: make docs" in (ROOT / ".github/workflows/ci.yml").read_text()
    assert "| `make docs` |" in (ROOT / "CONTRIBUTING.md").read_text()


def test_every_link_of_the_site_leads_to_a_page(tmp_path):
    """Each relative link of a collected page leads to a collected page, also if its target is not in docs/.

    Fails when: a file outside of docs/ is not collected, or a link is not changed to its place.
    """
    folder = tmp_path / "pages"
    BUILD["collect"](folder)
    pages = {page: CODE_BLOCK.sub("", page.read_text()) for page in folder.rglob("*.md")}
    broken = [
        f"{page.relative_to(folder)}: {link}"
        for page, text in pages.items()
        for link in re.findall(r"\]\(([^)\s#]+)", text)
        if not re.match(r"[a-z]+:", link) and not (page.parent / link).is_file()
    ]

    assert broken == []
    assert (folder / "repository/sql/functions/wake.up.sql.md").read_text().count("```sql\n") == 1
    assert {str(BUILD["place"](page)) for page in DOCS} <= {str(page.relative_to(folder)) for page in pages}
