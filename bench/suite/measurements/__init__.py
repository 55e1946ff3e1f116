"""The measurements, as a table, in the order of the report."""

from suite.measurements import deliveries, drain, held, idle, live, traces, webhooks, writers
from suite.measurements.measurement import Measurement

MEASUREMENTS: tuple[Measurement, ...] = (
    live.LATENCY,
    live.RATES,
    held.HELD_TRANSACTION,
    deliveries.DELIVERIES,
    drain.HISTORY,
    drain.DRAIN,
    webhooks.WEBHOOKS,
    writers.WRITERS,
    idle.IDLE,
    traces.TRACES,
)
