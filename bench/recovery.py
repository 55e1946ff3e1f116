"""Time until an event is routed again after: ended sessions, server restart, silent path, frozen active consumer, pooler.

With the default settings of `iu-listen run`, one active consumer, one standby, and faults of the storm
(tests/storm/faults.py). Each time is from the end of the fault (the session has ended, the server accepts connections),
or from the beginning of a fault that lasts, to the commit of the attempt for an event that is written then.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import storm.environment
from iu_listen.model.settings import Settings

DEFAULT = Settings()
# Set before the faults are imported, because their bounds use these values. Those of the storm are shorter.
storm.environment.SESSION_TIMEOUT, storm.environment.CATCH_UP = DEFAULT.session_timeout, DEFAULT.catch_up
storm.environment.DEADLINE, storm.environment.BATCH_DEADLINE = DEFAULT.deadline, DEFAULT.batch_deadline
storm.environment.RECONNECT_MAX = DEFAULT.reconnect_max

from faults import pooler
from storm import faults
from storm.environment import Environment, prepare_environment
from support import insert_event

#: The measured faults, and the bound of each in seconds.
MEASURED = {
    "worker session terminated": 1.0,
    "PostgreSQL stopped (fast) and started": 2.0,
    "PostgreSQL stopped at once (immediate) and started": 2.0,
    "open connections stall for ever": 15.0,
    "active consumer frozen, resumed later": DEFAULT.session_timeout + 1,
}
POOLER, POOLER_BOUND = "transaction pooler detected and reported", 5.0


async def routed(environment: Environment) -> float:
    """Write an event; return the seconds until its attempts are committed."""
    began = time.perf_counter()
    connection = await environment.connect("bench")
    event = await insert_event(connection)
    connection.terminate()
    await environment.until(
        "select count(*) = 2 from iu_route_attempt where idempotency_key = any ($1)",
        [f"outbound:{route}:{event}" for route in storm.environment.ROUTES],
        pause=0.002,
    )
    return time.perf_counter() - began


async def wait_until_idle(environment: Environment) -> None:
    """Wait until both consumers are back, one of them idle and listening."""
    await environment.until(
        """select count(*) filter (where state = 'standing_by') >= 1 and bool_or(state = 'idle' and listening)
             from iu_consumer_heartbeat
            where beat_at > clock_timestamp() - 2 * cadence_seconds * interval '1 s'
              and pid = any ($1)""",
        [c.pid for c in environment.consumers],
    )
    await routed(environment)


async def inject(environment: Environment, name: str) -> float:
    await wait_until_idle(environment)
    async with faults.FAULTS[name].inject(environment):
        return await routed(environment)


async def through_pooler(dsn: str) -> float:
    """Seconds from the start of the process to the log line that says that it polls."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "iu_listen", "run", "--dsn", dsn, "--json", stderr=asyncio.subprocess.PIPE
    )
    try:
        async for line in process.stderr:
            if b"polling" in line:
                return time.perf_counter() - began
        raise AssertionError("the consumer ended and did not report that it polls")
    finally:
        process.kill()
        await process.wait()


def report(name: str, seconds: list[float], bound: float) -> bool:
    held = max(seconds) <= bound
    print(
        f"{name:52} n={len(seconds)}  p50 {statistics.median(seconds):6.2f} s  max {max(seconds):6.2f} s"
        f"  bound {bound:4.0f} s  {'held' if held else 'EXCEEDED'}",
        flush=True,
    )
    return held


async def measure(major: int, repetitions: int, seed: int, only: str) -> bool:
    held = True
    with TemporaryDirectory(prefix="iu-listen-recovery-") as root:
        Path(root).chmod(0o755)
        home, logs = Path(root, "data"), Path(root, "logs")
        logs.mkdir()
        async with prepare_environment(major, home, logs, random.Random(seed), consumers=2) as environment:
            for name, bound in MEASURED.items():
                if only in name:
                    held &= report(name, [await inject(environment, name) for _ in range(repetitions)], bound)
            if only in POOLER:
                if why := pooler.unavailable():
                    print(f"{POOLER}: not measured: {why}")
                else:
                    with pooler.pooling(environment.server.tcp_dsn()) as pooled:
                        await pooled.start()
                        seconds = [await through_pooler(pooled.dsn) for _ in range(repetitions)]
                    held &= report(POOLER, seconds, POOLER_BOUND)
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=20)
    parser.add_argument("--major", type=int, default=18)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="measure only the faults whose names contain this text")
    options = parser.parse_args()
    print(
        f"PostgreSQL {options.major}; session timeout {DEFAULT.session_timeout:g} s, catch_up {DEFAULT.catch_up:g} s, deadline {DEFAULT.deadline:g} s"
    )
    raise SystemExit(not asyncio.run(measure(options.major, options.repetitions, options.seed, options.only)))


if __name__ == "__main__":
    main()
