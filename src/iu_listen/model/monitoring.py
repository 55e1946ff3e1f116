"""Blockers, pages of the completeness check, and measurements of the database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """A blocker, which delays or threatens the consumer: one row of v_iu_blocker.

    Attributes:
        what: Kind: late_event, vacuum, notify_queue, lease, bell_key or trigger.
        who: Name of the session, prepared transaction, replication slot or trigger.
        effect: Consequence for the consumer.
        pid: Process id of the session on the server; None: the blocker is not a session.
        application: application_name of the session; None: the blocker is not a session.
        database: Database to which the session is connected; None: unknown.
        state: State as in pg_stat_activity; for other blockers a word such as prepared or disabled.
        seconds: Age of the condition, in seconds; None: unknown.
        xids: Number of transactions by which vacuum is held back; None: the kind is not vacuum.
    """

    what: str
    who: str
    effect: str
    pid: int | None = None
    application: str | None = None
    database: str | None = None
    state: str | None = None
    seconds: float | None = None
    xids: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Identity of the blocker in successive searches.

        For notify_queue it has no name, because the sessions that may cause the condition change.
        """
        return self.what, "" if self.what == "notify_queue" else self.who


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletenessPage:
    """The answer of fn_iu_completeness_page.

    Attributes:
        status: ``walking``, ``confirming``, ``passed`` (the pass has ended), ``superseded`` or ``refused``.
        number: Number of the pass.
        checked: Number of events that the pass has checked so far.
        missing: Number of these events that lack attempts, or seem to.
        share: Fraction of the outbox that the pass has checked, from 0 to 1.
        seconds: Duration of the pass so far, in seconds.
        reason: Reason why the cursor is not trusted; empty otherwise.
    """

    status: str
    number: int = 0
    checked: int = 0
    missing: int = 0
    share: float = 0.0
    seconds: float = 0.0
    reason: str = ""

    @classmethod
    def from_answer(cls, answer: dict[str, Any]) -> CompletenessPage:
        """Build a page from the JSON answer of the function."""
        return cls(
            status=answer["status"],
            number=answer.get("pass", 0),
            checked=answer.get("checked", 0),
            missing=answer.get("missing", 0),
            share=answer.get("share", 0.0),
            seconds=answer.get("seconds", 0.0),
            reason=answer.get("reason", ""),
        )

    @property
    def over(self) -> bool:
        """Whether this is the last page of its pass."""
        return self.status not in ("walking", "confirming")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """One measured value of the database: a row of fn_iu_metrics.

    Attributes:
        what: ``gate`` and ``healthy`` (0 or 1), ``notification_queue`` (0 to 1), ``refused_emits``, ``lag_items`` or
            ``lag_seconds``.
        part: The gate, or the kind of waiting items, for example ``backlog``; None: the value has no parts.
        figure: The value.
        worker: Name of the worker; None: the value holds for the whole database.
    """

    what: str
    part: str | None
    figure: float
    worker: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsSnapshot:
    """The measurements of one moment.

    Attributes:
        measures: Values of the database.
        latencies: Latencies of decisions since the last measurement, in seconds: a sample of the newest ones.
        since_commit: True: latencies count from the commit of the event to the commit of the decision. False: from the
            insert of the event to the decision.
    """

    measures: tuple[Gauge, ...]
    latencies: tuple[float, ...]
    since_commit: bool
