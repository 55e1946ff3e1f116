"""What the storm's target has noted (target.py): who was called when, what arrived first, and what was called twice at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

#: As target.py writes it where an event has no subject.
NOBODY = "-"


@dataclass
class Arrivals:
    """The notes of all consumers, in the order of the machine's clock.

    Attributes:
        first: Event and subject of every event, in the order in which they first arrived.
        calls: Calls that began.
        again: Calls that succeeded for an event that had arrived.
        stray: Calls that ended although none had begun: of a consumer who was frozen meanwhile.
        crowded: Subjects of which an event was called while another one had not ended, with what was called when. A call
            that never ended was that of a consumer who died: the next one of its subject must be about the same event.
    """

    first: dict[UUID, str] = field(default_factory=dict)
    calls: int = 0
    again: int = 0
    stray: int = 0
    crowded: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, files: Iterable[Path], promotions: Iterable[int] = ()) -> Arrivals:
        """Read the files of these consumers; those that are not there have nothing.

        Args:
            files: One for each consumer.
            promotions: When a server took over that may lack what had happened: it has no call of the time before.
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
                if subject != NOBODY and before != event:
                    age = (at - since) / 1e6
                    found.crowded[subject] = (
                        f"{who} began {event} {age:.1f} ms after {whose} began {before}, at {at / 1e9:.3f} s"
                    )
                busy[subject] = event, at, who
                continue
            found.stray += subject != NOBODY and busy.pop(subject, None) is None
            if what == "ended":
                found.again += UUID(event) in found.first
                found.first.setdefault(UUID(event), subject)
        return found
