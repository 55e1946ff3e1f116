"""Ids, names of workers, codes of routes and conditions are never truncated, also on a narrow terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import tempfile
from io import StringIO
from types import FrameType
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from cli.command import POISON, REMEDY, environment, execute, on_one_server, rows, run
from iu_listen.cli.layout import Branch, Form, Grid, fitting

WORKER = "iu_outbound_default"
ROUTE = "iu.version_applied.a_route_with_a_long_code"
WIDTHS = [80, 120, 200, None]


@pytest.fixture
def incident(live):
    """Dead letters, a live route with a long code and a waiting delivery, a consumer that has been silent for days."""
    execute(live.dsn, f"""
        {POISON}
        select fn_iu_emit_event('version_applied', 'poison', null, 'x', '{{}}') from generate_series(1, 3);
        select fn_iu_route_worker_run('{WORKER}', 1000);
        {REMEDY};
        insert into iu_outbound_route (route_code, event_domain, event_type, event_stream, target_kind, target_ref,
                                       enabled)
        values ('{ROUTE}', 'iu', 'version_applied', 'update', 'external_endpoint', 'https://hooks.example.org/v1/of/a/shop', true);
        select fn_iu_emit_event('version_applied', 'good', null, 'x', '{{}}');
        select fn_iu_route_worker_run('{WORKER}', 1000);
        insert into iu_consumer_heartbeat (consumer_id, worker_name, host, pid, version, state, started_at, beat_at,
                                           cadence_seconds)
        values (gen_random_uuid(), '{WORKER}', 'shop-consumer-7d9f8b6c5-x2x4z', 4711, '0.1.0', 'idle',
                now() - interval '4 days', now() - interval '95 hours', 5);
        select fn_iu_emit_event('version_applied', 'waits', null, 'x', '{{}}');
        update iu_route_worker_cursor set last_run_at = now() - interval '95 hours';
        alter table dot_config disable trigger user;
        update dot_config set updated_at = now() - interval '95 hours'""")  # fmt: skip
    return live


def _seen(dsn: str, command: list[str], width: int | None) -> str:
    """The output of a command on a terminal of this width; None: to a pipe."""
    if width is None:
        return run(*command, dsn=dsn).out
    with tempfile.TemporaryDirectory(prefix="iu-cli-") as home:
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "iu_listen", *command], stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL,
            env=environment(home, dsn, {"COLUMNS": str(width), "NO_COLOR": "1", "TERM": "dumb"}), cwd=home,
        )  # fmt: skip
        os.close(theirs)
        said = b""
        try:
            while more := os.read(ours, 65536):
                said += more
        except OSError:
            pass  # reading fails when the last process has closed the terminal
        process.wait()
        os.close(ours)
    return said.decode().replace("\r\n", "\n")


@on_one_server
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut(incident, width):
    """Ids, workers, routes and conditions are complete at 80, 120 and 200 columns and without a terminal: fitting()."""
    dsn = incident.dsn
    letters = [str(row[0]) for row in rows(dsn, "select id from iu_route_dead_letter")]
    events = [str(row[0]) for row in rows(dsn, "select distinct event_ref from iu_route_attempt")]
    good = str(rows(dsn, "select id from event_outbox where canonical_address = 'good'")[0][0])
    health = run("health", "--json", dsn=dsn).json
    condition = health["condition_why"] or health["condition"]
    wanted = {
        ("dead-letter", "list"): letters,
        ("dead-letter", "replay", *letters, "--plan"): letters,
        ("attempts",): [*events, ROUTE],
        ("route", "list"): [ROUTE],
        ("cursor", "show"): [WORKER],
        ("status",): [WORKER, ROUTE, condition],
        ("doctor",): ["silent for 3 d 23 h"],
        ("trace", good): [ROUTE],
        ("trace", letters[0]): ["poisoned"],
    }
    for command, words in wanted.items():
        said = _seen(dsn, list(command), width)
        assert "…" not in said, (command, said)
        assert not [line for line in said.splitlines() if cell_len(line) > (width or 200)], (command, said)
        for word in words:
            # Text with blanks may continue on the next line of its column.
            assert all(piece in said for piece in word.split()), (command, word, said)


@on_one_server
@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_tree_keeps_its_structure(incident, width):
    """A row of trace that wraps continues below its own text, and never at the left edge."""
    event = str(rows(incident.dsn, "select event_ref from iu_route_dead_letter limit 1")[0][0])
    lines = _seen(incident.dsn, ["trace", event], width).splitlines()
    begun = next(i for i, line in enumerate(lines) if "└" in line)
    for line in lines[begun:]:
        if line.strip() and "trace id" not in line:
            assert "└" in line or line.startswith("   "), lines


ATOM = st.text(alphabet="abcdefgh-_é鍵", min_size=1, max_size=38)
CELL = st.lists(ATOM, max_size=5).map(" ".join)


@given(data=st.data(), width=st.integers(40, 200), columns=st.integers(1, 8))
def test_no_word_is_lost(data, width, columns):
    """For any text and width, every word of every cell is there and complete, and no line is too long."""
    names = [f"name {i}" for i in range(columns)]
    cells = data.draw(st.lists(st.lists(CELL, min_size=columns, max_size=columns), min_size=1, max_size=3))
    stream = StringIO()
    console = Console(file=stream, width=width, soft_wrap=True, highlight=False)
    console.print(fitting(console, [Form(names, [[Text(c) for c in row] for row in cells])], ""))
    said = stream.getvalue()
    assert all(cell_len(line) <= width for line in said.splitlines())
    words = [word for row in cells for cell in row for word in cell.split() if cell_len(word) <= width - 12]
    assert not [word for word in words if word not in said]


def test_a_branch_goes_on_below_itself():
    """A cell of a tree that wraps keeps its indentation, also if a word is longer than the column."""
    stream = StringIO()
    console = Console(file=stream, width=20)
    cell = Branch("  └ ", "attempt, route a_code_that_is_longer\nfailed")
    console.print(Grid([[cell]], [20], 1))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("  └ attempt")
    assert all(line.startswith("    ") for line in lines[1:])
    assert "".join(line[4:].strip() for line in lines).replace(",", "") == "attempt routea_code_that_is_longerfailed"


@pytest.mark.parametrize("width", [80, 200])
def test_the_work_of_a_long_list_is_bounded(width):
    """A cell costs fewer than 120 calls of Python functions, as a table and as rows below each other.

    The mechanism: a cell that fits its column is printed unchanged. Fails when: each cell is rendered as a document.
    """
    cells = [Text(str(uuid4())), Text(str(uuid4())), *map(Text, ("shop.mail", "3 d 23 h ago", "smtp_550", "missing"))]
    console = Console(file=StringIO(), width=width, soft_wrap=True, highlight=False)
    form = Form([f"name {i}" for i in range(len(cells))], [cells] * 500)
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        console.print(fitting(console, [form], ""))
    finally:
        sys.setprofile(before)
    assert calls < 120 * len(cells) * len(form.rows)
