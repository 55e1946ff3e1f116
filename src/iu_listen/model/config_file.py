"""The configuration file iu-listen.toml: event types, routes, workers and retention, for review in git.

It names what a database should contain. It has no secrets: addresses refer to them, as routes do.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.routing import DEFAULT_DOMAIN

#: The keys of each kind of table, and the type of their values.
KEYS: Final[Mapping[str, Mapping[str, type]]] = {
    "types": {"domain": str, "stream": str, "lane": str, "severity": str},
    "routes": {"type": str, "to": str, "domain": str, "policy": dict},
    "workers": {"domain": str},
    "retention": {"events": str, "attempts": str, "dead_letters": str},
    "payload": {"forbidden_keys": list},
}
#: The types of values, in words.
_TYPE_WORDS: Final[Mapping[type, str]] = {str: "a text", dict: "a table", list: "a list of texts"}
#: The keys that each kind of table must have.
REQUIRED: Final[Mapping[str, tuple[str, ...]]] = {"routes": ("type", "to"), "workers": ("domain",)}


@dataclass(frozen=True)
class TypeEntry:
    """An event type of the file."""

    name: str
    domain: str = DEFAULT_DOMAIN
    stream: str = "event"
    lane: str = "immediate"
    severity: str = "info"


@dataclass(frozen=True)
class RouteEntry:
    """A route of the file. Whether it is live is a decision of an operator, and not of the file."""

    code: str
    type: str
    to: str
    domain: str = DEFAULT_DOMAIN
    policy: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ConfigFile:
    """The contents of a configuration file.

    Attributes:
        types: The event types.
        routes: The routes.
        workers: Domain by name of a worker.
        retention: Interval by name of a retention policy; ``off`` switches it off.
        forbidden_keys: The keys that no payload may have; empty: any keys are possible. None: the file does not say.
    """

    types: tuple[TypeEntry, ...] = ()
    routes: tuple[RouteEntry, ...] = ()
    workers: Mapping[str, str] = field(default_factory=dict)
    retention: Mapping[str, str] = field(default_factory=dict)
    forbidden_keys: tuple[str, ...] | None = None


def parse(text: str) -> ConfigFile:
    """Read the text of a configuration file.

    Raises:
        ConfigurationError: It is not TOML, or it has an unknown or missing key, or a value of a wrong type. The message
            names the line, and for an unknown key the nearest valid one.
    """
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"the file is not TOML: {error}", "https://toml.io describes the format.") from error
    _require_known(text, data, KEYS, "")
    retention = _table(text, data.get("retention", {}), "retention", "[retention]")
    entries = {
        kind: {name: _table(text, entry, kind, f"[{kind}.{name}]") for name, entry in _entries(text, data, kind)}
        for kind in ("types", "routes", "workers")
    }
    return ConfigFile(
        tuple(TypeEntry(name, **entry) for name, entry in entries["types"].items()),
        tuple(RouteEntry(code, **entry) for code, entry in entries["routes"].items()),
        {name: entry["domain"] for name, entry in entries["workers"].items()},
        retention,
        _forbidden_keys(text, _table(text, data.get("payload", {}), "payload", "[payload]")),
    )


def _forbidden_keys(text: str, payload: Mapping[str, Any]) -> tuple[str, ...] | None:
    if "forbidden_keys" not in payload:
        return None
    for key in payload["forbidden_keys"]:
        if not isinstance(key, str) or not key.strip() or "," in key or key != key.strip():
            problem = f"forbidden_keys has {key!r}, which is not the name of a key"
            raise _wrong(text, "forbidden_keys", problem, "A key is a text without commas and without outer spaces.")
    return tuple(payload["forbidden_keys"])


def _entries(text: str, data: Mapping[str, Any], kind: str) -> list[tuple[str, Any]]:
    table = data.get(kind, {})
    if not isinstance(table, dict):
        raise _wrong(text, kind, f"{kind} must be a table, as [{kind}.NAME]")
    return list(table.items())


def _table(text: str, entry: Any, kind: str, place: str) -> dict[str, Any]:
    """The keys of one table, checked."""
    if not isinstance(entry, dict):
        raise _wrong(text, place.strip("[]").rpartition(".")[2], f"{place} must be a table")
    keys = KEYS[kind]
    _require_known(text, entry, keys, place)
    for key, value in entry.items():
        if not isinstance(value, keys[key]):
            raise _wrong(text, key, f"{key} of {place} must be {_TYPE_WORDS[keys[key]]}, not {value!r}")
    if missing := [key for key in REQUIRED.get(kind, ()) if key not in entry]:
        raise _wrong(text, place.strip("[]").rpartition(".")[2], f"{place} lacks {', '.join(missing)}")
    return entry


def _require_known(text: str, table: Mapping[str, Any], keys: Mapping[str, Any], place: str) -> None:
    for key in table:
        if key not in keys:
            near = difflib.get_close_matches(key, keys, 1)
            of = f" of {place}" if place else ""
            meant = f"Did you mean {near[0]}? " if near else ""
            if place and isinstance(table[key], dict):
                kind, _, name = place.strip("[]").partition(".")
                meant += f'Quote a name with dots: [{kind}."{name}.{key}"]. '
            raise _wrong(text, key, f"unknown key {key}{of}", f"{meant}Possible keys: {', '.join(keys)}.")


def _wrong(text: str, key: str, problem: str, hint: str = "Nothing was changed.") -> ConfigurationError:
    """An error with the line in which a key stands first."""
    name = re.escape(key)
    pattern = re.compile(rf"""^\s*(\[.*["'.\[]?{name}["'\].]|["']?{name}["']?\s*[=.])""")
    lines = (number for number, line in enumerate(text.splitlines(), start=1) if pattern.search(line))
    line = next(lines, None)
    return ConfigurationError(f"line {line}: {problem}" if line else problem, hint)
