"""The repository: sizes, docstrings, the places of SQL, and a working wheel."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from conventions.files import ROOT, tracked

MODULES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))


def test_no_module_has_more_than_400_lines():
    """No module has more than 400 lines; a longer one is to be divided."""
    assert {f.name: n for f in MODULES if (n := len(f.read_text().splitlines())) > 400} == {}


def test_every_test_states_a_fact():
    """Every test has a docstring whose first line is a sentence."""
    wordless = []
    for file in TESTS:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                doc = ast.get_docstring(node) or ""
                if not re.match(r"\S.*[.!?)]$", doc.split("\n\n")[0].replace("\n", " ").strip()):
                    wordless.append(f"{file.name}::{node.name}")

    assert wordless == []


def test_no_sql_in_python_strings():
    """Statements are in sql/; Python has only calls of a single function, on locks and sessions."""
    # The embedded server is set up before a file of the package could be read.
    found = [
        f"{file.name}: {node.value[:60]}"
        for file in MODULES
        if file.parent.name != "embedded"
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        and re.match(r"(?i)\s*(select\s.*\sfrom\s|insert\s+into|update\s+\S+\s+set|delete\s+from|create\s+(table|function|trigger|index|view)\s)", node.value)
    ]  # fmt: skip

    assert found == []


def test_every_query_file_is_used():
    """Every file in sql/queries is used by a module."""
    text = "".join(f.read_text() for f in MODULES)
    folder = ROOT / "sql" / "queries"
    names = [str(f.relative_to(folder)).removesuffix(".sql") for f in folder.rglob("*.sql")]

    assert [n for n in names if f'"{n}"' not in text.replace("'", '"')] == []


def test_no_paths_and_no_package_hosts():
    """No tracked file names a path of one machine or the host of a package index."""
    places = [re.escape(f"{place}/") for place in (ROOT, Path.home()) if len(place.parts) > 1 and place != Path("/tmp")]
    telling = re.compile("|".join([*places, r"https?://\S*/(simple|packages)/"]))
    here = Path(__file__).resolve()
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in tracked()
        if file.resolve() != here and file.suffix not in {".png", ".gz"}
        for number, line in enumerate(file.read_text(errors="replace").splitlines(), start=1)
        if telling.search(line)
    ]

    assert found == []


@pytest.mark.slow
def test_the_wheel_carries_sql_and_migrates(tmp_path, empty):
    """A wheel, installed into a separate environment, creates the base and applies the package."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("iu_listen-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "iu_listen/sql/worker/009_route_worker_functions.up.sql" in names
    assert "iu_listen/sql/functions/wake.up.sql" in names
    assert "iu_listen/sql/queries/run_batch.sql" in names
    assert "iu_listen/py.typed" in names

    home = tmp_path / "environment"
    venv.create(home, system_site_packages=False, with_pip=False)
    # The dependencies of the running environment, but not its editable iu-listen, which a .pth file would bring.
    (site,) = home.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    libraries = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    done = subprocess.run(
        [home / "bin" / "python", "-m", "iu_listen", "apply", "--base", "--no-backup", "a test", "--dsn", empty.dsn],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{site}:{libraries}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stdout + done.stderr
