"""W1 to W9, and what came after them: is the package here, whole and inert? Reads only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import asyncpg

from iu_listen.model.errors import Refused
from iu_listen.postgres.migrate import package_state, substrate_missing
from iu_listen.postgres.session import Connection, errors_become_ours
from iu_listen.postgres.sqlfiles import all_files, query

#: What W4, W5, W8, W9 and W28 expect of a worker that has been switched on: that they answer at all.
LIVE: Final = {
    "W4": ("true", "false"),
    "W5": ("fresh", "has run"),
    "W8": tuple(f"healthy={h}, worker_gate_open={g}" for h in ("true", "false") for g in ("true", "false")),
}


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what should be, what is."""

    id: str
    label: str
    expected: str
    observed: str
    passed: bool


async def verify(connection: Connection, *, live: bool = False) -> list[Check]:
    """Run every verification of the package in a transaction that is rolled back.

    Args:
        connection: A session, inside a transaction or not.
        live: Accept what a worker that was switched on looks like; without it, W4, W5, W8, W9 and W28 expect the inert
            state right after the apply, as the seed does.

    Raises:
        Refused: the package is not here.
    """
    if missing := await substrate_missing(connection):
        raise Refused(f"the substrate is not here: {missing[0]} is missing", "Is this the right database?")
    package = await package_state(connection)
    if not package.complete:
        what = "; ".join(package.drift()) or (
            "half applied: " + package.pending[0].name + " is pending"
            if package.present
            else "the package is not applied"
        )
        raise Refused(what, "iu-listen apply --plan shows what is missing.")
    checks: list[Check] = []
    with errors_become_ours():
        transaction = connection.transaction()
        await transaction.start()
        try:
            for migration in sorted(all_files(), key=lambda m: m.number != "070"):
                kind = "up" if migration.number == "070" else "verify"
                if migration.path(kind).exists():
                    rows = await connection.fetch(migration.text(kind))
                    checks += [Check(r["id"], r["label"], r["expected"], r["observed"], r["pass"]) for r in rows]
            seam_raises = await _seam_raises(connection)
        finally:
            await transaction.rollback()
    # 007 came after the files that follow it.
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
    """W6 by doing it: 070 can only read the seam's text, because a query cannot go on after it raised.

    For a role that may not even call it, the seam is closed too.
    """
    try:
        async with connection.transaction():
            await connection.fetchval(query("probe/deliver"))
    except (asyncpg.FeatureNotSupportedError, asyncpg.InsufficientPrivilegeError):
        return True
    return False
