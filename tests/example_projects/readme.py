"""Runs an example project as a reader of its README.md does: the commands of the page, in one shell, in a copy."""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

import psutil
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cli.command import environment
from conventions.files import ROOT
from examples.page import fits

EXAMPLES = ROOT / "examples"
#: The pages have this in place of the connection string, which only their reader knows.
ANY_DSN = "postgresql://…"
INSTALL = "pip install -r requirements.txt"

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on PATH")


@dataclass(frozen=True)
class Command:
    """A command of a page, and the lines of its output that the page shows."""

    text: str
    shown: tuple[str, ...]


def commands(page: str) -> list[Command]:
    """The commands of the console blocks of a page, in their order."""
    found = []
    for block in re.findall(r"^```console\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            text, *shown = part.splitlines()
            found.append(Command(text, tuple(line for line in shown if line.strip())))
    return found


def missing_requirements(folder: Path) -> set[str]:
    """The modules that files of a project import, and that no package of its requirements.txt provides."""
    listed = {canonicalize_name(Requirement(line).name) for line in (folder / "requirements.txt").read_text().split()}
    known = packages_distributions()
    imported = {
        name.partition(".")[0]
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text()))
        for name in (
            [alias.name for alias in node.names] if isinstance(node, ast.Import)
            else [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        )
    }  # fmt: skip
    own = {path.stem for path in folder.iterdir()} | sys.stdlib_module_names
    # An editable installation has no list of its modules: there the name of the package is that of its module.
    return {n for n in imported - own if not listed & {canonicalize_name(p) for p in known.get(n, [n])}}


class Project:
    """A copy of an example in a directory of its own, and the shell in which its commands run.

    Args:
        name: The folder of the example.
        home: An empty directory.
        words: Replacements in the page and in the files of the copy: ports, and the connection string.
    """

    def __init__(self, name: str, home: Path, words: Mapping[str, str]) -> None:
        self.folder = home / name
        shutil.copytree(EXAMPLES / name, self.folder, ignore=shutil.ignore_patterns("__pycache__"))
        for file in self.folder.rglob("*.*"):
            text = file.read_text()
            for word, replacement in words.items():
                text = text.replace(word, replacement)
            # A server that runs already on a usual port is not one of the test, and must not be reached.
            used = set(re.findall(r"(?:127\.0\.0\.1:|localhost:|--port )(\d+)", text))
            assert used <= set(words.values()), f"{file.name} has a port that the test does not replace: {used}"
            file.write_text(text)
        self.commands = commands((self.folder / "README.md").read_text())
        self._log = home / "log"
        # On a terminal, curl shows no progress of an answer that it prints.
        (home / ".curlrc").write_text("silent\nshow-error\n")
        clean = environment(str(home))
        clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"
        with self._log.open("w") as log:
            self._shell = subprocess.Popen(
                ["bash", "--noprofile", "--norc"], cwd=self.folder, env=clean, text=True,
                stdin=subprocess.PIPE, stdout=log, stderr=log,
            )  # fmt: skip

    def play(
        self, commands: Sequence[Command], services: Mapping[str, str] | None = None, repeated: tuple[str, ...] = ()
    ) -> None:
        """Execute commands of the page, and compare their outputs with the page.

        Args:
            commands: The commands, in their order.
            services: The words with which a command in the background says that it is ready, by its begin.
            repeated: Begins of commands that are repeated until their output is that of the page; of all others, the
                log has these lines at once or a little later.
        """
        starting: list[str] = []
        began = 0
        for command in commands:
            if command.text == INSTALL:
                assert missing_requirements(self.folder) == set()
            elif command.text.endswith("&"):
                began = began if starting else self._log.stat().st_size
                starting += [words for begin, words in (services or {}).items() if command.text.startswith(begin)]
                self.run(command.text)
            else:
                for words in starting:
                    self._wait_for(words, began, starting.count(words))
                starting.clear()
                self._run_until_shown(command, again=command.text.startswith(repeated))

    def _run_until_shown(self, command: Command, *, again: bool) -> None:
        """Execute a command, once or again and again, until the log has the lines that the page shows."""
        until = time.monotonic() + 15
        began = self._log.stat().st_size
        self.run(command.text)
        while not _shows(said := self._said(began), command.shown):
            shown = "\n".join(command.shown)
            assert time.monotonic() < until, f"{command.text} prints\n{said}\nand the page shows\n{shown}"
            time.sleep(0.02)
            if again:
                began = self._log.stat().st_size
                self.run(command.text)

    def run(self, command: str) -> str:
        """Execute a command, and return everything that was printed until its end; it must succeed."""
        assert self._shell.stdin is not None
        began = self._log.stat().st_size
        end = f"=== the end of command {began}:"
        self._shell.stdin.write(f"{command}\nprintf '\\n%s %s\\n' {shlex.quote(end)} $?\n")
        self._shell.stdin.flush()
        output, _, code = self._wait_for(end, began).partition(f"\n{end}")
        assert code.startswith(" 0\n"), f"{command}\n{output}\nexit code{code}"
        return output

    @property
    def said(self) -> str:
        """Everything that the commands have printed."""
        return self._said(0)

    def _said(self, began: int) -> str:
        return self._log.read_bytes()[began:].decode()

    def until_it_says(self, words: str) -> None:
        """Wait until a command, also one in the background, has printed these words."""
        self._wait_for(words, 0)

    def _wait_for(self, words: str, began: int, times: int = 1, seconds: float = 30) -> str:
        """Wait until lines with these words stand in the log after this place; return the log from there on."""
        until = time.monotonic() + seconds
        while len(re.findall(f"{re.escape(words)}.*\n", said := self._said(began))) < times:
            assert time.monotonic() < until, f"not said within {seconds} s: {words}\n{said}"
            time.sleep(0.02)
        return said

    def close(self) -> None:
        """End the shell, and every process that a command has left."""
        left = psutil.Process(self._shell.pid).children(recursive=True)
        for process in [*left, self._shell]:
            # A process may end by itself between the two lines.
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._shell.communicate()


def _shows(output: str, shown: tuple[str, ...]) -> bool:
    """Whether the output contains the shown lines, in their order; other lines may be between them."""
    lines = iter(output.splitlines())
    return all(any(fits(line, one) for one in lines) for line in shown)


@contextmanager
def project(name: str, home: Path, dsn: str, words: Mapping[str, str] | None = None) -> Iterator[Project]:
    """A project for the length of a block; ``dsn`` replaces the connection string of its page."""
    made = Project(name, home, {ANY_DSN: shlex.quote(dsn)} | dict(words or {}))
    try:
        yield made
    finally:
        made.close()
