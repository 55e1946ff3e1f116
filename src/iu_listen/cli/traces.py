"""The commands trace, which shows the life of one event from its rows, and trace-export, which exports all spans."""

from __future__ import annotations

import os
import tempfile
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import anyio
from cyclopts import App, Parameter
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

from iu_listen.admin import times
from iu_listen.admin import traces as admin_traces
from iu_listen.app import EXPORT, Observers, PostgresSessions
from iu_listen.cli import output, waterfall
from iu_listen.cli.context import ConnectionOptions, looking, opened
from iu_listen.flow.trace_export import Export
from iu_listen.install import requirements
from iu_listen.model.errors import ConfigurationError, DatabaseUnreachable, Refused, SessionLost
from iu_listen.model.observation import ExportDelayed, Observation, SessionFailed, SpansExported
from iu_listen.model.spans import Span
from iu_listen.postgres import queries
from iu_listen.telemetry.metrics import MetricObserver, metric_observer
from iu_listen.telemetry.otlp.encoding import as_json
from iu_listen.telemetry.otlp.factory import EXPORTER_PROTOCOLS, create_collector
from iu_listen.telemetry.sdk_exporters import exporter_names, resource
from iu_listen.telemetry.sdk_logs import close_exporters, install_sdk_log_filter


def register(app: App) -> None:
    """Add this command."""
    app.command(trace_one, name="trace")
    app.command(trace_export, name="trace-export")


def trace_one(
    what: str,
    /,
    *,
    html: Annotated[Path | None, Parameter(help="Write the waterfall to this file, as a page.")] = None,
    open_: Annotated[bool, Parameter(name="--open", help="Show the page in a browser.", negative=())] = False,
    where: ConnectionOptions | None = None,
) -> int:
    """Show what became of an event: its transaction, every attempt, the dead letter, the replay. Needs no backend.

    WHAT is the id of an event, an attempt's number, a dead letter's id, or a trace id that is an event's. --json gives
    OTLP/JSON.
    """

    async def run() -> list[Span]:
        async with looking(where) as (_, connection):
            await requirements.require_package(connection)
            return await admin_traces.life(connection, what)

    spans = anyio.run(run)
    if not spans:
        raise Refused(f"nothing is known of {what}", "Is it another database? iu-listen attempts lists what there is.")
    if html or open_:
        file = html or Path(tempfile.mkdtemp(prefix="iu-listen-")) / f"{spans[0].trace_id}.html"
        file.write_text(waterfall.page(spans), encoding="utf-8")
        output.note(f"Written: {file}")
        if open_:
            webbrowser.open(file.resolve().as_uri())
    elif where and where.json:
        output.as_json(as_json(spans, resource(os.environ).attributes), named=False)
    else:
        waterfall.draw(spans)
    return 0


def trace_export(
    *,
    follow: Annotated[
        bool, Parameter(help="Go on until Ctrl-C, instead of ending when all is exported.", negative=())
    ] = False,
    since: Annotated[
        str | None, Parameter(help="Once more what was written since then: 2h, '3 days', or ISO 8601.")
    ] = None,
    end: Annotated[
        bool, Parameter(help="End the export for good: retention waits for it no more.", negative=())
    ] = False,
    where: ConnectionOptions | None = None,
) -> int:
    """Export attempts and dead letters as spans, to the OTLP collector that OTEL_EXPORTER_OTLP_* name.

    `run` does this by itself where OTEL_TRACES_EXPORTER=otlp is set; this is for a process of its own, or for a period
    that is wanted once more. A repetition does no harm: ids are fixed, and backends take equal ids for one span.
    The first export begins now; what is older is exported with --since. Ctrl-C at any moment loses nothing.
    """
    if follow + bool(since) + end > 1:
        raise ConfigurationError("--follow, --since and --end exclude each other", "Say one of them.")
    if end:
        return _end(where)
    install_sdk_log_filter(lambda who, words: output.note(f"{who}: {words}"))
    enabled = {**os.environ, "OTEL_SDK_DISABLED": "false"}
    named = [name for name in exporter_names(enabled, "traces") if name in EXPORTER_PROTOCOLS]
    there = create_collector(enabled | {"OTEL_TRACES_EXPORTER": named[0] if named else "otlp"})
    assert there is not None
    metrics: MetricObserver | None = None
    try:
        with opened(where) as door, _progress() as teller:

            async def run() -> None:
                nonlocal metrics
                async with door.session() as connection:
                    await requirements.require_package(connection)
                    await requirements.require_primary(connection)
                    moment = await times.moment(connection, since) if since else None
                    database = (await queries.rows(connection, "target"))[0]["database"]
                metrics = _metrics(database)
                export = Export(
                    PostgresSessions(door.settings, batches=False),
                    there,
                    Observers([teller, metrics] if metrics else [teller]),
                )
                await (export.run() if follow else export.once(moment))

            anyio.run(run)
    except SessionLost as lost:
        raise DatabaseUnreachable(lost.message, lost.hint or "Nothing is lost: try again.") from lost
    finally:
        close_exporters((there, metrics))
    if where and where.json:
        output.as_json({"exported": teller.exported, "rejected": teller.rejected, "seconds": round(teller.seconds, 3)})
    else:
        refused = f", {output.text(teller.rejected)} were refused for good" if teller.rejected else ""
        output.line(f"Exported {output.text(teller.exported)} spans in {output.duration(teller.seconds)}{refused}.")
    return 1 if teller.rejected else 0


def _end(where: ConnectionOptions | None) -> int:
    """Remove the cursor of the export, if no process uses it."""

    async def run() -> int | None:
        with opened(where) as door:
            async with door.session() as connection:
                await requirements.require_package(connection)
                return await admin_traces.end(connection, EXPORT)

    spans = anyio.run(run)
    if where and where.json:
        output.as_json({"ended": spans is not None, "exported": spans or 0})
    elif spans is None:
        output.line("There is no export.")
    else:
        output.line(f"Ended: {output.text(spans)} spans were exported. The next export begins anew.")
    return 0


def _metrics(database: str) -> MetricObserver | None:
    """The observer for metrics; None: metrics are off, or another consumer on this host already uses the port."""
    try:
        return metric_observer(os.environ, database)
    except ConfigurationError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        output.note(f"Without metrics: {error.message}. {error.hint}")
        return None


class _Teller:
    """An observer that counts exported spans and updates a progress bar."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("traces", total=None, spans="")
        self._began = time.monotonic()
        self._said: set[str] = set()
        self.exported = 0
        self.rejected = 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def observe(self, observation: Observation, /) -> None:
        match observation:
            case SpansExported(spans, rejected, _, why):
                self.exported += spans
                self.rejected += rejected
                if rejected:
                    self._say(f"Refused for good: {why or 'the collector does not say why'}.")
                rate = round(self.exported / max(self.seconds, 0.001))
                words = f"{output.text(self.exported)} spans, {output.text(rate)}/s"
                self._bar.update(self._task, spans=words)
            case ExportDelayed(why, _, str(poison)):
                self._say(f"Left out, as others that are refused so: span {poison}, {why}.", why)
            case ExportDelayed(why, pause, None) | SessionFailed(_, why, pause):
                self._say(f"Held back, nothing is lost: {why}; again in {pause:.1f} s.", why)

    def _say(self, line: str, why: str = "") -> None:
        """Print a line once for each reason; a long outage would otherwise print a line for each try."""
        if (key := why or line) not in self._said:
            self._said.add(key)
            output.note(line)


@contextmanager
def _progress() -> Iterator[_Teller]:
    console = output.err()
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[spans]}"),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        yield _Teller(bar)
