"""Types of options and arguments that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from cyclopts import Parameter

from iu_listen.admin.ids import MIN_PREFIX_CHARS, is_id


def in_range(low: float, high: float) -> Callable[[Any, Any], None]:
    """A validator for a numeric option with this range."""

    def check(_: Any, value: float | None) -> None:
        # The comparison is written so that it also refuses nan.
        if value is not None and not low <= value <= high:
            raise ValueError(f"must be from {low} to {high}")

    return check


def _check_id(_: Any, value: str | list[str] | None) -> None:
    for text in value if isinstance(value, list) else [value]:
        if text is not None and not is_id(text):
            raise ValueError(f"must be a UUID, or its first characters, at least {MIN_PREFIX_CHARS}")


#: For Annotated[..., ID, Parameter(help=…)].
ID = Parameter(validator=_check_id)
Id = Annotated[str, ID]

Plan = Annotated[bool, Parameter(help="Show the changes without making them.", negative=())]
#: For commands that do not ask for a confirmation.
Yes = Annotated[
    bool, Parameter(help="Confirm the change; without --yes and --plan the command exits with 1.", negative=())
]
#: For commands that ask for a confirmation on a terminal.
NoQuestion = Annotated[bool, Parameter(help="Do not ask for confirmation.", negative=())]
WorkerName = Annotated[
    str | None, Parameter(help="Name of the worker. Default: IU_LISTEN_WORKER, else iu_outbound_default.")
]
Actor = Annotated[
    str | None,
    Parameter(help="Name of the person or program that makes the change; recorded. Default: the database user."),
]
Exact = Annotated[
    bool, Parameter(help="Count and search all rows, however many there are and however long it takes.", negative=())
]
Limit = Annotated[int, Parameter(help="Largest number of rows.", validator=in_range(1, 1_000_000))]
