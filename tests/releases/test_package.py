"""The metadata and the types of the wheel, as far as they can be checked without a build; `make package` checks the rest."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib.resources import files

import yaml

import iu_listen
from releases.archive import FOLDER, REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def test_the_package_is_marked_as_typed():
    """The package has the marker of PEP 561, without which type checkers ignore its types, and the classifier for it.

    Fails when: py.typed is removed.
    """
    assert (files("iu_listen") / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]


def test_the_metadata_is_complete():
    """Name, summary, page, licence and keywords are there, the summary is one line, and the named files exist."""
    assert PROJECT["name"] == "iu-listen"
    assert re.fullmatch(r"[^\n]{20,200}", PROJECT["description"])
    assert (REPOSITORY / PROJECT["readme"]).read_text().startswith("# iu-listen\n")
    assert PROJECT["license"] == "Apache-2.0"
    assert all((REPOSITORY / name).is_file() for name in PROJECT["license-files"])
    assert PROJECT["keywords"]


def test_the_versions_of_python_are_those_of_ci():
    """The classifiers name the versions of Python on which CI runs, and the oldest one is required.

    Fails when: a version is added to CI and not to the classifiers, or the other way round.
    """
    ci = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text())
    tested = ci["jobs"]["python"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: 3."
    assert [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if c.startswith(prefix)] == tested
    assert PROJECT["requires-python"] == f">={tested[0]}"


def test_the_typed_program_uses_every_public_name():
    """The program that `make package` type-checks uses each name of iu_listen.__all__.

    Fails when: a public name is added and its types are not checked as a user sees them.
    """
    tree = ast.parse((FOLDER / "typed_program.py").read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert set(iu_listen.__all__) - used == set()
