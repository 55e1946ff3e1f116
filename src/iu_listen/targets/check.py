"""Whether the target of a route could work, asked without the consumer: no secret is read, nothing is connected to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from iu_listen.model.errors import ConfigurationError
from iu_listen.model.secrets import Secret, Secrets
from iu_listen.targets import NotInstalled, opened
from iu_listen.targets.guard import NotAllowed


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is wrong with a target.

    Attributes:
        problem: What is wrong; empty: nothing that can be seen here.
        hint: What to do about it.
        certain: Whether it is so wherever a consumer runs; False: a package is missing here, or the consumer may be
            allowed to reach what is not public.
    """

    problem: str = ""
    hint: str = ""
    certain: bool = True


class _AnySecret(Secrets):
    """Secrets of somewhere else: their places are looked at, and each is taken for one that would do."""

    def get(self, name: str) -> Secret:
        """A secret of the form that signatures need.

        Raises:
            ConfigurationError: the name is no place of a secret.
        """
        scheme, _, rest = name.partition(":")
        if scheme in {"env", "file"} and rest:
            return Secret(name, "whsec_" + "A" * 32)
        return super().get(name)


def check(kind: str, reference: str, options: Mapping[str, Any]) -> Verdict:
    """What is wrong with the target of a route, as far as that can be seen without the consumer that delivers.

    Args:
        kind: ``target_kind`` of the route.
        reference: ``target_ref`` of the route.
        options: ``target`` of its delivery policy.
    """
    if kind != "external_endpoint":
        return Verdict()
    # The file is where the consumer runs.
    there = {name: value for name, value in options.items() if not (name == "ca" and isinstance(value, str) and value)}
    try:
        opened(reference, there, _AnySecret({}))
    except (NotInstalled, NotAllowed) as error:
        return Verdict(error.message, error.hint, certain=False)
    except ConfigurationError as error:
        return Verdict(error.message, error.hint)
    return Verdict()
