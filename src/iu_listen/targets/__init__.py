"""Where deliveries go.

A target is found by the kind and the reference of its route:

    workflow             the coroutine of that name, given with --app or to the library   python.py
    external_endpoint    by the scheme of the address: an entry point of the group ``iu_listen.targets``

An entry point is a function ``open(address, options, secrets) -> Target`` that connects to nothing yet; it raises
ConfigurationError for an address or an option that cannot work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final
from urllib.parse import urlsplit

from iu_listen.flow.ports import Target
from iu_listen.model.errors import ConfigurationError, words
from iu_listen.model.secrets import Secrets, entries
from iu_listen.targets.guard import Guard
from iu_listen.targets.python import PythonTarget

GROUP: Final = "iu_listen.targets"


class NotInstalled(ConfigurationError):
    """A package is missing that targets of a scheme need."""


#: What an entry point of the group is.
Opener = Callable[[str, Mapping[str, Any], Secrets], Target]


class Targets:
    """The targets of one consumer. Each is opened when it is first asked for, and kept.

    Args:
        functions: The coroutines that routes of the kind ``workflow`` name.
        environ: Where secrets are looked up.
        secrets: Which of them a route may name, and which directories (Settings.secrets).
        allow_private: Which hosts a route may reach although they are not public (Settings.allow_private).

    Raises:
        ConfigurationError: two coroutines have the same name, or allow_private holds what is neither.
    """

    def __init__(
        self,
        functions: Iterable[PythonTarget] = (),
        environ: Mapping[str, str] | None = None,
        *,
        secrets: str = "",
        allow_private: str = "",
    ) -> None:
        self._functions: dict[str, PythonTarget] = {}
        for function in functions:
            if self._functions.setdefault(function.name, function) is not function:
                raise ConfigurationError(f"two targets are called {function.name}", "Rename one of them.")
        self._secrets = Secrets(environ or {}, entries(secrets), entries(allow_private))
        # What is wrong with it is wrong for every route: say so at the start.
        Guard.allowing(self._secrets.allow_private)
        self._open: dict[tuple[str, str], Target] = {}

    def find(self, kind: str, reference: str, options: Mapping[str, Any]) -> Target:
        """The target of a route.

        Args:
            kind: ``target_kind`` of the route.
            reference: ``target_ref`` of the route.
            options: ``target`` of its delivery policy.

        Raises:
            ConfigurationError: there is none, or its address or options cannot work.
        """
        if kind == "workflow":
            return self._function(reference)
        if kind != "external_endpoint":
            raise ConfigurationError(f"nothing delivers to a {kind}", "Kinds that deliver: docs/how-to/delivery.md")
        key = (reference, repr(sorted(options.items())))
        if key not in self._open:
            self._open[key] = opened(reference, options, self._secrets)
        return self._open[key]

    def _function(self, name: str) -> Target:
        try:
            return self._functions[name]
        except KeyError:
            known = ", ".join(sorted(self._functions)) or "none"
            raise ConfigurationError(
                f"there is no target called {name} (known: {known})", "Give its module: iu-listen run --app MODULE"
            ) from None

    async def aclose(self) -> None:
        """Close all that was opened."""
        while self._open:
            _, target = self._open.popitem()
            await target.aclose()


def opened(address: str, options: Mapping[str, Any], secrets: Secrets) -> Target:
    """The target of an address, which connects to nothing yet.

    Raises:
        ConfigurationError: there is none, or its address or options cannot work.
    """
    try:
        return _opener(address)(address, options, secrets)
    except ConfigurationError:
        raise
    except Exception as error:
        # An opener may be somebody else's. What it does not expect concerns this route, and no other.
        raise ConfigurationError(f"the target cannot be opened: {words(error)}") from error


def scheme_of(address: str) -> str:
    """The scheme of an address, in lower case.

    Raises:
        ConfigurationError: the address is none.
    """
    try:
        return urlsplit(address).scheme
    except ValueError:
        raise ConfigurationError(
            "the address cannot be parsed: a bracket is not closed, or what is in brackets is no IPv6 address", _ADDRESS
        ) from None


_ADDRESS: Final = "target_ref of an external_endpoint is an address, as in https://example.com/hook"


def _opener(address: str) -> Opener:
    scheme = scheme_of(address)
    found = list(entry_points(group=GROUP, name=scheme)) if scheme else []
    if not found:
        known = ", ".join(sorted({e.name for e in entry_points(group=GROUP)}))
        raise ConfigurationError(
            f"nothing delivers to {scheme or 'an address without a scheme'} (known: {known})",
            _ADDRESS,
        )
    try:
        opener: Opener = found[0].load()
    except ImportError as error:
        raise NotInstalled(
            f"targets of the scheme {scheme} need a package that is not installed: {error.name}",
            installs(found[0], scheme),
        ) from error
    return opener


def installs(entry: EntryPoint, scheme: str) -> str:
    """The command that installs what an entry point needs."""
    package = entry.dist.name if entry.dist else "iu-listen"
    return f"pip install '{package}[{(entry.extras or [scheme])[0]}]'"
