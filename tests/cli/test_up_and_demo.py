"""run, up and demo on servers of their own: signals end them, and leave no process."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cli.command import refused, run, running, seen
from iu_listen import embedded

pytestmark = pytest.mark.slow

#: Longest time between a signal and the end, in seconds, when there is only the server's own end to wait for.
PROMPT = 5.0
JSON = ("run", "--log-format", "json")
DEMO = ("demo", "--burst", "2000")
README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_while_the_database_is_gone(own_server, number):
    """While its database is down the consumer tries again and logs it; a signal ends it at once, and it reconnects."""
    dsn = own_server.dsn("iu")
    run("apply", "--base", "--no-backup", "a test", dsn=dsn)
    run("gate", "open", "worker", dsn=dsn)
    try:
        with running(*JSON, dsn=dsn) as consumer:
            consumer.until_it_says('"listening"')
            own_server.stop()
            consumer.until_it_says('"session failed"')
            refused(3)("status", dsn=dsn)
            began = time.monotonic()
            assert consumer.end(number) == 0
            assert time.monotonic() - began < PROMPT
        own_server.start()
        with running(*JSON, dsn=dsn) as consumer:
            consumer.until_it_says('"listening"')
            own_server.stop("immediate")
            consumer.until_it_says('"session failed"')
            own_server.start()
            consumer.until_it_says('"listening"', times=2)
            assert run("emit", dsn=dsn).code == 0
            seen(dsn, "select not exists (select from v_iu_event_backlog where backlog > 0)")
            assert consumer.end(number) == 0
    finally:
        own_server.start()
        run("gate", "close", "worker", dsn=dsn)


# -- up and demo -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A directory below /tmp that the server's account can enter; its cluster is created once for all tests here."""
    path = Path(tempfile.mkdtemp(prefix="iu-demo-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        for process in processes(path):
            process.kill()
        shutil.rmtree(path)


def processes(place: Path) -> list[psutil.Process]:
    """All processes with this directory in their command line, working directory or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            words = [*process.cmdline(), process.cwd(), *process.environ().values()]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        if any(str(place) in word for word in words):
            found.append(process)
    return found


def nothing_runs(place: Path) -> None:
    """Assert that no process is left; one that the kernel is removing may be visible for up to a second."""
    deadline = time.monotonic() + 1
    while left := processes(place):
        assert time.monotonic() < deadline, [p.as_dict(["pid", "cmdline"]) for p in left]
        time.sleep(0.01)


def there(place: Path) -> dict[str, str]:
    return {"IU_LISTEN_DATA_DIR": str(place / "data")}


def demo(place: Path) -> str:
    """Run a complete demo, and return its output."""
    done = run(*DEMO, env=there(place), timeout=120)
    assert done.code == 0, done.out + done.err
    nothing_runs(place)
    return done.out


def test_demo(place):
    """demo creates everything, ends by itself with a summary in which every event is routed, and can be repeated."""
    for _ in range(2):
        said = demo(place)
        for words in (
            "PASS",
            "2 000 events written and routed in",
            "demo/customer-busy",
            "unknown customer",
            "replay: queued, then delivered",
            "breaker open",
            "the circuit breaker is closed",
            "Summary",
        ):
            assert words in said
        figures = {line[:43].strip() for line in said.partition(" measurement")[2].splitlines() if line.strip()}
        excerpt = README.read_text().partition("```text\n measurement")[2].partition("```")[0]
        assert {line[:43].strip() for line in excerpt.splitlines() if line.strip()} - {"─" * 42} == figures - {"─" * 42}
        last = next(line for line in said.splitlines() if "events written / events routed" in line)
        written, _, decided = last.partition("events routed")[2].partition("/")
        assert written.strip() == decided.strip() != ""


PHASES = (
    "1. An embedded PostgreSQL server",
    "2. The base",
    "3. The probe",
    "4. Single events",
    "5. A burst",
    "6. A live route",
    "7. The receiver stops",
    "8. The consumer is killed",
    "9. A new consumer is started",
)


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        pytest.param(phase, number, marks=[pytest.mark.wide] if (place + number) % 2 else [])
        for place, phase in enumerate(PHASES)
        for number in (signal.SIGINT, signal.SIGTERM)
    ],
)
def test_demo_that_is_interrupted(place, phase, number):
    """A signal ends demo in every phase, and no process is left: no consumer, no server.

    Fails when: the handler of SIGTERM raises; then about one time in ten, because it may interrupt the C code of the
    driver.
    """
    with running(*DEMO, env=there(place)) as command:
        command.until_it_says(phase)
        assert command.end(number, timeout=20) == 128 + number
    nothing_runs(place)


@pytest.mark.parametrize("burst", [1, 7, 5003])
def test_a_burst_is_as_large_as_asked(place, burst):
    """--burst 5003 writes and reports 5 003. Fails when: the remainder of the division among writers is lost."""
    done = run("demo", "--burst", str(burst), env=there(place), timeout=120)
    assert f"{burst:,} events written and routed in".replace(",", " ") in done.out
    nothing_runs(place)


def test_two_demos_at_once(place):
    """A second demo on the same server is refused by a session lock, and the first one continues."""
    with running(*DEMO, env=there(place)) as command:
        command.until_it_says("4. Single events")
        refused(1, "another demo is running")(*DEMO, env=there(place))
        assert command.ended(120) == 0
        assert "Summary" in command.said
    nothing_runs(place)


def test_demo_after_all_that(place):
    """demo works after the interrupted runs."""
    assert "Summary" in demo(place)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up(place, number):
    """up prepares everything and routes; other commands use its server; a signal ends consumer and server with 0."""
    with running("up", "--log-format", "json", env=there(place)) as command:
        command.until_it_says("The service is running")
        command.until_it_says('"listening"')
        event = run("emit", "--json", env=there(place)).json["events"][0]
        with embedded.running(place / "data") as server:
            seen(server.dsn("iu"), "select count(*) = 1 from iu_route_attempt where event_ref = $1", event)
        assert run("status", "--json", env=there(place)).json["gates"][1]["open"] is True
        assert run("doctor", env=there(place)).code == 0
        began = time.monotonic()
        assert command.end(number) == 0
        assert time.monotonic() - began < PROMPT
    nothing_runs(place)
    # Without a running server, a command starts it for its own duration.
    assert run("status", env=there(place)).code == 0
    nothing_runs(place)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_that_is_interrupted_early(number):
    """A signal while up prepares its database leaves no process, and the next up completes the work."""
    path = Path(tempfile.mkdtemp(prefix="iu-up-", dir="/tmp"))
    path.chmod(0o755)
    try:
        with running("up", "--log-format", "json", env=there(path)) as command:
            command.until_it_says("gate 4")
            assert command.end(number, timeout=20) == 128 + number
        nothing_runs(path)
        with running("up", "--log-format", "json", env=there(path)) as command:
            command.until_it_says('"listening"')
            assert command.end() == 0
        nothing_runs(path)
    finally:
        for process in processes(path):
            process.kill()
        shutil.rmtree(path)
