"""Access of routes to resources of the consumer: to its secrets, its files, and hosts that are not public.

A route is a database row, and many roles may be able to write it. So the settings of the consumer define the allowed
resources (``IU_LISTEN_SECRETS``, ``IU_LISTEN_ALLOW_PRIVATE``), and a route only names them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from iu_listen.model.errors import ConfigurationError

#: Largest file with a secret, and largest file with certificates, in bytes.
MAX_SECRET_BYTES: Final = 65_536
MAX_CA_BYTES: Final = 1 << 20


class Secret:
    """A secret whose value is available only by reveal(). Text forms show its name, and it cannot be pickled."""

    __slots__ = ("_value", "name")

    def __init__(self, name: str, value: str) -> None:
        self.name: str = name
        self._value = value

    def reveal(self) -> str:
        """The value of the secret."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self.name})"

    __str__ = __repr__

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a secret cannot be pickled")


@dataclass(frozen=True, slots=True)
class Secrets:
    """Reads secrets from the environment or from files. A route contains the name of a secret, never its value.

    Args:
        environ: The environment.
        allowed: Names that a route may use: variables, prefixes of variables (``CRM_*``), and directories
            (``/run/secrets``). None: everything, for a program that writes its routes itself.
        allow_private: Networks (CIDR, or one address) and names of hosts that a route may reach although they are not
            public.
    """

    environ: Mapping[str, str] = field(repr=False)
    allowed: tuple[str, ...] | None = None
    allow_private: tuple[str, ...] = ()

    def get(self, name: str) -> Secret:
        """Read a secret.

        Args:
            name: ``env:NAME`` or ``file:/path``. White space at both ends of a file is removed.

        Raises:
            ConfigurationError: the secret does not exist or is empty, the settings do not allow it, or ``name`` has
                another form. The message contains the name, never the value.
        """
        scheme, _, rest = name.partition(":")
        if scheme == "env" and rest:
            self._check_variable(rest)
            if value := self.environ.get(rest):
                return Secret(name, value)
            raise ConfigurationError(
                f"the variable {rest} is not set; the route uses it as a secret",
                f"Set the variable {rest} in the environment of the consumer, and restart the consumer.",
            )
        if scheme == "file" and rest:
            try:
                value = read_file(self._checked_path(rest), MAX_SECRET_BYTES).decode().strip()
            except (OSError, ValueError) as error:
                raise ConfigurationError(f"the secret file {rest} cannot be read: {_why(error)}") from None
            if value:
                return Secret(name, value)
            raise ConfigurationError(f"the secret file {rest} is empty")
        # The text may be the secret itself, so the message does not contain it.
        raise ConfigurationError(
            "invalid reference to a secret; expected env:NAME or file:/path",
            "Do not write the secret itself: many roles can read routes.",
        )

    def _check_variable(self, name: str) -> None:
        if self.allowed is None or name in self.allowed:
            return
        if any(entry.endswith("*") and name.startswith(entry[:-1]) for entry in self.allowed):
            return
        raise ConfigurationError(
            f"a route is not allowed to read the variable {name}",
            f"To allow it, start the consumer with IU_LISTEN_SECRETS={','.join((*self.allowed, name))}",
        )

    def _checked_path(self, path: str) -> Path:
        """The path with all links resolved, because a link in an allowed directory must not lead out of it."""
        real = Path(os.path.realpath(path))
        directories = [entry for entry in self.allowed or () if entry.startswith("/")]
        if self.allowed is None or any(real.is_relative_to(os.path.realpath(one)) for one in directories):
            return real
        raise ConfigurationError(
            f"a route is not allowed to read the file {path}",
            f"To allow it, start the consumer with IU_LISTEN_SECRETS={','.join((*self.allowed, str(real.parent)))}",
        )


def entries(text: str | None) -> tuple[str, ...]:
    """The entries of a setting that is a comma-separated list."""
    return tuple(entry.strip() for entry in (text or "").split(",") if entry.strip())


def read_file(path: Path, most: int) -> bytes:
    """Read a small regular file. The call never waits for a device or a pipe, and follows no link.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not a regular file, or it is larger than ``most`` bytes.
    """
    # Without O_NONBLOCK, open() of a pipe waits until the pipe has a writer.
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(opened, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise ValueError("it is not a regular file")
        content = b""
        while len(content) <= most and (part := file.read(most + 1 - len(content))):
            content += part
    if len(content) > most:
        raise ValueError(f"it is larger than {most} bytes")
    return content


def read_ca(path: str | None) -> str | None:
    """The certificates (PEM) in a file; None: use those of the system. It raises as read_file() does."""
    return read_file(Path(path).resolve(), MAX_CA_BYTES).decode("ascii") if path else None


def _why(error: Exception) -> str:
    """Description of an error: the message of a plain ValueError, else the class name.

    UnicodeDecodeError is a subclass of ValueError, and its message contains the bytes of the secret.
    """
    return str(error) if type(error) is ValueError else type(error).__name__
