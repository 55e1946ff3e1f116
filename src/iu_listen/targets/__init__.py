"""Where deliveries go.

A target is found by the kind and the reference of its route:

    workflow             the coroutine of that name, given with --app or to the library   python.py
    external_endpoint    by the scheme of the address: an entry point of the group ``iu_listen.targets``

An entry point is a function ``open(address, options, secrets) -> Target`` that connects to nothing yet; it raises
ConfigurationError for an address or an option that cannot work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any, Final
from urllib.parse import urlsplit

from iu_listen.flow.ports import Target
from iu_listen.model.delivery import Secrets
from iu_listen.model.errors import ConfigurationError
from iu_listen.targets.python import PythonTarget

GROUP: Final = "iu_listen.targets"

#: What an entry point of the group is.
Opener = Callable[[str, Mapping[str, Any], Secrets], Target]


class Targets:
    """The targets of one consumer. Each is opened when it is first asked for, and kept.

    Args:
        functions: The coroutines that routes of the kind ``workflow`` name.
        environ: Where secrets are looked up.

    Raises:
        ConfigurationError: two coroutines have the same name.
    """

    def __init__(self, functions: Iterable[PythonTarget] = (), environ: Mapping[str, str] | None = None) -> None:
        self._functions: dict[str, PythonTarget] = {}
        for function in functions:
            if self._functions.setdefault(function.name, function) is not function:
                raise ConfigurationError(f"two targets are called {function.name}", "Rename one of them.")
        self._secrets = Secrets(environ or {})
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
            self._open[key] = _opener(reference)(reference, options, self._secrets)
        return self._open[key]

    def _function(self, name: str) -> Target:
        try:
            return self._functions[name]
        except KeyError:
            known = ", ".join(sorted(self._functions)) or "none"
            raise ConfigurationError(
                f"there is no target called {name} (known: {known})", "Give its module: iu-listen run --app module"
            ) from None

    async def aclose(self) -> None:
        """Close all that was opened."""
        while self._open:
            _, target = self._open.popitem()
            await target.aclose()


def _opener(address: str) -> Opener:
    scheme = urlsplit(address).scheme
    found = list(entry_points(group=GROUP, name=scheme)) if scheme else []
    if not found:
        known = ", ".join(sorted({e.name for e in entry_points(group=GROUP)}))
        raise ConfigurationError(
            f"nothing delivers to {scheme or 'an address without a scheme'} (known: {known})",
            "target_ref of an external_endpoint is an address, as in https://example.com/hook",
        )
    try:
        opener: Opener = found[0].load()
    except ImportError as error:
        raise ConfigurationError(
            f"targets of the scheme {scheme} need a package that is not installed: {error.name}",
            f"pip install 'iu-listen[{(found[0].extras or [scheme])[0]}]'",
        ) from error
    return opener
