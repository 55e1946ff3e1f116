"""The targets of deliveries.

The kind and the reference of a route select its target:

    workflow             the coroutine with this name, given with --app or to the library (python.py)
    external_endpoint    the entry point of the group ``iu_listen.targets`` with the scheme of the address

An entry point is a function ``open(address, options, secrets) -> Target``. It opens no connection, and raises
ConfigurationError for an invalid address or option.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from iu_listen.flow.ports import Target
from iu_listen.model.called import split_address
from iu_listen.model.errors import ConfigurationError, safe_message
from iu_listen.model.secrets import Secrets, entries
from iu_listen.targets.guard import Guard
from iu_listen.targets.python import PythonTarget

ENTRY_POINT_GROUP: Final = "iu_listen.targets"


class NotInstalled(ConfigurationError):
    """A package that the targets of a scheme need is not installed."""


#: The type of an entry point of the group: address, options and secrets to a target.
Opener = Callable[[str, Mapping[str, Any], Secrets], Target]


class Targets:
    """The targets of one consumer. Each target is opened at its first use, and kept.

    Args:
        functions: The coroutines for routes of the kind ``workflow``.
        environ: The environment in which secrets are looked up.
        secrets: The variables and directories of secrets that a route may name (Settings.secrets).
        allow_private: The hosts and networks that a route may reach although they are not public
            (Settings.allow_private).

    Raises:
        ConfigurationError: Two coroutines have the same name, or an entry of ``allow_private`` is neither a host name
            nor a network.
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
                raise ConfigurationError(f"two targets have the name {function.name}", "Rename one of them.")
        self._secrets = Secrets(environ or {}, entries(secrets), entries(allow_private))
        # An error in allow_private concerns all routes, so it is raised at the start.
        Guard.allowing(self._secrets.allow_private)
        self._open: dict[tuple[str, str], Target] = {}

    def find(self, kind: str, reference: str, options: Mapping[str, Any]) -> Target:
        """The target of a route.

        Args:
            kind: ``target_kind`` of the route.
            reference: ``target_ref`` of the route.
            options: ``target`` of its delivery policy.

        Raises:
            ConfigurationError: There is no such target, or its address or options are invalid.
        """
        if kind == "workflow":
            return self._function(reference)
        if kind != "external_endpoint":
            raise ConfigurationError(
                f"there is no target for routes of the kind {kind}", "Supported kinds: docs/how-to/delivery.md"
            )
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
                f"there is no target with the name {name} (known: {known})",
                "Give the module of the target: iu-listen run --app MODULE. A renamed function keeps its route by "
                f"@on(..., name='{name}').",
            ) from None

    async def aclose(self) -> None:
        """Close all open targets."""
        while self._open:
            _, target = self._open.popitem()
            await target.aclose()


def opened(address: str, options: Mapping[str, Any], secrets: Secrets) -> Target:
    """Create the target of an address, without a connection.

    Raises:
        ConfigurationError: No target supports the scheme, or the address or an option is invalid.
        NotInstalled: A package that the scheme needs is missing.
    """
    try:
        return _opener(address)(address, options, secrets)
    except ConfigurationError:
        raise
    except Exception as error:
        # An entry point may belong to another package. Its unexpected error must concern only this route.
        raise ConfigurationError(f"the target cannot be opened: {safe_message(error)}") from error


def scheme_of(address: str) -> str:
    """The scheme of an address, in lower case.

    Raises:
        ConfigurationError: The address cannot be parsed.
    """
    try:
        return split_address(address).scheme
    except ValueError:
        raise ConfigurationError(
            "the address cannot be parsed: a bracket is not closed, or does not contain an IPv6 address", _ADDRESS
        ) from None


_ADDRESS: Final = "target_ref of an external_endpoint must be an address, for example https://example.com/hook"


def _opener(address: str) -> Opener:
    scheme = scheme_of(address)
    found = list(entry_points(group=ENTRY_POINT_GROUP, name=scheme)) if scheme else []
    if not found:
        known = ", ".join(sorted({e.name for e in entry_points(group=ENTRY_POINT_GROUP)}))
        what = f"the scheme {scheme}" if scheme else "an address without a scheme"
        raise ConfigurationError(
            f"there is no target for {what} (known: {known})",
            _ADDRESS,
        )
    try:
        opener: Opener = found[0].load()
    except ImportError as error:
        raise NotInstalled(
            f"targets of the scheme {scheme} require the package {error.name}, which is not installed",
            installs(found[0], scheme),
        ) from error
    return opener


def installs(entry: EntryPoint, scheme: str) -> str:
    """The command that installs the packages that an entry point needs."""
    package = entry.dist.name if entry.dist else "iu-listen"
    return f"pip install '{package}[{(entry.extras or [scheme])[0]}]'"
