"""The type of an option or argument that is an id."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from iu_listen.admin.ids import SHORTEST, is_id


def _check(_: Any, value: str | list[str] | None) -> None:
    for text in value if isinstance(value, list) else [value]:
        if text is not None and not is_id(text):
            raise ValueError(f"must be a UUID, or the beginning of one, {SHORTEST} characters at least")


#: For Annotated[..., ID, Parameter(help=…)].
ID = Parameter(validator=_check)
Id = Annotated[str, ID]
