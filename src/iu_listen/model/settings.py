"""All settings in one table, each with its name, default, range and meaning.

The value of a setting comes from the command line, else from the environment variable ``IU_LISTEN_<NAME>``, else from
its default. A test compares docs/reference/settings.md with this table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Final

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.routing import DEFAULT_WORKER

PREFIX: Final = "IU_LISTEN_"

#: Variables that are no settings, without their prefix: for the embedded server, and for the tests of iu-listen.
OTHER_VARIABLES: Final = ("OS_USER", "TEST_DSN", "TEST_WIDE")
#: Variables of libpq that name a database. If one of them is set, the database of libpq is used.
DATABASE_VARIABLES: Final = ("PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGSERVICE")


def mask(text: str) -> str:
    """Mask the password in each connection string inside ``text``. If in doubt, more text is masked.

    A password may contain an @ or a blank, so the text from the colon after the user to the last @ of the line is
    masked.
    """
    text = re.sub(r"(\w+://[^\s:/@]*:)[^\n]+(@)", r"\1***\2", text)
    # A password with an unescaped / or ? or # may have no @ after it in this line.
    text = re.sub(r"(\w+://[^\s:/@\[\]]*:)(?!\*\*\*@|\d{1,5}(?:[/,?\s'\"]|$))[^\s'\"]+", r"\1***", text)
    return re.sub(r"(?i)((?:password|passwd|secret)\s*=\s*)('(?:[^'\\]|\\.)*'|[^\s&']+)", r"\1***", text)


def _setting(
    default: Any, doc: str, low: float | None = None, high: float | None = None, choices: tuple[str | int, ...] = ()
) -> Any:
    return field(default=default, metadata={"doc": doc, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Settings:
    """The settings of one process. Frozen; its ``repr`` shows no secret. Durations are in seconds.

    The constructor takes settings by name and does not check them; load() does.
    """

    dsn: str | None = _setting(
        None, "Connection string of the database. Default: the PG* variables; without them the embedded server."
    )
    site: str | None = _setting(
        None, "Name of the site of the database. Default: host and port of the connection string."
    )
    listen_dsn: str | None = _setting(
        None, "Connection string of the listener session, if `dsn` goes through a connection pooler."
    )
    worker: str = _setting(DEFAULT_WORKER, "Name of the worker.")
    batch_limit: int = _setting(
        5000,
        "Largest number of events of a batch (one transaction). A batch has at most ten times as many attempts.",
        1,
        100_000,
    )
    catch_up: float = _setting(
        5.0, "Interval of the catch-up poll of an idle consumer, and of the heartbeat.", 0.1, 300
    )
    linger: float = _setting(0.05, "Time without events after which a busy consumer becomes idle.", 0.001, 10)
    busy_interval: float = _setting(0.002, "Pause between two batches of a busy consumer.", 0.0001, 1)
    poll_interval: float = _setting(0.05, "Pause between two batches where LISTEN is not available.", 0.001, 60)
    listen: bool = _setting(True, "False: do not use LISTEN/NOTIFY, always poll.")
    session_timeout: float = _setting(
        15.0, "Idle time after which the server ends a session of a consumer; then a standby takes over.", 1, 3600
    )
    deadline: float = _setting(8.0, "Longest duration of a statement that is not a batch.", 0.5, 300)
    batch_deadline: float = _setting(60.0, "Longest duration of a batch, and of the first take of a session.", 1, 3600)
    completeness_interval: float = _setting(
        3600.0, "Pause between two completeness checks of a running consumer; 0: no checks.", 0, 2_592_000
    )
    grace_period: float = _setting(10.0, "Longest time that a graceful shutdown waits.", 0.1, 300)
    reconnect_max: float = _setting(1.0, "Longest pause before the next attempt to connect.", 0.1, 300)
    payload_max: int = _setting(
        16_777_216,
        "Largest payload that is delivered, in bytes of its text. A larger one becomes a dead letter.",
        1024,
        268_435_456,
    )
    prefetch_bytes: int = _setting(
        33_554_432,
        "Largest total size of the payloads in memory (in-flight deliveries and prefetch of all routes), in bytes.",
        1024,
        1_073_741_824,
    )
    call_ahead: bool = _setting(
        True,
        "Call the target of a single new event before the batch that routes it has ended. False: call it afterwards.",
    )
    http: str = _setting(
        "",
        "Address of the HTTP endpoint for probes and scrapes: `PORT` (on 127.0.0.1) or `HOST:PORT`. Empty: none.",
    )
    app: str | None = _setting(
        None, "Module with the coroutines that are targets of live routes: `module`, or `module:attribute`."
    )
    secrets: str = _setting(
        "IU_SECRET_*",
        "Secrets that a route may use, separated by commas: names of variables, prefixes (`CRM_*`), directories.",
    )
    allow_private: str = _setting(
        "",
        "Receivers that a route may reach although they are not public, separated by commas: CIDRs, host names.",
    )
    log_format: str = _setting(
        "auto",
        "Format of the log: `console`, `json`, or `auto` (`console` on a terminal, else `json`).",
        choices=("auto", "console", "json"),
    )
    data_dir: str = _setting(".iu-listen", "Directory for the data of the embedded server.")
    embedded_major: int = _setting(18, "Major version of the embedded server.", choices=(16, 18))

    def __repr__(self) -> str:
        shown = (f"{f.name}={mask(repr(getattr(self, f.name)))}" for f in fields(self))
        return f"Settings({', '.join(shown)})"

    @classmethod
    def load(cls, environ: Mapping[str, str], overrides: Mapping[str, Any] | None = None) -> Settings:
        """Build settings from the environment and from overrides, which take precedence.

        Args:
            environ: Environment variables; those that do not begin with ``IU_LISTEN_`` are ignored.
            overrides: Values by field name; None counts as not given.

        Returns:
            The settings; those that are not given have their defaults.

        Raises:
            ConfigurationError: A value is not valid. The message names all mistakes, not only the first one.
        """
        typed = {name: value for name, value in (overrides or {}).items() if value is not None}
        mistakes: list[str] = []
        values: dict[str, Any] = {}
        for f in fields(cls):
            source, raw = f"--{f.name.replace('_', '-')}", typed.get(f.name)
            if raw is None:
                source = PREFIX + f.name.upper()
                raw = environ.get(source) or None
            if raw is None:
                continue
            try:
                value = _PARSERS[str(f.type).removesuffix(" | None")](raw)
            except ValueError:
                mistakes.append(
                    f"{source} must be {_KINDS[str(f.type).removesuffix(' | None')]}, not {mask(str(raw))!r}"
                )
                continue
            if mistake := _out_of_range(value, f.metadata):
                mistakes.append(f"{source} must be {mistake}, not {value!r}")
            values[f.name] = value
        settings = cls(**values)
        # An idle consumer uses its session once in catch_up seconds. A shorter session timeout would end it.
        if not settings.session_timeout > settings.catch_up:
            mistakes.append(
                f"session_timeout ({settings.session_timeout} s) must be longer than catch_up ({settings.catch_up} s)"
            )
        if mistakes:
            raise ConfigurationError("; ".join(mistakes), "docs/reference/settings.md lists every setting.")
        return settings


def unknown_variables(environ: Mapping[str, str], settings: Settings) -> dict[str, str]:
    """The environment variables that have the prefix of settings and no effect, each with a hint.

    Args:
        environ: Environment variables. Their values are not used.
        settings: The settings; the variables that ``secrets`` allows may have any names.
    """
    known = [*(f.name.upper() for f in fields(Settings)), *OTHER_VARIABLES]
    found = {}
    for name in sorted(environ):
        allowed = any(fnmatchcase(name, entry.strip()) for entry in settings.secrets.split(","))
        word = name.removeprefix(PREFIX)
        if name.startswith(PREFIX) and word not in known and not allowed:
            near = get_close_matches(word, known, 1)
            found[name] = (
                f"Did you mean {PREFIX}{near[0]}?" if near else "docs/reference/settings.md lists every setting."
            )
    return found


def _out_of_range(value: Any, metadata: Mapping[str, Any]) -> str:
    if metadata["choices"] and value not in metadata["choices"]:
        return "one of " + ", ".join(map(str, metadata["choices"]))
    low, high = metadata["low"], metadata["high"]
    # This form of the comparison also refuses nan.
    if low is not None and not low <= value <= high:
        return f"from {low:g} to {high:g}"
    return ""


def _boolean(raw: Any) -> bool:
    words = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
    try:
        return words[str(raw).lower()]
    except KeyError:
        raise ValueError(raw) from None


_PARSERS: Final[dict[str, Callable[[Any], Any]]] = {"str": str, "int": int, "float": float, "bool": _boolean}
_KINDS: Final = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}
