"""The plan of a retention run, and the checks and the rollback of its migration."""

from __future__ import annotations

import random

import pytest

from iu_listen.install import migrate
from iu_listen.install.package import package_state
from iu_listen.install.verify import verify
from iu_listen.postgres.session import session
from postgres.retention_helpers import add_worker, old_event, planned_counts, remove
from support import WORKER, connected, drain, run_batch

pytestmark = pytest.mark.asyncio


@pytest.mark.parametrize("seed", range(8))
async def test_a_run_removes_exactly_the_planned_rows(live, seed):
    """For any outbox, a run removes exactly the rows of the plan, and the plan is empty afterwards."""
    dice = random.Random(seed)
    created = [
        "now()",
        "now() - interval '100 days'",
        "'epoch'",
        "'infinity'",
        "now() + interval '1 day'",
        "now() - interval '89 days'",
    ]
    async with connected(live.dsn) as c, connected(live.dsn) as writer:
        await add_worker(c)
        await add_worker(c, "third", "system")
        late = writer.transaction()
        await late.start()
        for n in range(60):
            session_ = writer if dice.random() < 0.1 else c
            # Mostly old events in the first half, any kind in the second.
            when = created[1] if n < 30 and dice.random() < 0.8 else dice.choice(created)
            await old_event(session_, when, dice.choice(["iu", "iu", "system"]))
            if dice.random() < 0.2:
                await run_batch(c, limit=dice.randint(1, 20), worker=dice.choice([WORKER, "second", "third"]))
        if dice.random() < 0.5:
            await drain(c)
            await drain(c, worker="second")
        await late.commit()
        await c.execute("update iu_route_attempt set created_at = now() - random() * interval '200 days'")
        for what in ("events", "attempts"):
            planned = sum(
                n for (w, verdict, _), n in (await planned_counts(c)).items() if (w, verdict) == (what, "goes")
            )
            assert await remove(c, what, limit=dice.randint(1, 30)) == planned
            assert not [key for key in await planned_counts(c) if key[:2] == (what, "goes")]


async def test_the_retention_migration_is_verified_and_rolled_back(applied):
    """The checks W22 and W23 pass; the rollback refuses while a policy is enabled, and
    removes all its objects otherwise."""
    async with session(applied.dsn, name="test") as c:
        await c.execute("set search_path = public")
        checks = {check.id: check.passed for check in await verify(c)}
        assert checks["W22"] is checks["W23"] is True
        await c.execute("update iu_retention_policy set enabled = true where what = 'attempts'")
        names = ("worker/016_retention_policy", "functions/retention")
        files = [m for m in (await package_state(c)).to_roll_back if m.name in names]
        assert len(files) == len(names)
        with pytest.raises(Exception, match="a retention policy is enabled"):
            await migrate.roll_back_files(c, files, lambda _: None)
        await c.execute("update iu_retention_policy set enabled = false")
        await migrate.roll_back_files(c, files, lambda _: None)
        assert not [o.name for o in (await package_state(c)).present if o.file in names]
