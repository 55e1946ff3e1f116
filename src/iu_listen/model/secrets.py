"""What a route may reach of the process that delivers: its secrets, its files, and hosts that are not public.

A route is a row that many may write. So the process says what may be reached (``IU_LISTEN_SECRETS``,
``IU_LISTEN_ALLOW_PRIVATE``), and the route only names it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from iu_listen.model.errors import ConfigurationError

#: Largest file of a secret, and of certificates, in bytes.
MAX_SECRET: Final = 65_536
MAX_CA: Final = 1 << 20


class Secret:
    """A secret that shows itself to nobody who does not ask for it by name."""

    __slots__ = ("_value", "name")

    def __init__(self, name: str, value: str) -> None:
        self.name = name
        self._value = value

    def reveal(self) -> str:
        """The secret itself."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self.name})"

    __str__ = __repr__

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a secret is not to be pickled")


@dataclass(frozen=True, slots=True)
class Secrets:
    """Where secrets come from: the environment, or files. Routes name them, and never hold them.

    Args:
        environ: The environment.
        allowed: What a route may name: names of variables, prefixes of names (``CRM_*``), and directories
            (``/run/secrets``); None: everything, for a program that writes its routes itself.
        allow_private: Networks (CIDR, or one address) and names of hosts that a route may reach although they are not
            public.
    """

    environ: Mapping[str, str] = field(repr=False)
    allowed: tuple[str, ...] | None = None
    allow_private: tuple[str, ...] = ()

    def get(self, name: str) -> Secret:
        """The secret that ``env:NAME`` or ``file:/path`` names; of a file, without white space at its ends.

        Raises:
            ConfigurationError: there is none, the process does not allow it, or it is no such name. The text says the
                name, never the value.
        """
        scheme, _, rest = name.partition(":")
        if scheme == "env" and rest:
            self._check_variable(rest)
            if value := self.environ.get(rest):
                return Secret(name, value)
            raise ConfigurationError(
                f"{rest} is not set, which the route names as the place of a secret",
                f"Set the variable {rest} where the consumer runs, and start it again.",
            )
        if scheme == "file" and rest:
            try:
                value = read_file(self._checked_path(rest), MAX_SECRET).decode().strip()
            except (OSError, ValueError) as error:
                raise ConfigurationError(f"the secret in {rest} cannot be read: {_why(error)}") from None
            if value:
                return Secret(name, value)
            raise ConfigurationError(f"the secret in {rest} is empty")
        # Whoever wrote the secret itself into the route must not read it in the log, too.
        raise ConfigurationError(
            "a secret must be given by its place, env:NAME or file:/path", "Never by itself: routes are read by many."
        )

    def _check_variable(self, name: str) -> None:
        if self.allowed is None or name in self.allowed:
            return
        if any(entry.endswith("*") and name.startswith(entry[:-1]) for entry in self.allowed):
            return
        raise ConfigurationError(
            f"a route may not read the variable {name}",
            f"If it is meant, start the consumer with IU_LISTEN_SECRETS={','.join((*self.allowed, name))}",
        )

    def _checked_path(self, path: str) -> Path:
        """The file, with all links followed: a link inside of a directory must not lead out of it."""
        real = Path(os.path.realpath(path))
        directories = [entry for entry in self.allowed or () if entry.startswith("/")]
        if self.allowed is None or any(real.is_relative_to(os.path.realpath(one)) for one in directories):
            return real
        raise ConfigurationError(
            f"a route may not read the file {path}",
            f"If it is meant, start the consumer with IU_LISTEN_SECRETS={','.join((*self.allowed, str(real.parent)))}",
        )


def entries(text: str | None) -> tuple[str, ...]:
    """The entries of a setting that is a list with commas."""
    return tuple(entry.strip() for entry in (text or "").split(",") if entry.strip())


def read_file(path: Path, most: int) -> bytes:
    """A small regular file. Neither a device nor a pipe is waited for, and no link is followed.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger than ``most`` bytes.
    """
    # Without O_NONBLOCK a pipe would be waited for until it has a writer.
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(opened, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise ValueError("it is no regular file")
        content = b""
        while len(content) <= most and (part := file.read(most + 1 - len(content))):
            content += part
    if len(content) > most:
        raise ValueError(f"it is larger than {most} bytes")
    return content


def read_ca(path: str | None) -> str | None:
    """The certificates (PEM) of a file; None: those of the system are meant. Raises as read_file() does."""
    return read_file(Path(path).resolve(), MAX_CA).decode("ascii") if path else None


def _why(error: Exception) -> str:
    """The kind of an error, or our own words. UnicodeDecodeError is a ValueError, and its text holds the bytes."""
    return str(error) if type(error) is ValueError else type(error).__name__
