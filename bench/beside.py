"""Time from an event to the call of its coroutine, by this version and by an earlier one, in turns.

On a shared machine, the results of two successive runs differ by a tenth; results in turns within one run differ by a
hundredth. Each version has its own database and consumer, on one server. The database and consumer that start second
are up to 6 % slower, whichever version they have. Therefore there are two rounds, in which the versions change places,
and the result is the geometric mean of the two ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg

from common import EMIT, consumer, go_live, listening, percentile
from iu_listen import embedded

HERE = Path(__file__).parent.parent
#: Applies the package of a version and opens its gates, by the code of that version, which alone knows its files.
PREPARE = """
import asyncio, sys
sys.path[:0] = [sys.argv[1] + "/bench"]
import common
# Earlier versions call it _prepare, and the oldest ones have no choice of the base.
prepare = common.prepare if hasattr(common, "prepare") else common._prepare
asyncio.run(prepare(*[sys.argv[2], "iu_core"][: prepare.__code__.co_argcount]))
"""
#: The target: a coroutine that records the times of its calls.
TARGET = """
import os, time
from iu_listen import Delivery, target

@target("event_outbox")
async def nothing(delivery: Delivery) -> None:
    os.write(LATE, f"{time.time()}\\n".encode())

LATE = os.open(os.environ["LATE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
"""


@dataclass
class Version:
    """One of the two versions.

    Attributes:
        name: Its name in the output.
        tree: Directory of its files.
        folder: Directory of the record of its calls.
        dsn: Its database.
        committed: Times at which the commits of its events were answered, in seconds since 1970.
    """

    name: str
    tree: Path
    folder: Path
    dsn: str
    committed: list[float] = field(default_factory=list)

    @property
    def environ(self) -> dict[str, str]:
        return {"PYTHONPATH": f"{self.folder}:{self.tree}/src", "LATE": str(self.folder / "late")}

    async def prepare(self) -> asyncpg.Connection:
        """Prepare its database and its live route; return a connection to it."""
        self.folder.mkdir()
        (self.folder / "bench_target.py").write_text(TARGET)
        prepare = [sys.executable, "-c", PREPARE, str(self.tree), self.dsn]
        subprocess.run(prepare, check=True, env=os.environ | self.environ)
        connection = await asyncpg.connect(self.dsn)
        await go_live(connection)
        return connection

    def consumer(self) -> AbstractContextManager[object]:
        """Run its `iu-listen run`."""
        return consumer(self.dsn, "--app", "bench_target", environ=self.environ)

    def waits(self) -> list[float]:
        """Milliseconds from the answer to each commit to the call."""
        called = [float(line) for line in (self.folder / "late").read_text().split()]
        return [1000 * (call - at) for call, at in zip(called, self.committed, strict=True)]


async def in_turns(versions: tuple[Version, Version], times: int, pause: float) -> None:
    connections = [await version.prepare() for version in versions]
    with versions[0].consumer(), versions[1].consumer():
        for connection in connections:
            await listening(connection)
        await asyncio.sleep(1)
        both = list(zip(versions, connections, strict=True))
        for turn in range(times):
            for version, connection in both[:: 1 if turn % 2 else -1]:
                await connection.fetchval(EMIT, 1)
                version.committed.append(time.time())
                await asyncio.sleep(pause)
        await asyncio.sleep(0.5)
    for connection in connections:
        await connection.close()


def measured(trees: dict[str, Path], root: Path, times: int, pause: float) -> dict[str, list[float]]:
    """Milliseconds from commit to call for two versions, by name, on a new server; the first one starts first."""
    root.mkdir()
    root.chmod(0o755)
    with embedded.running(root / "server", tcp=True) as server:
        # Two databases that exist on every embedded server.
        first, second = (
            Version(name, tree, root / name, server.dsn(database))
            for (name, tree), database in zip(trees.items(), ("iu", "postgres"), strict=True)
        )
        asyncio.run(in_turns((first, second), times, pause))
    return {version.name: version.waits() for version in (first, second)}


@contextmanager
def checkout(revision: str, folder: Path) -> Iterator[Path]:
    """Check out the files of a revision."""
    git = ["git", "-C", str(HERE), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), revision], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", help="git revision of the earlier version")
    parser.add_argument("--times", type=int, default=500, help="number of events for each version")
    parser.add_argument("--pause", type=float, default=0.02, help="pause between two events, in seconds")
    options = parser.parse_args()
    ratios = []
    with TemporaryDirectory(prefix="iu-listen-bench-") as top, checkout(options.revision, Path(top) / "tree") as tree:
        Path(top).chmod(0o755)
        trees = {"earlier": tree, "now": HERE}
        for order in (("earlier", "now"), ("now", "earlier")):
            waits = measured({name: trees[name] for name in order}, Path(top) / order[0], options.times, options.pause)
            for name in trees:
                p50, p99 = percentile(waits[name], 0.5), percentile(waits[name], 0.99)
                print(f"{order[0]} first: {name:8} p50 {p50:.2f} ms, p99 {p99:.2f} ms, {len(waits[name])} calls")
            ratios.append(statistics.median(waits["now"]) / statistics.median(waits["earlier"]))
    print(f"ratio of medians: {statistics.geometric_mean(ratios):.3f} (rounds: {ratios[0]:.3f}, {ratios[1]:.3f})")


if __name__ == "__main__":
    main()
