"""Helpers for the tests of the command line: run commands, watch long ones, compare the state of a database."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from cli.fork_server import born, may_be_born
from support import connected

ROUTE = "iu.version_applied.workflow"
REPOSITORY = Path(__file__).parents[2]

#: For tests of the command line that do not depend on the version of the server.
on_one_server = pytest.mark.parametrize("server", ["pg18"], indirect=True)

#: A trigger that rejects the dry-run attempt of events with this address, so that each becomes a dead letter.
POISON = """
    create function poison() returns trigger language plpgsql as $$
    begin
        if new.status = 'dry_run' and exists (
            select from public.event_outbox o where o.id = new.event_ref and o.canonical_address = 'poison') then
            raise exception 'poisoned';
        end if;
        return new;
    end $$;
    create trigger poison before insert on iu_route_attempt for each row execute function poison();
"""
REMEDY = "drop trigger poison on iu_route_attempt; drop function poison()"


# -- commands ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Done:
    """The result of a command that has ended; ``seconds`` is its duration."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        """Standard output, parsed as JSON."""
        return json.loads(self.out)


def environment(home: str, dsn: str | None = None, env: Mapping[str, str] | None = None) -> dict[str, str]:
    """An environment that contains no settings except those of the test."""
    clean = {"PATH": os.environ["PATH"], "HOME": home, "LANG": "C.UTF-8", "TERM": "xterm"}
    return clean | ({"IU_LISTEN_DSN": dsn} if dsn else {}) | dict(env or {})


def run(*args: str, dsn: str | None = None, env: Mapping[str, str] | None = None, timeout: float = 60) -> Done:
    """Run one command to its end, in an empty directory and a clean environment. A traceback is an error."""
    with tempfile.TemporaryDirectory(prefix="iu-cli-") as home:
        began = time.monotonic()
        whole = environment(home, dsn, env)
        if may_be_born(env or {}):
            done = born(args, whole, home, timeout)
        else:
            done = subprocess.run(
                [sys.executable, "-m", "iu_listen", *args],
                env=whole, cwd=home, capture_output=True, text=True, timeout=timeout, check=False,
            )  # fmt: skip
        seconds = time.monotonic() - began
        assert not list(Path(home).iterdir()), f"{args} left something behind in the current directory"
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.returncode, done.stdout, done.stderr, seconds)


def refused(code: int, *says: str, **named: Any) -> Callable[..., Done]:
    """Return a function that runs a command and asserts its exit code and these texts in its output."""

    def must(*args: str, **more: Any) -> Done:
        done = run(*args, **named, **more)
        assert done.code == code, (done.code, done.out, done.err)
        for words in says:
            assert words in done.out + done.err, (words, done.out, done.err)
        return done

    return must


class Running:
    """A command that runs in the background, and its output so far, both streams together."""

    def __init__(
        self, *args: str, dsn: str | None = None, env: Mapping[str, str] | None = None, background: bool = False
    ) -> None:
        self._home = tempfile.mkdtemp(prefix="iu-cli-")
        self._said: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "iu_listen", *args],
            env=environment(self._home, dsn, env), cwd=self._home, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            # A shell ignores SIGINT in a job that it starts with &.
            preexec_fn=(lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)) if background else None,  # noqa: PLW1509
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self._said.append(line)
                self._changed.notify_all()
        with self._changed:
            self._said.append("")
            self._changed.notify_all()

    @property
    def said(self) -> str:
        """The output so far."""
        return "".join(self._said)

    def until_it_says(self, words: str, times: int = 1, timeout: float = 30) -> float:
        """Wait until the output contains these words; return the time of that, by the monotonic clock."""
        with self._changed:
            found = self._changed.wait_for(
                lambda: self.said.count(words) >= times or (self._said and not self._said[-1]), timeout
            )
        assert found, f"not said within {timeout} s: {words}\n{self.said}"
        assert self.said.count(words) >= times, f"it ended without saying: {words}\n{self.said}"
        return time.monotonic()

    def ended(self, timeout: float = 15) -> int:
        """Wait until the command ends; return its exit code."""
        code = self.process.wait(timeout)
        self._reader.join(timeout)
        assert "Traceback" not in self.said, self.said
        return code

    def end(self, number: int = signal.SIGTERM, timeout: float = 15) -> int:
        """Send a signal and wait until the command ends; return its exit code."""
        self.process.send_signal(number)
        return self.ended(timeout)

    def close(self) -> None:
        """Leave no process and no directory, whatever happened before."""
        if self.process.poll() is None:
            for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        self.process.wait()
        # Only a process that the command has left behind can keep its output open.
        self._reader.join(10)
        assert not self._reader.is_alive(), "its output is still open: it has left a process behind"
        assert self.process.stdout is not None
        self.process.stdout.close()
        shutil.rmtree(self._home)


@contextmanager
def running(*args: str, **how: Any) -> Iterator[Running]:
    """Run a command for the length of a block; the arguments are those of Running."""
    command = Running(*args, **how)
    try:
        yield command
    finally:
        command.close()


def wait_for_words(log: Path, words: str, seconds: float = 60) -> None:
    """Wait until a file contains these words."""
    until = time.monotonic() + seconds
    while words not in log.read_text():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)


# -- a changed copy of iu-listen ---------------------------------------------------------------------------------


class Tree:
    """A copy of the modules and of sql/ that a test may change."""

    def __init__(self, root: Path) -> None:
        self.root = root
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / "src", root / "src", ignore=ignore)
        shutil.copytree(REPOSITORY / "sql", root / "sql", ignore=ignore)

    @property
    def env(self) -> dict[str, str]:
        """Environment variables that make a command run from this copy."""
        return {"PYTHONPATH": str(self.root / "src"), "PYTHONDONTWRITEBYTECODE": "1"}

    def edit(self, file: str, old: str, new: str) -> None:
        """Replace a text that occurs exactly once in the file."""
        path = self.root / file
        text = path.read_text()
        assert text.count(old) == 1, f"{old!r} is {text.count(old)} times in {file}"
        path.write_text(text.replace(old, new))


# -- databases ---------------------------------------------------------------------------------------------------


def ok(*args: str, dsn: str) -> Done:
    """Run one command, which must succeed."""
    done = run(*args, dsn=dsn)
    assert done.code == 0, done.out + done.err
    return done


def execute(dsn: str, script: str) -> None:
    """Execute an SQL script."""

    async def go() -> None:
        async with connected(dsn) as connection:
            await connection.execute(script)

    asyncio.run(go())


def rows(dsn: str, query: str, *args: Any) -> list[asyncpg.Record]:
    """Run a query, and return its rows."""

    async def go() -> list[asyncpg.Record]:
        async with connected(dsn) as connection:
            return await connection.fetch(query, *args)

    return asyncio.run(go())


def value(dsn: str, query: str, *args: Any) -> Any:
    """Return the single value of a query."""
    return rows(dsn, query, *args)[0][0]


def seen(dsn: str, query: str, *args: Any, timeout: float = 15) -> Any:
    """Repeat a query every 10 ms until its single value is true; return that value."""

    async def go() -> Any:
        async with connected(dsn) as connection:
            deadline = time.monotonic() + timeout
            while not (answer := await connection.fetchval(query, *args)):
                assert time.monotonic() < deadline, f"not seen within {timeout} s: {query}"
                await asyncio.sleep(0.01)
            return answer

    return asyncio.run(go())


@contextmanager
def holding(dsn: str, script: str) -> Iterator[None]:
    """Keep a transaction of another session open for the length of a block."""
    loop = asyncio.new_event_loop()
    connection = loop.run_until_complete(asyncpg.connect(dsn))
    try:
        loop.run_until_complete(connection.execute(f"begin; {script}"))
        yield
    finally:
        connection.terminate()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


#: Everything in schema public that a CREATE, ALTER or COMMENT can change.
CATALOGUE = """
    select t.line
      from (select format('class %s %s %s: %s', k.oid::regclass, k.relkind, k.reloptions,
                          obj_description(k.oid, 'pg_class'))
              from pg_class k where k.relnamespace = 'public'::regnamespace
            union all
            select format('column %s.%s %s %s %s: %s', a.attrelid::regclass, a.attname,
                          format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid),
                          col_description(a.attrelid, a.attnum))
              from pg_attribute a
              join pg_class k on k.oid = a.attrelid and k.relnamespace = 'public'::regnamespace
              left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
             where a.attnum > 0 and not a.attisdropped and k.relkind in ('r', 'v')
            union all
            select format('constraint %s %s %s %s: %s', c.conrelid::regclass, c.conname, pg_get_constraintdef(c.oid),
                          c.convalidated, obj_description(c.oid, 'pg_constraint'))
              from pg_constraint c where c.connamespace = 'public'::regnamespace
            union all
            select format('index %s %s', pg_get_indexdef(i.indexrelid), i.indisvalid)
              from pg_index i join pg_class k on k.oid = i.indexrelid and k.relnamespace = 'public'::regnamespace
            union all
            select format('trigger %s %s %s: %s', g.tgrelid::regclass, pg_get_triggerdef(g.oid), g.tgenabled,
                          obj_description(g.oid, 'pg_trigger'))
              from pg_trigger g where not g.tgisinternal
            union all
            select format('function %s %s %s %s %s %s: %s', p.oid::regprocedure, p.prosrc, p.proconfig, p.provolatile,
                          p.prosecdef, p.proacl, obj_description(p.oid, 'pg_proc'))
              from pg_proc p where p.pronamespace = 'public'::regnamespace
            union all
            select format('view %s %s', v.viewname, v.definition) from pg_views v where v.schemaname = 'public') t(line)
     order by t.line
"""


def catalogue(dsn: str) -> list[str]:
    """Every object of the database, one line of text each."""
    return [row[0] for row in rows(dsn, CATALOGUE)]


def portrait(dsn: str) -> dict[str, list[str]]:
    """The state of the database: its objects and all rows. Two equal portraits mean that nothing was changed."""

    async def go() -> dict[str, list[str]]:
        async with connected(dsn) as connection:
            found = {"": [row[0] for row in await connection.fetch(CATALOGUE)]}
            for table in await connection.fetch("select tablename from pg_tables where schemaname = 'public'"):
                name = table["tablename"]
                content = await connection.fetch(f'select t::text from public."{name}" t order by 1')
                found[name] = [row[0] for row in content]
            return found

    return asyncio.run(go())


def kinds(catalogue: list[str]) -> dict[str, set[str]]:
    """Names of tables, views, functions and other objects in a catalogue, by kind."""
    found: dict[str, set[str]] = {}
    relations = {"r": "table", "v": "view", "S": "sequence", "i": "index", "c": "type"}
    for line in catalogue:
        # The name of a function includes its argument types, and the name of a type may have several words.
        kind, name, *rest = re.findall(r"\S+\([^)]*\)|\S+", line)
        found.setdefault(relations[rest[0]] if kind == "class" else kind, set()).add(name)
    return found
