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

from iu_listen.admin import retention as keeping
from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions, between, looking, opened
from iu_listen.install import requirements
from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.postgres import queries
from iu_listen.postgres.queries import Row
from iu_listen.postgres.session import Connection, session

What = Literal["events", "attempts", "dead_letters"]
Whats = Annotated[
    list[What] | None,
    Parameter(
        name="--what", help="Only these. Default: every enabled policy; all with --keep, and in a plan.", negative=()
    ),
]
Keep = Annotated[
    str | None, Parameter(help="Keep what is younger, as in 90d, 12h, '3 months', instead of what the policy says.")
]
Ahead = Annotated[
    int,
    Parameter(help="Where event_outbox is partitioned: how many months ahead have one.", validator=between(0, 120)),
]

#: The description and the hint for each verdict of the plan.
VERDICTS = {
    "unread": ("not read yet by", "Is its consumer running? iu-listen status"),
    "refusing": ("its worker refuses:", "docs/how-to/repair.md"),
    "created_in_the_future": ("created_at lies in the future", "It goes when that time has come and gone."),
    "event_still_there": (
        "their event is still in the log",
        "They go after it: iu-listen retention set events --keep …",
    ),
    "open_dead_letter": ("of an open dead letter", "iu-listen dead-letter list"),
    "not_released": (
        "the audit misses attempts of it, or its traces are not exported yet",
        "iu-listen completeness; iu-listen status says how far the export is",
    ),
}

retention = App(name="retention", help="Show and set what is kept how long; remove what nobody needs any more.")


def register(app: App) -> None:
    """Add this group."""
    app.command(retention)


# -- policies ----------------------------------------------------------------------------------------------------


@retention.command(name="show")
def retention_show(*, where: ConnectionOptions | None = None) -> int:
    """Show the policies, and what the last run did."""

    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            _print_policies(await queries.rows(connection, "retention/policies"), where)
        return 0

    return anyio.run(run)


@retention.command(name="set")
def retention_set(
    what: What,
    /,
    *,
    keep: Annotated[str | None, Parameter(help="Keep what is younger, as in 90d, 12h, '3 months'.")] = None,
    off: Annotated[bool, Parameter(help="Switch the policy off: everything is kept.", negative=())] = False,
    where: ConnectionOptions | None = None,
) -> int:
    """Set a policy and switch it on, or switch it off. Removes nothing by itself; `retention run` does."""
    if (keep is None) != off:
        raise ConfigurationError("say --keep or --off", "As in --keep 90d.")

    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            await keeping.set_policy(connection, what, keep and await keeping.interval(connection, keep))
            _print_policies(await queries.rows(connection, "retention/policies"), where)
        return 0

    return anyio.run(run)


def _print_policies(found: list[Row], where: ConnectionOptions | None) -> None:
    if where and where.json:
        output.as_json(found)
    else:
        output.table(
            ("what", "kept for", "", "last run", "it removed", "in total"),
            (
                (p["what"], p["keep"], output.mark(p["enabled"], "on", "off"), output.ago(p["last_run_at"]),
                 p["last_gone"], p["total_gone"])
                for p in found
            ),
        )  # fmt: skip


# -- plan --------------------------------------------------------------------------------------------------------


@retention.command(name="plan")
def retention_plan(
    *, what: Whats = None, keep: Keep = None, ahead: Ahead = 3, where: ConnectionOptions | None = None
) -> int:
    """Show what a run would remove now, and what holds back the rest. Changes nothing."""

    async def run() -> int:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            plan = await _Plan.make(connection, what, keep, ahead)
            # The plan also shows policies that are off, so that a user sees their effect before setting them.
            plan.print(where)
        return 0

    return anyio.run(run)


class _Plan:
    """The rows that a run would remove, and the rows that are old enough but held back, with the reasons."""

    def __init__(self, policies: list[Row], keep: str | None, chosen: list[str]) -> None:
        self.policies = policies
        self.keep = keep
        self.chosen = chosen
        self.verdicts: list[Row] = []
        self.readers: list[Row] = []
        self.partitions: Row | None = None

    @classmethod
    async def make(cls, connection: Connection, what: list[What] | None, keep: str | None, ahead: int) -> _Plan:
        """Create a plan from the present state of the database."""
        keep = keep and await keeping.interval(connection, keep)
        policies = await queries.rows(connection, "retention/policies")
        plan = cls(policies, keep, [w for w in keeping.WHAT if not what or w in what])
        await plan.look(connection)
        if "events" in plan.chosen:
            plan.partitions = await keeping.partitions(connection, plan.kept("events"), ahead)
        return plan

    async def look(self, connection: Connection) -> None:
        """Read the verdicts of the plan and the positions of the readers (again)."""
        self.verdicts = await queries.rows(connection, "retention/plan", self.keep, self.chosen)
        self.readers = await queries.rows(connection, "retention/readers")

    def kept(self, what: str) -> str:
        """The interval for which the rows of a policy are kept."""
        return self.keep or str(next(p["keep"] for p in self.policies if p["what"] == what))

    @property
    def going(self) -> dict[str, int]:
        """The number of rows that would be removed, by policy."""
        return {
            w: sum(v["count"] for v in self.verdicts if v["what"] == w and v["verdict"] == "goes") for w in self.chosen
        }

    @property
    def held(self) -> list[Row]:
        """The verdicts about rows that are old enough, but held back."""
        return [v for v in self.verdicts if v["verdict"] != "goes"]

    def as_json(self) -> Row:
        """The machine-readable form of the plan."""
        return {
            "policies": self.policies, "keep": self.keep, "plan": self.verdicts, "readers": self.blockers,
            "partitions": self.partitions,
        }  # fmt: skip

    def print(self, where: ConnectionOptions | None) -> None:
        """Print the plan as tables, or as JSON."""
        if where and where.json:
            output.as_json(self.as_json())
            return
        on = {p["what"] for p in self.policies if p["enabled"] or self.keep}
        goes = {v["what"]: v for v in self.verdicts if v["verdict"] == "goes"}
        for what in self.chosen:
            since = (
                f" (from {output.text(goes[what]['oldest'])} to {output.text(goes[what]['youngest'])})"
                if what in goes
                else ""
            )
            off = "" if what in on else ", but the policy is off"
            output.line(f"{what}: {output.text(self.going[what])} older than {self.kept(what)} would go{since}{off}.")
        self.print_held()
        if self.partitions:
            _print_partitions(self.partitions)

    def print_held(self) -> None:
        """Print the rows that are old enough but held back, each with a hint."""
        held = self.held
        if held:
            output.table(
                ("what", "why", "rows", "oldest", "youngest"),
                (
                    (v["what"], " ".join(filter(None, (VERDICTS[v["verdict"]][0], v["who"]))), v["count"], v["oldest"],
                     v["youngest"])
                    for v in held
                ),
                "Old enough, and stays",
            )  # fmt: skip
        if blockers := self.blockers:
            output.table(
                ("worker", "domain", "youngest event read", "last run", "consumed", "refuses"),
                (
                    (r["worker_name"], r["event_domain"], r["last_created_at"], output.ago(r["last_run_at"]), r["prev"],
                     r["refusal"])
                    for r in blockers
                ),
                "Who holds it back",
            )  # fmt: skip
        for hint in dict.fromkeys(VERDICTS[v["verdict"]][1] for v in held):
            output.note(hint)

    @property
    def blockers(self) -> list[Row]:
        """The workers that hold rows back, with their positions."""
        named = {name for v in self.verdicts if v["verdict"] == "unread" for name in v["who"].split(", ")}
        return [r for r in self.readers if r["worker_name"] in named or r["refusal"]]


def _print_partitions(found: Row) -> None:
    def fate(p: Row) -> str:
        if p["pending"]:
            return "its detaching was interrupted; is finished"
        if p["whole"]:
            return "goes whole"
        if p["others"] or p["held"]:
            why = [f"{p['others']} rows of domains that are not ours"] if p["others"] else []
            why += [f"{p['held']} rows that have to stay" + (f" ({p['who']})" if p["who"] else "")] if p["held"] else []
            return "stays: " + ", ".join(why)
        return "stays"

    output.table(
        ("partition", "from", "to", "rows", ""),
        (
            (p["name"], p["from"] or "default", p["to"], p["rows"] if p["rows"] or p["whole"] else None, fate(p))
            for p in found["partitions"]
        ),
        "Partitions",
    )
    for month in found["create"]:
        way = f"; in the way: {month['in_the_way']} rows of the default partition" if month["in_the_way"] else ""
        output.line(f"would create {month['name']}{way}")
    if not found["by_time"]:
        output.note("event_outbox is not partitioned by range of created_at alone: its partitions are left alone.")
    elif not found["owner"]:
        output.note("Only the owner of event_outbox may change its partitions.")


# -- run ---------------------------------------------------------------------------------------------------------


@retention.command(name="run")
def retention_run(
    *,
    what: Whats = None,
    keep: Keep = None,
    batch: Annotated[int, Parameter(help="Rows that one transaction looks at.", validator=between(1, 100_000))] = 5000,
    pause: Annotated[
        float, Parameter(help="Pause after a batch that removed something, s.", validator=between(0, 3600))
    ] = 0.1,
    ahead: Ahead = 3,
    drop: Annotated[
        bool, Parameter(help="Drop partitions that go whole, instead of keeping them as tables.", negative=())
    ] = False,
    yes: Annotated[bool, Parameter(help="Really do it.", negative=())] = False,
    where: ConnectionOptions | None = None,
) -> int:
    """Remove what is old enough and what every reader has read, in small transactions.

    Without --yes it shows the plan, and exits with 1. While another run is at it, it says so and exits with 0.
    Ctrl-C at any moment leaves nothing half done: what is gone is gone, and the next run does the rest.
    """
    machine = bool(where and where.json)

    async def run() -> int:
        with opened(where) as door:
            # A frozen run must not hold its lock without end, so the server ends a session that is idle for this time.
            idle = max(60.0, 2 * pause)
            name = "iu-listen retention"
            async with session(
                door.settings.dsn, name=name, deadline=door.settings.deadline, idle_timeout=idle
            ) as connection:
                await requirements.require_package(connection)
                await requirements.require_primary(connection)
                chosen = await _chosen(connection, what, keep)
                plan = await _Plan.make(connection, chosen, keep, ahead) if chosen else None
                if not yes:
                    if plan:
                        plan.print(where)
                    raise Refused("nothing was removed", "Say --yes to do it.")
                if plan is None:
                    words = "no policy is enabled: nothing was removed"
                    return _print_end({"status": "nothing_enabled"}, words, machine=machine)
                async with keeping.only_run(connection) as other:
                    if other:
                        words = f"another run is at it ({other}); nothing was done"
                        return _print_end({"status": "busy", "holder": other}, words, machine=machine)
                    return await _remove(connection, plan, batch, pause, door.settings.batch_deadline, drop, machine)

    return anyio.run(run)


async def _chosen(connection: Connection, what: list[What] | None, keep: str | None) -> list[What]:
    """The policies that a run applies."""
    on: list[What] = [p["what"] for p in await queries.rows(connection, "retention/policies") if p["enabled"] or keep]
    if what and (off := [w for w in what if w not in on]):
        raise Refused(f"the policy of {off[0]} is off", f"iu-listen retention set {off[0]} --keep 90d, or give --keep.")
    return [w for w in on if not what or w in what]


async def _remove(
    connection: Connection, plan: _Plan, batch: int, pause: float, deadline: float, drop: bool, machine: bool
) -> int:
    began = time.monotonic()
    removed = dict.fromkeys(plan.chosen, 0)
    tender = None
    ended = False
    try:
        if plan.partitions:
            tender = keeping.PartitionMaintainer(connection, plan.kept("events"), drop=drop)
            await tender.tend(plan.partitions)
            await plan.look(connection)
        for what in plan.chosen:
            with _progress(what, plan.going[what]) as advance:
                async with aclosing(keeping.batches(connection, what, plan.keep, batch, pause, deadline)) as answers:
                    async for answer in answers:
                        removed[what] += answer["gone"]
                        advance(answer["gone"])
        await plan.look(connection)
        ended = True
    finally:
        if not ended:
            gone = ", ".join(f"{output.text(n)} {what}" for what, n in removed.items())
            output.note(f"Ended early. Gone: {gone}. Nothing is half done; the next run does the rest.")
    seconds = time.monotonic() - began
    if machine:
        output.as_json({
            "status": "ran", "removed": removed, "seconds": round(seconds, 3),
            "held": plan.held, "readers": plan.blockers,
            "partitions": {"done": tender.done, "held": tender.held} if tender else None,
        })  # fmt: skip
        return 0
    for row in tender.done if tender else []:
        output.line(f"{row['did']} {row['partition']}" + (f", {output.text(row['rows'])} rows" if row["rows"] else ""))
    for row in tender.held if tender else []:
        output.line(f"left alone{': ' * bool(row['partition'])}{row['partition']}: {row['why']}")
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


class _Rate(ProgressColumn):
    """A column with the number of rows in a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{output.text(round(task.speed or 0))} rows/s")


@contextmanager
def _progress(what: str, total: int) -> Iterator[Any]:
    """A progress bar on a terminal; yields a function that is called with the number of removed rows."""
    console = output.err()
    with Progress(
        TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), _Rate(),
        TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task(what, total=total)
        yield lambda gone: bar.update(task, advance=gone)
