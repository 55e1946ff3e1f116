"""All settings in one table, each with its name, default, range and meaning.

The value of a setting comes from the command line, else from the environment variable ``IU_LISTEN_<NAME>``, else from
its default. A test compares docs/reference/settings.md with this table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.routing import DEFAULT_WORKER

PREFIX: Final = "IU_LISTEN_"

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
    """The settings of one process. Frozen; its ``repr`` shows no secret. Durations are in seconds."""

    dsn: str | None = _setting(None, "Connection string. Without it the PG* variables count, else the embedded server.")
    site: str | None = _setting(
        None, "Name of the place where the database is. Default: host and port of the connection string."
    )
    listen_dsn: str | None = _setting(None, "Connection string of the bell session, where `dsn` goes through a pooler.")
    worker: str = _setting(DEFAULT_WORKER, "Name of the worker to run or to look at.")
    batch_limit: int = _setting(
        5000, "Most events that one batch (one transaction) takes, and a tenth of its most attempts.", 1, 100_000
    )
    catch_up: float = _setting(
        5.0, "Longest sleep before a look without any bell; also the cadence of the heartbeat.", 0.1, 300
    )
    linger: float = _setting(0.05, "Silence after a busy spell before the consumer sleeps again.", 0.001, 10)
    busy_interval: float = _setting(0.002, "Pause between looks while events keep coming.", 0.0001, 1)
    poll_interval: float = _setting(0.05, "Pause between looks where there is no bell.", 0.001, 60)
    listen: bool = _setting(True, "False: never LISTEN, always poll.")
    session_timeout: float = _setting(
        15.0, "A session that says nothing for so long is ended by the server; a standby takes over.", 1, 3600
    )
    deadline: float = _setting(8.0, "Longest wait for an answer of the database to anything but a batch.", 0.5, 300)
    batch_deadline: float = _setting(60.0, "Longest wait for a batch, or for the first take of a session.", 1, 3600)
    completeness_interval: float = _setting(
        3600.0, "Pause between two audits of completeness by the running consumer; 0: none.", 0, 2_592_000
    )
    grace_period: float = _setting(10.0, "Longest wait for the running batch when asked to stop.", 0.1, 300)
    reconnect_max: float = _setting(1.0, "Longest pause between two tries to connect.", 0.1, 300)
    payload_max: int = _setting(
        16_777_216,
        "Largest payload that is delivered, in bytes of its text; a larger one becomes a dead letter.",
        1024,
        268_435_456,
    )
    prefetch_bytes: int = _setting(
        33_554_432,
        "How many bytes of payloads are held for deliveries in flight and prefetched ones, of all routes together.",
        1024,
        1_073_741_824,
    )
    app: str | None = _setting(
        None, "Where the coroutines are that live routes deliver to: `module`, or `module:attribute`."
    )
    secrets: str = _setting(
        "IU_SECRET_*",
        "Secrets that a route may name, with commas between: names of variables, prefixes (`CRM_*`), directories.",
    )
    allow_private: str = _setting(
        "", "Hosts that a route may reach although they are not public, with commas between: CIDRs and names."
    )
    log_format: str = _setting(
        "auto", "console, json, or auto: console on a terminal.", choices=("auto", "console", "json")
    )
    data_dir: str = _setting(".iu-listen", "Where the embedded server keeps its data.")
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

        Raises:
            ConfigurationError: a value is not valid. The message names all mistakes, not only the first one.
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
