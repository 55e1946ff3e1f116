"""The checks W1 and following: whether the package is present, complete and inert. They change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import asyncpg

from iu_listen.install.package import missing_base_objects, package_state
from iu_listen.model.errors import Refused
from iu_listen.postgres.session import Connection, translate_driver_errors
from iu_listen.postgres.sqlfiles import all_files, query

#: The results of W4, W5 and W8 that are accepted for a worker that has been switched on. W9 and W28 then accept any
#: number.
LIVE: Final[Mapping[str, tuple[str, ...]]] = {
    "W4": ("true", "false"),
    "W5": ("fresh", "has run"),
    "W8": tuple(f"healthy={h}, worker_gate_open={g}" for h in ("true", "false") for g in ("true", "false")),
}


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check, with the expected and the observed value."""

    id: str
    label: str
    expected: str
    observed: str
    passed: bool


async def verify(connection: Connection, *, live: bool = False) -> list[Check]:
    """Run all checks of the package in a transaction that is rolled back.

    Args:
        connection: A session, inside a transaction or not.
        live: Whether W4, W5, W8, W9 and W28 accept the state of a worker that has been switched on. If not, they expect
            the inert state after the install, as the seed does.

    Raises:
        Refused: The package is absent or incomplete, or the base is missing.
    """
    if missing := await missing_base_objects(connection):
        raise Refused(
            f"the base is missing: {missing[0]} does not exist", "Check that this is the database of IU Core."
        )
    package = await package_state(connection)
    if not package.complete:
        what = "; ".join(package.drift()) or (
            "half applied: " + package.pending[0].name + " is pending"
            if package.present
            else "the package is not applied"
        )
        raise Refused(what, "iu-listen apply --plan shows the missing files.")
    checks: list[Check] = []
    with translate_driver_errors():
        transaction = connection.transaction()
        await transaction.start()
        try:
            for migration in sorted(all_files(), key=lambda m: m.number != "070"):
                kind = "up" if migration.number == "070" else "verify"
                if migration.path(kind).exists():
                    in_use = live and kind == "up"
                    rows = await connection.fetch(query("verify_live") if in_use else migration.text(kind))
                    checks += [Check(r["id"], r["label"], r["expected"], r["observed"], r["pass"]) for r in rows]
            seam_raises = await _seam_raises(connection)
        finally:
            await transaction.rollback()
    # The numbers of the checks do not follow the order of the files.
    checks.sort(key=lambda check: int(check.id[1:]))
    return [_judge(check, seam_raises, live) for check in checks]


def _judge(check: Check, seam_raises: bool, live: bool) -> Check:
    if check.id == "W6" and not seam_raises:
        return replace(check, observed="false", passed=False)
    if live and check.id in LIVE:
        return replace(check, expected=" or ".join(LIVE[check.id]), passed=check.observed in LIVE[check.id])
    if live and check.id in ("W9", "W28"):
        return replace(check, expected="a number", passed=check.observed.isdigit())
    return check


async def _seam_raises(connection: Connection) -> bool:
    """Test W6 with a call of the delivery seam, and return whether the call is refused.

    File 070 can only read the text of the function, because a query cannot continue after an error. The seam also
    counts as closed for a role that may not call the function.
    """
    try:
        async with connection.transaction():
            await connection.fetchval(query("probe/deliver"))
    except (asyncpg.FeatureNotSupportedError, asyncpg.InsufficientPrivilegeError):
        return True
    return False
