"""Checks the target of a route outside the consumer: no secret is read, and no connection is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.secrets import Secret, Secrets
from iu_listen.targets import NotInstalled, opened
from iu_listen.targets.guard import HostNotAllowed


@dataclass(frozen=True, slots=True)
class TargetVerdict:
    """The result of the check of a target.

    Attributes:
        problem: The problem; empty: the check found none.
        hint: The hint for the operator.
        certain: Whether each consumer has this problem. False: the consumer may have the package that is missing here,
            or may be allowed to reach a host that is not public.
    """

    problem: str = ""
    hint: str = ""
    certain: bool = True


class _AnySecret(Secrets):
    """Stands for secrets that only the consumer can read: it checks their places, and returns a valid value."""

    def get(self, name: str) -> Secret:
        """A value in the form of a key for signatures.

        Raises:
            ConfigurationError: The name is not the place of a secret.
        """
        scheme, _, rest = name.partition(":")
        if scheme in {"env", "file"} and rest:
            return Secret(name, "whsec_" + "A" * 32)
        return super().get(name)


def check(kind: str, reference: str, options: Mapping[str, Any]) -> TargetVerdict:
    """Check the target of a route, as far as that is possible outside the consumer.

    Args:
        kind: ``target_kind`` of the route.
        reference: ``target_ref`` of the route.
        options: ``target`` of its delivery policy.
    """
    if kind != "external_endpoint":
        return TargetVerdict()
    # The file of option ca exists only on the host of the consumer.
    there = {name: value for name, value in options.items() if not (name == "ca" and isinstance(value, str) and value)}
    try:
        opened(reference, there, _AnySecret({}))
    except (NotInstalled, HostNotAllowed) as error:
        return TargetVerdict(error.message, error.hint, certain=False)
    except ConfigurationError as error:
        return TargetVerdict(error.message, error.hint)
    return TargetVerdict()
