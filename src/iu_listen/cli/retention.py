"""The command group retention: show and set policies, show the plan, and run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from typing import Annotated, Any, Literal

import anyio
from cyclopts import App, Parameter
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from iu_listen.admin import retention as admin_retention
from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions, connected, open_context
from iu_listen.cli.parameters import Exact, in_range
from iu_listen.cli.retention_plan import RetentionPlan
from iu_listen.install import requirements
from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.postgres import queries
from iu_listen.postgres.queries import Row
from iu_listen.postgres.session import Connection, session

PolicyName = Literal["events", "attempts", "dead_letters"]
PolicyNames = Annotated[
    list[PolicyName] | None,
    Parameter(name="--what", help="Only this policy; may be repeated.", negative=()),
]
KeepInterval = Annotated[
    str | None, Parameter(help="Use this interval (90d, 12h, '3 months') instead of those of the policies.")
]
MonthsAhead = Annotated[
    int,
    Parameter(
        help="If event_outbox is partitioned: number of future months that have a partition.",
        validator=in_range(0, 120),
    ),
]

retention: App = App(name="retention", help="Show and set retention policies, and remove old rows.")


def register(app: App) -> None:
    """Add this group."""
    app.command(retention)


# -- policies ----------------------------------------------------------------------------------------------------


@retention.command(name="show")
def retention_show(*, options: ConnectionOptions | None = None) -> int:
    """Show the policies and the result of the last run."""

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            _print_policies(await queries.rows(connection, "retention/policies"), options)
        return 0

    return anyio.run(run)


@retention.command(name="set")
def retention_set(
    what: PolicyName,
    /,
    *,
    keep: Annotated[
        str | None, Parameter(help="Keep rows that are younger than this interval: 90d, 12h, '3 months'.")
    ] = None,
    off: Annotated[bool, Parameter(help="Switch the policy off: all rows are kept.", negative=())] = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Set a policy and switch it on, or switch it off. The command removes nothing; use `retention run`."""
    if (keep is None) != off:
        raise ConfigurationError("either --keep or --off is required", "For example: --keep 90d")

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            await admin_retention.set_policy(
                connection, what, keep and await admin_retention.interval(connection, keep)
            )
            _print_policies(await queries.rows(connection, "retention/policies"), options)
        return 0

    return anyio.run(run)


def _print_policies(found: list[Row], options: ConnectionOptions | None) -> None:
    if options and options.json:
        output.as_json(found)
    else:
        output.table(
            ("policy", "kept for", "state", "last run", "removed", "removed in total"),
            (
                (p["what"], p["keep"], output.mark(p["enabled"], "on", "off"), output.ago(p["last_run_at"]),
                 p["last_gone"], p["total_gone"])
                for p in found
            ),
        )  # fmt: skip


# -- plan --------------------------------------------------------------------------------------------------------


@retention.command(name="plan")
def retention_plan(
    *,
    what: PolicyNames = None,
    keep: KeepInterval = None,
    ahead: MonthsAhead = 3,
    exact: Exact = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Show the rows that a run would remove now, and the reasons that keep other old rows.

    The command changes nothing. Without --what it also shows policies that are off. The oldest 10 000 rows of each
    policy are judged.
    """

    async def run() -> int:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            plan = await RetentionPlan.make(connection, what, keep, ahead, exact=exact)
            # The plan also shows policies that are off, so that a user sees their effect before setting them.
            plan.print(options)
        return 0

    return anyio.run(run)


# -- run ---------------------------------------------------------------------------------------------------------


@retention.command(name="run")
def retention_run(
    *,
    what: PolicyNames = None,
    keep: KeepInterval = None,
    batch: Annotated[
        int, Parameter(help="Number of rows that one transaction reads.", validator=in_range(1, 100_000))
    ] = 5000,
    pause: Annotated[
        float, Parameter(help="Pause after a batch that removed rows, in seconds.", validator=in_range(0, 3600))
    ] = 0.1,
    ahead: MonthsAhead = 3,
    drop: Annotated[
        bool, Parameter(help="Drop detached months, instead of keeping them as tables.", negative=())
    ] = False,
    yes: Annotated[bool, Parameter(help="Confirm the change.", negative=())] = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Remove rows that are old enough and that every reader has read, in small transactions.

    Without --what the command applies every enabled policy; with --keep it applies all. Without --yes it shows the plan
    and exits with 1. Without an enabled policy, or while another run is in progress, it does nothing and exits with 0.
    After Ctrl-C the next run removes the remaining rows.
    """
    machine = bool(options and options.json)

    async def run() -> int:
        with open_context(options) as context:
            # A frozen run must not hold its lock without end, so the server ends a session that is idle for this time.
            idle = max(60.0, 2 * pause)
            name = "iu-listen retention"
            async with session(
                context.settings.dsn, name=name, deadline=context.settings.deadline, idle_timeout=idle
            ) as connection:
                await requirements.require_package(connection)
                await requirements.require_primary(connection)
                chosen = await _chosen(connection, what, keep)
                plan = await RetentionPlan.make(connection, chosen, keep, ahead) if chosen else None
                if not yes:
                    if plan:
                        plan.print(options)
                    raise Refused("nothing was removed", "Add --yes to remove the rows.")
                if plan is None:
                    words = "no policy is enabled: nothing was removed"
                    return _print_end({"status": "nothing_enabled"}, words, machine=machine)
                async with admin_retention.only_run(connection) as other:
                    if other:
                        words = f"another run is in progress ({other}); nothing was removed"
                        return _print_end({"status": "busy", "holder": other}, words, machine=machine)
                    return await _remove(connection, plan, batch, pause, context.settings.batch_deadline, drop, machine)

    return anyio.run(run)


async def _chosen(connection: Connection, what: list[PolicyName] | None, keep: str | None) -> list[PolicyName]:
    """The policies that a run applies."""
    on: list[PolicyName] = [
        p["what"] for p in await queries.rows(connection, "retention/policies") if p["enabled"] or keep
    ]
    if what and (off := [w for w in what if w not in on]):
        raise Refused(
            f"the policy for {off[0]} is off",
            f"Switch it on (iu-listen retention set {off[0]} --keep 90d), or use --keep.",
        )
    return [w for w in on if not what or w in what]


async def _remove(
    connection: Connection, plan: RetentionPlan, batch: int, pause: float, deadline: float, drop: bool, machine: bool
) -> int:
    began = time.monotonic()
    removed = dict.fromkeys(plan.chosen, 0)
    maintainer = None
    ended = False
    try:
        if plan.partitions:
            maintainer = admin_retention.PartitionMaintainer(connection, plan.kept("events"), drop=drop)
            await maintainer.apply(plan.partitions)
            await plan.look(connection)
        for what in plan.chosen:
            with _progress(what, None if what in plan.capped else plan.going[what]) as advance:
                async with aclosing(
                    admin_retention.batches(connection, what, plan.keep, batch, pause, deadline)
                ) as answers:
                    async for answer in answers:
                        removed[what] += answer["gone"]
                        advance(answer["gone"])
        await plan.look(connection)
        ended = True
    finally:
        if not ended:
            gone = ", ".join(f"{output.text(n)} {what}" for what, n in removed.items())
            output.note(f"Interrupted. Removed: {gone}. The next run removes the remaining rows.")
    seconds = time.monotonic() - began
    if machine:
        output.as_json({
            "status": "ran", "removed": removed, "seconds": round(seconds, 3),
            "held": plan.held, "capped": plan.capped, "readers": plan.blockers,
            "partitions": {"done": maintainer.done, "held": maintainer.held} if maintainer else None,
        })  # fmt: skip
        return 0
    for row in maintainer.done if maintainer else []:
        output.line(f"{row['did']} {row['partition']}" + (f", {output.text(row['rows'])} rows" if row["rows"] else ""))
    for row in maintainer.held if maintainer else []:
        output.line(f"not changed: {row['partition']}{': ' * bool(row['partition'])}{row['why']}")
    total = sum(removed.values())
    rate = f", {output.text(round(total / seconds))} rows/s" if total else ""
    output.line(
        f"Removed {', '.join(f'{output.text(n)} {w}' for w, n in removed.items())} in {output.duration(seconds)}{rate}."
    )
    plan.print_held()
    return 0


def _print_end(answer: dict[str, Any], words: str, *, machine: bool) -> int:
    if machine:
        output.as_json(answer)
    else:
        output.line(words[0].upper() + words[1:] + ".")
    return 0


class _RateColumn(ProgressColumn):
    """A column with the number of rows in a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{output.text(round(task.speed or 0))} rows/s")


@contextmanager
def _progress(what: str, total: int | None) -> Iterator[Any]:
    """A progress bar on a terminal; yields a function that is called with the number of removed rows.

    ``total`` None: the number of rows is unknown.
    """
    console = output.err()
    figures = "{task.completed}" if total is None else "{task.completed}/{task.total}"
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn(figures), _RateColumn(),
        TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(what, total=total)
        yield lambda gone: bar.update(task, advance=gone)
