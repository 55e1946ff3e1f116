"""Reads the files in which the storm's target (target.py) notes its calls: first, repeated and overlapping calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

#: The subject that target.py writes for an event without a subject.
NO_SUBJECT = "-"


@dataclass
class CallLog:
    """The calls that the targets of all consumers noted, in the order of the machine's monotonic clock.

    Attributes:
        first: The subject of each event, by event id, in the order of the first successful calls.
        calls: Number of calls that began.
        again: Number of calls that succeeded for an event that had already arrived.
        unmatched: Number of calls that ended without a recorded beginning, for example in a consumer that was frozen
            meanwhile.
        overlapping: Subjects with a call that began while the call for another event of the subject had not ended, with
            details. A call that never ended belongs to a consumer that was killed: the next call of its subject must be
            for the same event.
    """

    first: dict[UUID, str] = field(default_factory=dict)
    calls: int = 0
    repeated_calls: int = 0
    unmatched: int = 0
    overlapping: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, files: Iterable[Path], promotions: Iterable[int] = ()) -> CallLog:
        """Read the files of the consumers. A file that does not exist counts as empty.

        Args:
            files: One file for each consumer.
            promotions: Times, in ns of the monotonic clock, at which a standby was promoted that may lack events. Calls
                that began before such a time are not compared with later calls.
        """
        found = cls()
        busy: dict[str, tuple[str, int, str]] = {}
        lines = [
            (int(at), file.stem, *rest)
            for file in files
            if file.exists()
            for at, *rest in map(str.split, file.read_text().splitlines())
        ]
        cuts = deque(sorted(promotions))
        for at, who, what, event, subject, _ in sorted(lines):
            while cuts and cuts[0] < at:
                cuts.popleft()
                busy.clear()
            if what == "began":
                found.calls += 1
                before, since, whose = busy.get(subject, (event, at, who))
                if subject != NO_SUBJECT and before != event:
                    age = (at - since) / 1e6
                    found.overlapping[subject] = (
                        f"{who} began {event} {age:.1f} ms after {whose} began {before}, at {at / 1e9:.3f} s"
                    )
                busy[subject] = event, at, who
                continue
            found.unmatched += subject != NO_SUBJECT and busy.pop(subject, None) is None
            if what == "ended":
                found.repeated_calls += UUID(event) in found.first
                found.first.setdefault(UUID(event), subject)
        return found
