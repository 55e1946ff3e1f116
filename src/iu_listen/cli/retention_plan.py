"""The plan of the command group retention: the rows that a run would remove, and the reasons that keep others."""

from __future__ import annotations

from collections.abc import Sequence

from iu_listen.admin import retention as admin_retention
from iu_listen.cli import output
from iu_listen.cli.context import ConnectionOptions
from iu_listen.model.text import MAX_COUNT, counted, number
from iu_listen.postgres import queries
from iu_listen.postgres.queries import Row
from iu_listen.postgres.session import Connection

#: The description and the hint for each verdict of the plan.
VERDICT_PHRASES = {
    "unread": ("not read yet by worker", "Check that the consumer is running: iu-listen status"),
    "refusing": ("a worker refuses to work:", "See docs/how-to/repair.md."),
    "created_in_the_future": ("created_at is in the future", "These rows are removed after that time."),
    "event_still_there": (
        "the event still exists",
        "Attempts are removed after their events: iu-listen retention set events --keep …",
    ),
    "open_dead_letter": ("belongs to an open dead letter", "Replay or resolve it: iu-listen dead-letter list"),
    "not_released": (
        "attempts are missing, or spans are not exported yet",
        "Use `iu-listen completeness`; `iu-listen status` shows the position of the trace export.",
    ),
}


class RetentionPlan:
    """The rows that a run would remove, and the rows that are old enough but held back, with the reasons.

    Attributes:
        capped: The policies of which only the oldest MAX_COUNT rows were judged, because there are more.
    """

    def __init__(self, policies: list[Row], keep: str | None, chosen: list[str], *, exact: bool) -> None:
        self.policies = policies
        self.keep = keep
        self.chosen = chosen
        self.exact = exact
        self.capped: list[str] = []
        self.verdicts: list[Row] = []
        self.readers: list[Row] = []
        self.partitions: Row | None = None

    @classmethod
    async def make(
        cls, connection: Connection, what: Sequence[str] | None, keep: str | None, ahead: int, *, exact: bool = False
    ) -> RetentionPlan:
        """Create a plan from the present state of the database; with ``exact`` from all rows."""
        keep = keep and await admin_retention.interval(connection, keep)
        policies = await queries.rows(connection, "retention/policies")
        plan = cls(policies, keep, [w for w in admin_retention.POLICY_NAMES if not what or w in what], exact=exact)
        await plan.look(connection)
        if "events" in plan.chosen:
            plan.partitions = await admin_retention.partitions(connection, plan.kept("events"), ahead, exact=exact)
        return plan

    async def look(self, connection: Connection) -> None:
        """Read the verdicts of the plan and the positions of the readers (again)."""
        if self.exact:
            found = await queries.rows(connection, "retention/plan", self.keep, self.chosen)
        else:
            found = await queries.rows(connection, "retention/plan_page", self.keep, self.chosen, MAX_COUNT)
        self.capped = [row["what"] for row in found if row["verdict"] == "not_judged"]
        self.verdicts = [row for row in found if row["verdict"] != "not_judged"]
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
            "policies": self.policies, "keep": self.keep, "plan": self.verdicts, "capped": self.capped,
            "readers": self.blockers, "partitions": self.partitions,
        }  # fmt: skip

    def print(self, options: ConnectionOptions | None) -> None:
        """Print the plan as tables, or as JSON."""
        if options and options.json:
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
            least = "at least " if what in self.capped else ""
            off = "" if what in on else ", but the policy is off"
            output.line(
                f"{what}: {least}{output.plural(self.going[what], 'row')} older than {self.kept(what)} would be removed"
                f"{since}{off}."
            )
        self.print_held()
        if self.partitions:
            _print_partitions(self.partitions)

    def print_held(self) -> None:
        """Print the rows that are old enough but held back, each with a hint; and the policies that were capped."""
        held = self.held
        if held:
            output.table(
                ("policy", "reason", "rows", "oldest", "newest"),
                (
                    (v["what"], " ".join(filter(None, (VERDICT_PHRASES[v["verdict"]][0], v["who"]))), v["count"],
                     v["oldest"], v["youngest"])
                    for v in held
                ),
                "Old rows that stay",
            )  # fmt: skip
        if blockers := self.blockers:
            output.table(
                ("worker", "domain", "newest event read", "last run", "cursor", "refuses"),
                (
                    (r["worker_name"], r["event_domain"], r["last_created_at"], output.ago(r["last_run_at"]), r["prev"],
                     r["refusal"])
                    for r in blockers
                ),
                "Workers that keep rows",
            )  # fmt: skip
        for hint in dict.fromkeys(VERDICT_PHRASES[v["verdict"]][1] for v in held):
            output.note(hint)
        if self.capped:
            output.note(
                f"Only the oldest {number(MAX_COUNT)} rows were judged of: {', '.join(self.capped)}. To judge all rows:"
                " iu-listen retention plan --exact"
            )

    @property
    def blockers(self) -> list[Row]:
        """The workers that hold rows back, with their positions."""
        named = {name for v in self.verdicts if v["verdict"] == "unread" for name in v["who"].split(", ")}
        return [r for r in self.readers if r["worker_name"] in named or r["refusal"]]


def _partition_result(p: Row) -> str:
    """What a run would do with a partition."""
    if p["pending"]:
        return "its removal was interrupted, and will be completed"
    if p["whole"]:
        return "would be removed as a whole"
    if p["whole"] is None:
        return "would be removed as a whole, if none of the other rows must stay"
    if p["others"] or p["held"]:
        why = [f"{p['others']} rows of domains without a worker"] if p["others"] else []
        why += [f"{p['held']} rows that must stay" + (f" ({p['who']})" if p["who"] else "")] if p["held"] else []
        return "stays: " + ", ".join(why)
    return "stays"


def _partition_rows(p: Row) -> str | None:
    """The number of rows of a partition, as far as they were read; None: no row was read."""
    if p["capped"]:
        return f"more than {number(p['rows'])}"
    return number(p["rows"]) if p["rows"] or p["whole"] else None


def _print_partitions(found: Row) -> None:
    output.table(
        ("partition", "from", "to", "rows", "result"),
        (
            (p["name"], p["from"] or "default", p["to"], _partition_rows(p), _partition_result(p))
            for p in found["partitions"]
        ),
        "Partitions",
    )
    for month in found["create"]:
        obstacle = (
            f"; prevented by {counted(month['in_the_way'])} rows of this month in the default partition"
            if month["in_the_way"]
            else ""
        )
        output.line(f"would create {month['name']}{obstacle}")
    if not found["by_time"]:
        output.note("event_outbox is not partitioned by range of created_at alone, so its partitions are not changed.")
    elif not found["owner"]:
        output.note("The partitions are not changed, because this role is not the owner of event_outbox.")
