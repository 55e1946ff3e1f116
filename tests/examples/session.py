"""Executes the examples of a page, one after another, in one session: a directory, a database, a running service."""

from __future__ import annotations

import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cli.command import Running, environment, execute
from cli.fork_server import born
from clusters import place
from conftest import TestServer
from examples.page import ID, SKIPPED, Command, Example, anew, examples, fits, same
from iu_listen import embedded

#: Width of tables, in characters.
WIDTH = "150"
#: Longest wait for an output, in seconds: of a service, and of a command that only reads.
PATIENCE = {"service": 30.0, "read": 5.0}
#: Commands that only read. They are repeated until the consumer has done what the page shows.
READING = {"status", "attempts", "trace", "doctor"}
#: Commands that prepare the shell of the reader; the session has done this already.
DONE = ("export ", "python3 -m venv ", "pip install ", ". ")
#: Names that a page has for the machine of the examples.
HOST, PID = "vm", "7730"


@dataclass
class Session:
    """The session of one page.

    Attributes:
        server: The server of the databases of the examples.
        home: The current directory of the commands.
        stack: What ends with the session.
        env: Variables of the commands.
        dsn: The connection string of the database, for commands; None: they use the embedded server of the page.
        psql_dsn: The same, for SQL; None: that of the commands.
        service: The running consumer.
        given: Ids of the database that commands of the page name before any output shows them, in this order.
        ids: The ids of the page, by those of the database.
    """

    server: TestServer
    home: Path
    stack: ExitStack
    env: dict[str, str] = field(default_factory=lambda: {"COLUMNS": WIDTH})
    dsn: str | None = None
    psql_dsn: str | None = None
    service: Running | None = None
    given: list[str] = field(default_factory=list)
    ids: dict[str, str] = field(default_factory=dict)
    _code: int = 0

    # -- for preparations ----------------------------------------------------------------------------------------

    def database(self, kind: str, name: str = "iu") -> str:
        """Create a database from a template, and use it from now on."""
        self.stop()
        self.ids = {}
        self.server.execute(
            f"drop database if exists {name} with (force)",
            f"create database {name} template {self.server.template(kind)} strategy file_copy",
        )
        self.dsn = self.server.dsn(name)
        return self.dsn

    def execute(self, script: str) -> None:
        """Execute SQL on the database."""
        execute(self.sql_dsn, script)

    @property
    def sql_dsn(self) -> str:
        """The connection string for SQL."""
        dsn = self.dsn or self.psql_dsn
        assert dsn is not None
        return dsn

    def listen(self, *args: str) -> str:
        """Run one command of iu-listen to its end; return its output."""
        done = born(
            args, environment(str(self.home), self.dsn, self.env), str(self.home), 120
        )  # fmt: skip
        assert "Traceback" not in done.stderr, done.stderr
        self._code = done.returncode
        return done.stdout + done.stderr

    def start(self, *args: str) -> Running:
        """Start a command that does not end by itself."""
        self.stop()
        self.service = Running(*args, dsn=self.dsn, env=self.env)
        self.stack.callback(self.service.close)
        return self.service

    def run(self) -> Running:
        """Start the consumer, and wait until it listens and works."""
        service = self.start("run", "--log-format", "console")
        for line in ("listening", "working"):
            service.until_it_says(line)
        return service

    def stop(self) -> None:
        """End the consumer, if one runs."""
        if self.service is not None and self.service.process.poll() is None:
            self.service.end()
        self.service = None

    # -- commands of a page --------------------------------------------------------------------------------------

    def output(self, command: Command) -> list[str]:
        """Execute a command of a page; return its output."""
        text = ID.sub(self._real, command.text[2:])
        words = shlex.split(text, comments=True)
        if text.startswith(DONE):
            return []
        if text == "echo $?":
            return [str(self._code)]
        if words[:2] == ["kill", "-9"]:
            assert self.service is not None
            self.service.end(signal.SIGKILL)
            return []
        if words[0] == "make":
            words[0] = "iu-listen"
        assert words[0] == "iu-listen", f"an example has no command {words[0]}: {text}"
        if words[1] in {"up", "run"}:
            self.start(*words[1:], "--log-format", "console")
            shown = [SKIPPED, *(command.shown or ["[info     ] working …"]), SKIPPED]
            return self.logged(shown)
        for last in self._tries(words[1]):
            output = [self._canonical(line) for line in self.listen(*words[1:]).split("\n")]
            if last or not command.shown or same(command.shown, output):
                break
        assert command.shown or self._code == 0, f"{text} ended with {self._code}:\n" + "\n".join(output)
        return output if command.shown else []

    def logged(self, shown: list[str]) -> list[str]:
        """Wait until the service has written these lines; return the part of its output that shows them."""
        assert self.service is not None
        until = time.monotonic() + PATIENCE["service"]
        while True:
            lines = [self._canonical(line) for line in self.service.said.split("\n")]
            if same(shown, lines) or self.service.process.poll() is not None or time.monotonic() > until:
                return lines
            time.sleep(0.02)

    def _tries(self, name: str) -> Iterator[bool]:
        """For each attempt of a command whether it is the last one."""
        until = time.monotonic() + PATIENCE["read"]
        while self.service and name in READING and time.monotonic() < until:
            yield False
            time.sleep(0.1)
        yield True

    def _real(self, found: re.Match[str]) -> str:
        """The id in the database for an id of the page."""
        for real, shown in self.ids.items():
            if shown == found[0]:
                return real
        real = self.given.pop(0) if self.given else found[0]
        self.ids[real] = found[0]
        return real

    def _canonical(self, line: str) -> str:
        """A line of an output with the names that pages have for this machine."""
        line = re.sub(r"\b[\w.-]+:\d{3,}(?=\s)", lambda found: f"{HOST}:{PID}".ljust(len(found[0])), line)
        line = line.replace(self.env.get("IU_LISTEN_DATA_DIR", ".iu-listen"), ".iu-listen")
        return re.sub(r"(?:/[\w.+-]+)+/(?=psql|pg_dump)", "…/", line)

    # -- blocks --------------------------------------------------------------------------------------------------

    def new_lines(self, example: Example, preparations: dict[str, Callable[[Session], object]]) -> list[str]:
        """Execute an example; return its lines, with the output that was found in place of an output that differs."""
        if example.preparation is not None:
            assert example.preparation in preparations, f"there is no preparation {example.preparation!r}"
            preparations[example.preparation](self)
        if example.language == "sql":
            self.execute("\n".join(example.lines))
            return example.lines
        if example.language == "text":
            shown = [SKIPPED, *example.lines, SKIPPED]
            return self._kept(shown, self.logged(shown))[1:-1]
        result = []
        for command in example.commands():
            output = self.output(command)
            result.append(command.text)
            if command.shown:
                if command.text.split()[1] in {"up", "run"}:
                    command.shown.append(SKIPPED)
                    result += self._kept(command.shown, output)[:-1]
                else:
                    result += self._kept(command.shown, output)
        return result

    def _kept(self, shown: list[str], output: list[str]) -> list[str]:
        if not same(shown, output):
            return anew(shown, output, self.ids)
        position = 0
        for line in shown:
            for number in range(position, len(output)):
                if line.strip() != SKIPPED and fits(line, output[number]):
                    for real, old in zip(ID.findall(output[number]), ID.findall(line), strict=False):
                        self.ids.setdefault(real, old)
                    position = number + 1
                    break
        return shown


@contextmanager
def server() -> Iterator[TestServer]:
    """A server for the databases of all pages."""
    with place() as root, embedded.running(root, 18, durable=False) as running:
        yield TestServer(running.dsn("postgres"), running)


def rewritten(text: str, server: TestServer, preparations: dict[str, Callable[[Session], object]]) -> str:
    """Execute the examples of a page; return the page with their output."""
    lines = text.split("\n")
    with ExitStack() as stack, place() as home:
        session = Session(server, home, stack)
        stack.callback(session.stop)
        shift = 0
        for example in examples(text):
            new = session.new_lines(example, preparations)
            begin = example.begin + shift
            lines[begin : begin + len(example.lines)] = new
            shift += len(new) - len(example.lines)
    return "\n".join(lines)
