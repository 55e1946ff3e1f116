"""How much a run measures."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """The sizes of a run; each measurement says in its text which one it uses.

    Attributes:
        rounds: Rounds of each measurement.
        single: Single events of the live latency, 20 ms apart.
        seconds_at_rate: Seconds for each rate.
        rates: Events a second.
        backlog: Events of a backlog.
        drain: Events of a backlog that is routed only.
        writers: Seconds of pgbench.
        clients: Numbers of clients of pgbench.
        held: Seconds for which a transaction stays open.
        idle: Seconds without events.
        history: Attempts that are there already.
        spans: Attempts that are exported as traces.
        webhooks: Deliveries to an address.
    """

    rounds: int
    single: int
    seconds_at_rate: float
    rates: tuple[int, ...]
    backlog: int
    drain: int
    writers: int
    clients: tuple[int, ...]
    held: float
    idle: float
    history: tuple[int, int]
    spans: int
    webhooks: int


FULL = Sizes(
    rounds=3,
    single=250,
    seconds_at_rate=4.0,
    rates=(1, 10, 100, 1000),
    backlog=30_000,
    drain=200_000,
    writers=4,
    clients=(16, 32),
    held=3.0,
    idle=20.0,
    history=(10_000, 1_000_000),
    spans=100_000,
    webhooks=20_000,
)
#: For a look at the ranking in less than three minutes.
QUICK = Sizes(
    rounds=1,
    single=60,
    seconds_at_rate=1.5,
    rates=(10, 100),
    backlog=5_000,
    drain=50_000,
    writers=1,
    clients=(16,),
    held=1.0,
    idle=3.0,
    history=(1_000, 20_000),
    spans=10_000,
    webhooks=2_000,
)
