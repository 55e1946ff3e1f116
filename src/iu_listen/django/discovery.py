"""The handlers of a project: the functions with @on, and the targets, in the modules ``handlers`` of its apps."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

import django
from django.apps import apps
from django.db import close_old_connections
from django.utils.module_loading import module_has_submodule

from iu_listen.targets.handlers import Handler, in_thread
from iu_listen.targets.python import PythonTarget, load


def find_handlers() -> list[PythonTarget]:
    """The handlers in the modules ``handlers`` of all installed apps; the apps are loaded first, if necessary.

    Raises:
        ConfigurationError: A module cannot be imported.
    """
    if not apps.ready:
        django.setup()
    configs = [c for c in apps.get_app_configs() if c.module and module_has_submodule(c.module, "handlers")]
    found = dict.fromkeys(target for c in configs for target in load(f"{c.name}.handlers", required=False))
    for target in found:
        if isinstance(target, Handler) and not inspect.iscoroutinefunction(target.__wrapped__):
            target.function = in_thread(_with_connections(target.__wrapped__))
    return list(found)


def _with_connections(function: Callable[..., object]) -> Callable[..., object]:
    """The function between two checks of the connections of its thread, as Django makes them around a request.

    They close connections that are broken, or older than CONN_MAX_AGE.
    """

    @wraps(function)
    def run(*arguments: Any) -> object:
        close_old_connections()
        try:
            return function(*arguments)
        finally:
            close_old_connections()

    return run
