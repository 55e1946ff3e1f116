"""The docstrings of the public Python names: the documentation site shows them."""

from __future__ import annotations

import dataclasses
import enum
import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from pkgutil import resolve_name
from typing import Any

from conventions.files import ROOT
from iu_listen.model.observation import Observation

PAGE = ROOT / "docs/reference/public-api.md"


def public_objects() -> Iterator[Any]:
    """The public functions and classes of Python, those of a public module included."""
    python = PAGE.read_text().split("\n## Python\n")[1].split("\n## ")[0]
    for name in re.findall(r"^\| `([\w.]+)` \|", python, re.MULTILINE):
        found = resolve_name(name if name.startswith("iu_listen.") else f"iu_listen.{name}")
        if inspect.ismodule(found):
            yield from Observation.__args__
        elif not isinstance(found, str):
            yield found


def described(documented: object, heading: str) -> set[str]:
    """The names in a section of a docstring."""
    text = inspect.getdoc(documented) or ""
    section = re.search(rf"^{heading}:\n((?:    .*\n?|\n)+)", text, re.MULTILINE)
    return set(re.findall(r"^    (\w+): ", section[1], re.MULTILINE)) if section else set()


def without_meaning(function: Any, documented: object) -> Iterator[str]:
    """The parameters of a function that a docstring does not describe."""
    parameters = set(inspect.signature(function).parameters) - {"self", "cls"}
    yield from (f"({name})" for name in parameters - described(documented, "Args"))


def undescribed(found: Any) -> Iterator[str]:
    """The parts of a public object without a description: parameters, attributes, members, methods and properties."""
    if not inspect.getdoc(found):
        yield ""
    if not inspect.isclass(found):
        yield from without_meaning(found, found)
        return
    if issubclass(found, enum.Enum):
        yield from (f".{name}" for name in set(found.__members__) - described(found, "Attributes"))
        return
    if dataclasses.is_dataclass(found):
        # The fields of Settings have their meaning in their metadata.
        fields = {f.name for f in dataclasses.fields(found) if not f.metadata.get("doc")}
        yield from (f".{name}" for name in fields - described(found, "Attributes"))
    else:
        owner = next(cls for cls in found.__mro__ if "__init__" in vars(cls))
        if owner.__module__.startswith("iu_listen.") and not getattr(found, "_is_protocol", False):
            yield from without_meaning(owner.__init__, owner)
    for name, part in vars(found).items():
        method = getattr(found, name)
        if not name.startswith("_") and (inspect.isfunction(method) or inspect.ismethod(method)):
            yield from (f".{name}{parameter}" for parameter in without_meaning(method, method))
        if isinstance(part, property | cached_property) and not inspect.getdoc(part):
            yield f".{name}"


def test_public_docstrings_are_complete():
    """The docstring of each public name describes its parameters, attributes and members; so do those of its methods.

    Fails when: a parameter or an attribute is added to a public function or class without its meaning.
    """
    objects = list(public_objects())

    assert len(objects) >= 50
    assert sorted(f"{found.__name__}{part}" for found in objects for part in undescribed(found)) == []
