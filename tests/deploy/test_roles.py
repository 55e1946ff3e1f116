"""deploy/postgres/roles.sql on real servers: the file as a whole, and roles that have no group.

Roles belong to the cluster: login roles have random names and are dropped; group roles are dropped if they did not
exist before.
"""

from __future__ import annotations

import asyncio

from conftest import Database
from deploy.role_helpers import CONSUMER, GRANTED_PRIVILEGES, GROUPS, OPERATOR, ROLES, Logins, allowed, execute
from iu_listen.install.package import package_state
from support import connected

#: Statements that a role without EXECUTE may not execute.
FORBIDDEN = (
    "select fn_iu_route_worker_run('iu_outbound_default', 1)",
    "select fn_iu_route_dead_letter_replay(gen_random_uuid())",
    "select fn_iu_route_deliver('x', gen_random_uuid(), '{}')",
    "select fn_iu_route_worker_health('iu_outbound_default')",
    "select fn_iu_outbox_tick()",
    "select fn_iu_completeness_page('iu_outbound_default')",
    "select fn_iu_completeness_confirm('iu_outbound_default')",
    "select fn_iu_completeness_repair('iu_outbound_default')",
)


def test_public_cannot_call_the_worker(applied: Database, roles: Logins) -> None:
    """A role without EXECUTE cannot run, replay or deliver, even with all privileges on the tables."""
    dsn = roles.add()
    execute(
        applied.dsn,
        f"grant usage on schema public to {roles.names[0]}",
        f"grant all on all tables in schema public to {roles.names[0]}",
        # The default of PostgreSQL, which roles.sql revokes.
        "grant execute on all functions in schema public to public",
        ROLES,
    )

    assert allowed(dsn, FORBIDDEN) == []


def test_roles_sql_can_be_repeated_and_revokes_other_grants(applied: Database, roles: Logins) -> None:
    """A second run changes nothing, except that it revokes a privilege that was granted by hand."""

    async def run() -> None:
        async with connected(applied.dsn) as owner:

            async def grants() -> list[str]:
                return [
                    f"{role}: {row['what']}" for role in GROUPS for row in await owner.fetch(GRANTED_PRIVILEGES, role)
                ]

            before = await grants()
            await owner.execute(
                f"grant delete on iu_route_attempt to {CONSUMER}; grant update (lineage) on iu_route_worker_cursor to {OPERATOR}"
            )
            assert await grants() != before
            await owner.execute(ROLES)
            assert await grants() == before

    asyncio.run(run())


def test_group_roles_own_nothing_and_cannot_log_in(applied: Database, roles: Logins) -> None:
    """The group roles have no login, no attribute and no object, and roles.sql covers every object of the package."""

    async def run() -> None:
        async with connected(applied.dsn) as owner:
            for role in GROUPS:
                attributes = await owner.fetchrow(
                    "select rolcanlogin, rolsuper, rolcreaterole, rolcreatedb, rolbypassrls, rolreplication "
                    "from pg_roles where rolname = $1", role,
                )  # fmt: skip
                assert not any(attributes.values()), role
                assert not await owner.fetchval(
                    "select count(*) from pg_shdepend where refobjid = $1::regrole and deptype = 'o'", role
                )
            package = await package_state(owner)
            # A new table, view or function of the package must be considered in roles.sql.
            unknown = [
                o.name for o in package.objects
                if o.kind in ("table", "view", "sequence", "function") and o.name.partition("(")[0] not in ROLES
                and o.name not in ("fn_iu_outbox_stamp()", "fn_iu_ring_bell()", "fn_iu_outbox_retired()",
                                   "fn_iu_outbound_route_guard()", "fn_iu_delivery_list_guard()",
                                   "fn_iu_set_bell_domains()", "fn_iu_ring_after_change()")
            ]  # fmt: skip
            assert unknown == []

    asyncio.run(run())
