"""The commands trace, which shows the processing of one event, and trace-export, which exports all spans."""

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
from iu_listen.app import TRACE_EXPORT_NAME, Observers, PostgresSessions
from iu_listen.cli import output, waterfall
from iu_listen.cli.context import ConnectionOptions, connected, open_context
from iu_listen.flow.trace_export import TraceExport
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
    """Add these commands."""
    app.command(trace_one, name="trace")
    app.command(trace_export, name="trace-export")


def trace_one(
    what: str,
    /,
    *,
    html: Annotated[Path | None, Parameter(help="Write the waterfall to this file, as an HTML page.")] = None,
    open_: Annotated[bool, Parameter(name="--open", help="Show the page in a browser.", negative=())] = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Show the processing of an event: its transaction, every attempt, the dead letter, the replay.

    WHAT is the id of an event, the number of an attempt, the id of a dead letter, or the trace id of an event. The
    command reads only the database and needs no tracing backend. With --json it prints OTLP/JSON.
    """

    async def run() -> list[Span]:
        async with connected(options) as (_, connection):
            await requirements.require_package(connection)
            return await admin_traces.life(connection, what)

    spans = anyio.run(run)
    if not spans:
        raise Refused(
            f"there is no event, attempt or dead letter with the id {what}",
            "Check the database, and list existing ids: iu-listen attempts",
        )
    if html or open_:
        file = html or Path(tempfile.mkdtemp(prefix="iu-listen-")) / f"{spans[0].trace_id}.html"
        file.write_text(waterfall.page(spans), encoding="utf-8")
        output.note(f"Written: {file}")
        if open_:
            webbrowser.open(file.resolve().as_uri())
    elif options and options.json:
        output.as_json(as_json(spans, resource(os.environ).attributes), named=False)
    else:
        waterfall.draw(spans)
    return 0


def trace_export(
    *,
    follow: Annotated[
        bool, Parameter(help="Continue until Ctrl-C, instead of ending when all spans are exported.", negative=())
    ] = False,
    since: Annotated[
        str | None,
        Parameter(help="Export again the rows that were written since this time: 2h, '3 days', or ISO 8601."),
    ] = None,
    end: Annotated[
        bool, Parameter(help="End the export permanently: retention no longer waits for it.", negative=())
    ] = False,
    options: ConnectionOptions | None = None,
) -> int:
    """Export attempts and dead letters as spans to the OTLP collector that the variables OTEL_EXPORTER_OTLP_* name.

    The command `run` exports them itself if OTEL_TRACES_EXPORTER=otlp is set. Use `trace-export` for an export in a
    separate process, or to export a period again. A repeated export is harmless: span ids are fixed, and backends store
    equal ids as one span. The first export begins at the present; use --since for older rows. Ctrl-C loses nothing.
    Exit 1 if the collector refused spans permanently.
    """
    if follow + bool(since) + end > 1:
        raise ConfigurationError("--follow, --since and --end exclude each other", "Use only one of them.")
    if end:
        return _end(options)
    install_sdk_log_filter(lambda logger, words: output.note(f"{logger}: {words}"))
    enabled = {**os.environ, "OTEL_SDK_DISABLED": "false"}
    named = [name for name in exporter_names(enabled, "traces") if name in EXPORTER_PROTOCOLS]
    client = create_collector(enabled | {"OTEL_TRACES_EXPORTER": named[0] if named else "otlp"})
    assert client is not None
    metrics: MetricObserver | None = None
    try:
        with open_context(options) as context, _progress() as export_progress:

            async def run() -> None:
                nonlocal metrics
                async with context.session() as connection:
                    await requirements.require_package(connection)
                    await requirements.require_primary(connection)
                    moment = await times.moment(connection, since) if since else None
                    database = (await queries.rows(connection, "target"))[0]["database"]
                metrics = _metrics(database)
                export = TraceExport(
                    PostgresSessions(context.settings, batches=False),
                    client,
                    Observers([export_progress, metrics] if metrics else [export_progress]),
                )
                await (export.run() if follow else export.once(moment))

            anyio.run(run)
    except SessionLost as lost:
        raise DatabaseUnreachable(lost.message, lost.hint or "No span is lost. Repeat the command.") from lost
    finally:
        close_exporters((client, metrics))
    if options and options.json:
        output.as_json(
            {
                "exported": export_progress.exported,
                "rejected": export_progress.rejected,
                "seconds": round(export_progress.seconds, 3),
            }
        )
    else:
        refused = (
            f"; the collector refused {output.text(export_progress.rejected)} permanently"
            if export_progress.rejected
            else ""
        )
        output.line(
            f"Exported {output.plural(export_progress.exported, 'span')}"
            f" in {output.duration(export_progress.seconds)}{refused}."
        )
    return 1 if export_progress.rejected else 0


def _end(options: ConnectionOptions | None) -> int:
    """Remove the cursor of the export, if no process uses it."""

    async def run() -> int | None:
        with open_context(options) as context:
            async with context.session() as connection:
                await requirements.require_package(connection)
                return await admin_traces.end(connection, TRACE_EXPORT_NAME)

    spans = anyio.run(run)
    if options and options.json:
        output.as_json({"ended": spans is not None, "exported": spans or 0})
    elif spans is None:
        output.line("There is no trace export.")
    else:
        output.line(
            f"The trace export is ended; it had exported {output.plural(spans, 'span')}. The next export begins anew."
        )
    return 0


def _metrics(database: str) -> MetricObserver | None:
    """The observer for metrics; None: metrics are off, or another consumer on this host already uses the port."""
    try:
        return metric_observer(os.environ, database)
    except ConfigurationError as error:
        if not isinstance(error.__cause__, OSError):
            raise
        output.note(f"Metrics are off: {error.message}. {error.hint}")
        return None


class _ExportProgress:
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
                    self._say(f"The collector refused spans permanently: {why or 'it gave no reason'}.")
                rate = round(self.exported / max(self.seconds, 0.001))
                words = f"{output.text(self.exported)} spans, {output.text(rate)}/s"
                self._bar.update(self._task, spans=words)
            case ExportDelayed(why, _, str(poison)):
                self._say(
                    f"Span {poison} is left out, because the collector refuses it: {why}."
                    " The same applies to similar spans.",
                    why,
                )
            case ExportDelayed(why, pause, None) | SessionFailed(_, why, pause):
                self._say(f"The export is delayed, and no span is lost: {why}; next try in {pause:.1f} s.", why)

    def _say(self, line: str, why: str = "") -> None:
        """Print a line once for each reason; a long outage would otherwise print a line for each try."""
        if (key := why or line) not in self._said:
            self._said.add(key)
            output.note(line)


@contextmanager
def _progress() -> Iterator[_ExportProgress]:
    console = output.err()
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[spans]}"),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        yield _ExportProgress(bar)
