"""The first minute: the commands and the file of docs/tutorial/first-event.md, from the wheel, in an empty directory."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from cli.command import wait_for_words
from conventions.files import ROOT

PAGE = (ROOT / "docs/tutorial/first-event.md").read_text()
#: The text of the page before the section about production.
MINUTE = PAGE.partition("## 5.")[0]


def blocks(language: str) -> list[str]:
    """The blocks of the first minute in this language."""
    return re.findall(rf"```{language}\n(.*?)```", MINUTE, re.DOTALL)


def commands() -> list[str]:
    """The commands of the first minute."""
    return [line.removeprefix("$ ") for block in blocks("console") for line in block.splitlines()]


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell in which the wheel is installed: its first command without an index."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("iu_listen-*.whl")
    home = tmp_path / "environment"
    venv.create(home, system_site_packages=False, with_pip=False)
    (site,) = home.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    libraries = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    script = home / "bin" / "iu-listen"
    script.write_text(f"#!{home}/bin/python\nimport sys\nfrom iu_listen.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return {"PATH": f"{home}/bin:/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": f"{site}:{libraries}"}


def test_the_first_minute_is_short():
    """At most four commands, no SQL, and one file of at most fifteen lines."""
    assert len(commands()) <= 4
    (handler,) = blocks("python")
    assert len([line for line in handler.splitlines() if line.strip()]) <= 15
    assert not re.search(r"\b(insert into|update|select)\b", MINUTE)


@pytest.mark.slow
def test_the_first_minute(tmp_path: Path, installed: dict[str, str]):
    """The commands of the page, one after the other, bring the event to the handler, which prints the promised line.

    Fails when: a step is missing from the page, or the wheel lacks a file.
    """
    folder = tmp_path / "empty"
    folder.mkdir()
    (handler,) = blocks("python")
    (folder / "shop.py").write_text(handler)
    _, develop, emit = commands()
    log = folder / "log"
    with log.open("w") as file:
        process = subprocess.Popen(shlex.split(develop), cwd=folder, env=installed, stdout=file, stderr=file)
        try:
            wait_for_words(log, "listening")
            done = subprocess.run(
                shlex.split(emit), cwd=folder, env=installed, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stdout + done.stderr
            wait_for_words(log, "mail about an order of 5")
        finally:
            process.terminate()
            process.wait(30)
