"""The command completeness: list events that lack attempts, and let the worker route them again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final

import anyio
from cyclopts import App, Parameter
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn

from iu_listen.admin import gates
from iu_listen.cli import output
from iu_listen.cli.confirm import not_confirmed
from iu_listen.cli.context import ConnectionOptions, connected
from iu_listen.cli.parameters import WorkerName
from iu_listen.flow.completeness import Pace
from iu_listen.install import requirements
from iu_listen.model.errors import ConfigurationError, Refused
from iu_listen.model.monitoring import CompletenessPage
from iu_listen.postgres import completeness, queries
from iu_listen.postgres.session import Connection

#: Largest number of events of a page, which is one statement, and longest intended duration of a page, in seconds. No
#: timeout ends a page earlier.
MAX_PAGE_EVENTS: Final = 5000
TARGET_PAGE_SECONDS: Final = 60.0
#: Largest number of events in one transaction of a repair.
MAX_REPAIR_EVENTS: Final = 1000
#: Largest number of incomplete events that are listed.
MAX_LISTED_EVENTS: Final = 100
#: Longest wait of a repair for a consumer that makes no progress, in seconds.
REPAIR_TIMEOUT: Final = 30.0

#: Descriptions of the states of an incomplete event.
STATE_PHRASES: Final = {
    "repairable": "can be repaired: use --repair",
    "waiting": "waits until the consumer routes it again",
    "not_repairable": "cannot be repaired: its route is disabled or gone; use --accept",
    "accepted": "accepted as it is",
}


def register(app: App) -> None:
    """Add this command."""
    app.command(run, name="completeness")


def run(
    *,
    worker: WorkerName = None,
    resume: Annotated[
        bool, Parameter(help="Continue an interrupted pass, or begin a new one. Default: --fresh.", negative="--fresh")
    ] = False,
    repair: Annotated[bool, Parameter(help="Let the worker route incomplete events again.", negative=())] = False,
    accept: Annotated[
        bool, Parameter(help="Accept incomplete events as they are; they raise no further alarm.", negative=())
    ] = False,
    plan: Annotated[
        bool, Parameter(help="With --repair or --accept: show the changes without making them.", negative=())
    ] = False,
    yes: Annotated[bool, Parameter(help="With --repair or --accept: confirm the change.", negative=())] = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Check whether every event behind the cursor has its attempts. Exit 1 if an event lacks attempts.

    The command may run at any time: events that are being decided meanwhile cause no false alarm. After Ctrl-C the
    position is kept for --resume. --repair moves incomplete events in front of the cursor, so that the worker routes
    them again; idempotency keys suppress decisions that were already made.
    """
    if repair and accept:
        raise ConfigurationError(
            "--repair and --accept exclude each other",
            "Use --repair first, then --accept for the events that are left.",
        )
    if (plan or yes) and not (repair or accept):
        raise ConfigurationError(f"{'--plan' if plan else '--yes'} requires --repair or --accept", "")
    machine = bool(options and options.json)

    async def inside() -> int:
        async with connected(options, worker=worker) as (context, connection):
            name = context.settings.worker
            await requirements.require_package(connection)
            await requirements.require_primary(connection)
            await requirements.require_worker(connection, name)
            page = await _run_pass(connection, name, resume=resume)
            answer = await _findings(connection, name, page)
            if not machine:
                _print_findings(answer)
            if (repair or accept) and answer["missing"]:
                answer["repair" if repair else "accept"] = change = _effect(answer, repair=repair)
                if plan or not yes:
                    _print_plan(answer, change, machine=machine)
                    if not plan:
                        raise not_confirmed()
                    return 0
                done = await (_repair if repair else _accept)(connection, name)
                answer |= await _findings(connection, name, page)
                answer["repair" if repair else "accept"] = done
                if not machine:
                    _print_change(answer, done)
        if machine:
            output.as_json(answer)
        return 0 if answer["complete"] else 1

    return anyio.run(inside)


# -- check -------------------------------------------------------------------------------------------------------


async def _run_pass(connection: Connection, worker: str, *, resume: bool) -> CompletenessPage:
    """Run a pass to its end; with ``resume`` continue the interrupted pass."""
    number, pace = None if resume else 0, Pace(MAX_PAGE_EVENTS, TARGET_PAGE_SECONDS)
    with _progress("completeness") as step:
        try:
            while True:
                began = anyio.current_time()
                page = await completeness.page(connection, worker, pace.events, number)
                pace.took(anyio.current_time() - began)
                if page.status == "refused":
                    raise Refused(
                        f"the cursor does not belong to this database's history: {page.reason}",
                        "See docs/how-to/repair.md.",
                    )
                if page.status == "superseded":
                    raise Refused(
                        "another command has begun a new pass of the completeness check",
                        "Continue that pass: iu-listen completeness --resume",
                    )
                step(page)
                if page.over:
                    return page
                number = page.number
        except anyio.get_cancelled_exc_class():
            output.note("Interrupted. Continue with: iu-listen completeness --resume")
            raise


@contextmanager
def _progress(what: str) -> Iterator[Any]:
    """A progress bar on a terminal; yields a function that is called with each page."""
    console = output.err()
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(),
        TextColumn("{task.fields[found]}"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=1.0, found="")
        began: CompletenessPage | None = None

        def step(page: CompletenessPage) -> None:
            nonlocal began
            began = began or page
            # A resumed pass includes seconds of earlier runs, so the rate is computed from this run only.
            rate = (page.checked - began.checked) / max(page.seconds - began.seconds, 0.001)
            words = (
                f"{output.text(page.checked)} events, {output.text(round(rate))}/s, {output.text(page.missing)} missing"
            )
            bar.update(task, completed=page.share, found=words)

        yield step


# -- findings ----------------------------------------------------------------------------------------------------


async def _findings(connection: Connection, worker: str, page: CompletenessPage) -> dict[str, Any]:
    """The answer of the command: the figures of the pass, and the events that are incomplete now."""
    counts = await completeness.counts(connection, worker)
    return {
        "worker": worker,
        "checked": page.checked,
        "seconds": page.seconds,
        "complete": counts["missing"] == 0,
        **counts,
        "events": await queries.rows(connection, "completeness/missing", worker, MAX_LISTED_EVENTS),
    }


def _print_findings(answer: dict[str, Any]) -> None:
    rate = round(answer["checked"] / max(answer["seconds"], 0.001))
    output.line(
        f"{output.mark(answer['complete'], 'complete', 'INCOMPLETE')}  {answer['worker']}: "
        f"{output.text(answer['checked'])} events in {output.duration(answer['seconds'])} ({output.text(rate)}/s), "
        f"{output.text(answer['missing'])} of them incomplete",
        markup=True,
    )
    if answer["accepted"]:
        output.note(f"{output.plural(answer['accepted'], 'more incomplete event')} accepted.")
    _print_events(answer)


def _print_events(answer: dict[str, Any]) -> None:
    listed = [e for e in answer["events"] if e["state"] != "accepted"]
    if not listed:
        return
    output.table(
        ("event", "type", "attempts", "expected", "found", "action"),
        (
            (
                e["event_ref"],
                e["event_type"],
                e["found"],
                e["wanted"],
                output.ago(e["found_at"]),
                STATE_PHRASES[e["state"]],
            )
            for e in listed
        ),
    )
    if answer["missing"] > len(listed):
        output.note(f"{output.plural(answer['missing'] - len(listed), 'more event')} not shown.")


# -- repair and accept -------------------------------------------------------------------------------------------


def _effect(answer: dict[str, Any], *, repair: bool) -> dict[str, Any]:
    """The effect that --repair or --accept would have, for the plan."""
    if repair:
        return {"restamped": answer["repairable"], "accepted": answer["not_repairable"], "done": False}
    return {"accepted": answer["missing"], "done": False}


def _print_plan(answer: dict[str, Any], change: dict[str, Any], *, machine: bool) -> None:
    if machine:
        output.as_json(answer)
    else:
        output.line(f"Plan: {_change_phrase(change)}.")


def _change_phrase(change: dict[str, Any]) -> str:
    accepted = f"{output.plural(change['accepted'], 'incomplete event')} accepted"
    if "restamped" not in change:
        return accepted
    restamped = f"{output.plural(change['restamped'], 'event')} to be routed again"
    return f"{restamped}, {accepted}" if change["accepted"] else restamped


async def _accept(connection: Connection, worker: str) -> dict[str, Any]:
    return {"accepted": await queries.value(connection, "completeness/accept", worker), "done": True}


async def _repair(connection: Connection, worker: str) -> dict[str, Any]:
    """Let the worker route all incomplete events again, in bounded steps, and wait until it has done so."""
    done: dict[str, Any] = {"restamped": 0, "accepted": 0, "done": True}
    more = True
    while more:
        answer = await completeness.repair(connection, worker, MAX_REPAIR_EVENTS)
        done["restamped"] += answer["restamped"]
        done["accepted"] += answer["accepted"]
        more = answer["more"]
    done["why"] = await _wait_until_routed(connection, worker)
    await completeness.confirm(connection, worker)
    return done


async def _wait_until_routed(connection: Connection, worker: str) -> str | None:
    """Wait until no repaired event is waiting.

    Returns:
        None if no event waits any more; otherwise the reason why events still wait.
    """
    console = output.err()
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TextColumn("{task.completed}/{task.total}"),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        total = waiting = (await completeness.counts(connection, worker))["waiting"]
        task = bar.add_task("routed again", total=total)
        since, asked = anyio.current_time(), 0.0
        while waiting:
            if obstacle := await _obstacle(connection, worker):
                return obstacle
            if anyio.current_time() - since > REPAIR_TIMEOUT:
                return f"no event was routed within {REPAIR_TIMEOUT:g} s"
            await anyio.sleep(max(0.1, 4 * asked))
            before, began = waiting, anyio.current_time()
            waiting = (await completeness.counts(connection, worker))["waiting"]
            asked = anyio.current_time() - began
            if waiting < before:
                since = anyio.current_time()
            bar.update(task, completed=total - waiting)
    return None


async def _obstacle(connection: Connection, worker: str) -> str | None:
    """The reason why no consumer routes events now; None: a consumer does."""
    if closed := await gates.closed_gates(connection):
        return f"the {closed[0]} gate is closed"
    active = [
        c for c in await queries.rows(connection, "consumers")
        if c["worker_name"] == worker and not c["silent"] and c["state"] not in ("standing_by", "stopped")
    ]  # fmt: skip
    return None if active else "no consumer is running"


def _print_change(answer: dict[str, Any], done: dict[str, Any]) -> None:
    output.line(f"Done: {_change_phrase(done)}.")
    if done.get("why"):
        output.line(f"{output.plural(answer['waiting'], 'event')} still waiting: {done['why']}.")
    if answer["missing"]:
        _print_events(answer)
    else:
        output.line(f"{output.mark(True, 'complete')}  {answer['worker']}", markup=True)
