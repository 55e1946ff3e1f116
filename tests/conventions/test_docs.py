"""The documents are complete compared with the code, and every link leads to an existing place."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from pkgutil import resolve_name

import pytest
from cyclopts import App

import iu_listen
from iu_listen.cli import app
from iu_listen.install.preflight import PREFLIGHT_CHECKS
from iu_listen.install.probe import SCENARIOS
from iu_listen.model import observation
from iu_listen.model.routing import State, Wake
from iu_listen.model.settings import PREFIX, Settings
from iu_listen.postgres.sqlfiles import all_files, base_files, package_files
from storm import faults_heavy, faults_internal  # noqa: F401 they enter their faults into the table
from storm.faults import FAULTS
from storm.transaction_kinds import KINDS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for folder in ("docs", "sql", "bench", "deploy", "examples", "tests")
    for page in (ROOT / folder).rglob("*.md")
) + sorted(ROOT.glob("*.md"))  # fmt: skip

#: Options of every command; commands.md describes them once, at its top.
COMMON = {"--dsn", "--json", "--help", "--version"}


def page(name: str) -> str:
    return (ROOT / name).read_text()


def section(text: str, heading: str) -> str:
    """The text under a heading, up to the next heading of its level or above."""
    level = heading.partition(" ")[0]
    found = re.search(rf"^{re.escape(heading)}$\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1] if found else ""


def anchors(text: str) -> set[str]:
    """The anchors of the headings."""
    heads = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def commands(group: App, path: str = "iu-listen") -> Iterator[tuple[str, set[str]]]:
    """Every command with the names of its options."""
    for name in group:
        if name.startswith("-"):
            continue
        sub = group[name]
        if sub.default_command is None:
            yield from commands(sub, f"{path} {name}")
        else:
            arguments = sub.assemble_argument_collection()
            yield f"{path} {name}", {n for a in arguments for n in a.names if n.startswith("--")} - COMMON


def described(text: str) -> dict[str, str]:
    """The default of each setting in a table of the reference, by its variable."""
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| [^|]* \| (?:`([^`]*)`)? *\|", text, re.MULTILINE)
    return {f"{name} {variable}": default for name, variable, default in rows}


def test_every_setting_is_documented():
    """settings.md names every setting with its variable and its default, and no other."""
    expected = {}
    for f in fields(Settings):
        default = "" if f.default is None else str(f.default).lower() if isinstance(f.default, bool) else str(f.default)
        expected[f"{f.name} {PREFIX}{f.name.upper()}"] = default

    assert expected == described(page("docs/reference/settings.md"))


def test_every_range_is_documented():
    """settings.md gives the meaning of every setting, and its range or choices."""
    lines = {line.split("`")[1]: line for line in page("docs/reference/settings.md").splitlines() if line[:3] == "| `"}
    missing = []
    for f in fields(Settings):
        data = f.metadata
        wanted = [data["doc"]]
        wanted += [f"{data['low']:g} to {data['high']:.10g}"] if data["low"] is not None else []
        wanted += [", ".join(map(str, data["choices"]))] if data["choices"] else []
        missing += [f"{f.name}: {w}" for w in wanted if w not in lines[f.name]]

    assert missing == []


def test_every_command_and_option_is_documented():
    """commands.md has a section for every command, and in it every option of that command and no other."""
    text = page("docs/reference/commands.md")
    expected = dict(commands(app))
    sections = {name: section(text, f"### {name}") for name in expected}
    # Options are in the first column of the table of their command.
    documented = {
        name: {o for row in re.findall(r"^\| (`--.*?) \|", words, re.MULTILINE) for o in re.findall(r"--[\w-]+", row)}
        for name, words in sections.items()
    }

    assert [name for name, words in sections.items() if not words.strip()] == []
    assert expected == documented
    assert set(expected) == set(re.findall(r"^### (iu-listen .+)$", text, re.MULTILINE))


def created() -> Iterator[tuple[str, str]]:
    """Kind and name of every object that the SQL files create."""
    for migration in [*base_files(), *package_files()]:
        text = re.sub(r"--.*$", "", migration.text(), flags=re.MULTILINE)
        pattern = (
            r"^create (?:or replace )?(?:constraint )?(table|type|sequence|function|view|trigger|index)"
            r"(?: concurrently)?(?: if not exists)?\s+(?:public\.)?(\w+)"
        )
        yield from re.findall(pattern, text, re.MULTILINE | re.IGNORECASE)
        for table, column in re.findall(r"^comment on column public\.(\w+)\.(\w+)", text, re.MULTILINE):
            yield "column", f"{table}.{column}"


def test_every_object_is_documented():
    """sql.md names every table, type, sequence, function, view, trigger and index that the SQL files create."""
    text = page("docs/reference/sql.md")

    assert [
        f"{kind} {name}" for kind, name in created() if kind != "column" and not re.search(rf"`{name}\b", text)
    ] == []


def test_every_column_is_documented():
    """sql.md has every column, under its table or its composite type."""
    text = page("docs/reference/sql.md")
    added = section(text, "### Columns of `event_outbox`")
    missing = []
    for kind, name in created():
        if kind == "column":
            table, column = name.split(".")
            columns = section(text, f"### Table `{table}`") + section(text, f"### Type `{table}`")
            if f"| `{column}` |" not in columns + (added if table == "event_outbox" else ""):
                missing.append(name)

    assert missing == []


def test_every_file_of_the_package_is_documented():
    """sql.md names every file of the package."""
    text = page("docs/reference/sql.md")

    assert [m.name for m in all_files() if m.name not in text] == []


def test_every_check_is_documented():
    """verification.md has every W check with its label, every probe with its figures, and the eight gates."""
    text = page("docs/reference/verification.md")
    checks = []
    for migration in all_files():
        for kind in ("up", "verify"):
            if (kind == "verify" or migration.number == "070") and migration.path(kind).exists():
                checks += re.findall(r"select '(W\d+)', '([^']+)'", migration.text(kind))
    wanted = [f"| {id} | {label} |" for id, label in checks]
    wanted += [f"| {s.id} | {s.title} | {s.expected} |" for s in SCENARIOS]
    wanted += [f"| {number} | {name} |" for number, (name, _) in enumerate(PREFLIGHT_CHECKS, start=1)]

    assert len(checks) >= 16
    assert [w for w in wanted if w not in text] == []


def test_every_observation_is_documented():
    """heartbeats-and-states.md has every observation, every state and every wake-up reason."""
    text = page("docs/reference/heartbeats-and-states.md")
    names = [c.__name__ for c in observation.Observation.__args__] + [s.value for s in (*State, *Wake)]

    assert [name for name in names if f"| `{name}`" not in text] == []


def test_every_log_line_is_documented():
    """heartbeats-and-states.md has every line that LogObserver can write."""
    text = page("docs/reference/heartbeats-and-states.md")
    source = page("src/iu_listen/telemetry/logs.py")
    lines = re.findall(r"log\.(?:info|warning|error)\(\s*\"([^\"]+)\"", source)

    assert len(lines) >= 14
    assert [line for line in lines if f"`{line}`" not in text] == []


def test_every_metric_is_documented():
    """metrics.md has every instrument of MetricObserver with its kind, unit and meaning, and no other."""
    source = page("src/iu_listen/telemetry/metrics.py")
    made = re.findall(r"create_(\w+)\(\s*\"([^\"]+)\", \"([^\"]+)\", \"([^\"]+)\"", source)
    rows = re.findall(
        r"^\| `((?:iu|messaging)\.[^`]+)` \| (\w+) \| `([^`]+)` \| [^|]+ \| ([^|]+) \|$",
        page("docs/reference/metrics.md"),
        re.MULTILINE,
    )

    assert len(made) >= 4
    assert sorted(rows) == sorted((name, kind, unit, meaning) for kind, name, unit, meaning in made)


def test_the_public_names_are_those_of_the_package():
    """public-api.md has every name of ``iu_listen.__all__``, and no other; the other names on the page exist.

    Fails when: a name is added to or removed from ``iu_listen.__all__`` and not in the table, or the table of another
    module or of SQL names an object that does not exist.
    """
    text = page("docs/reference/public-api.md")
    names, elsewhere, objects = (
        re.findall(r"^\| `([\w.]+)` \|", section(text, heading), re.MULTILINE)
        for heading in ("### Names of `iu_listen`", "### Names of other modules", "## SQL")
    )

    assert sorted(names) == sorted(iu_listen.__all__)
    for name in (*(f"iu_listen.{name}" for name in names), *elsewhere):
        resolve_name(name)
    assert len(objects) >= 16
    assert set(objects) <= {name for _, name in created()}


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_link_leads_somewhere(file):
    """Every relative link of a page leads to an existing file and heading."""
    text = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (file.parent / path).resolve() if path else file
        if not there.exists() or (anchor and anchor not in anchors(there.read_text())):
            broken.append(target)

    assert broken == []


def test_readme_has_the_two_commands():
    """The README names make demo and make test, and has at most 160 lines."""
    text = page("README.md")

    assert "make demo" in text
    assert "make test" in text
    assert len(text.splitlines()) <= 160


@pytest.mark.parametrize("name", ["cursor", "bell", "sessions", "delivery", "traces"])
def test_each_mechanism_has_a_diagram(name):
    """The decision records of cursor, bell, lease, delivery with circuit breaker, and trace export draw their states."""
    diagrams = re.findall(
        r"^```mermaid\n(stateDiagram-v2|sequenceDiagram)\n", page(f"docs/why/{name}.md"), re.MULTILINE
    )

    # The page of deliveries has one of a delivery, and one of the circuit breaker.
    assert len(diagrams) >= (2 if name == "delivery" else 1)


def test_every_new_name_in_the_changelog_exists():
    """The last column of the table of renames has names that the code has: identifiers, or paths without an ending."""
    code = "\n".join(
        file.read_text()
        for folder in ("src", "sql", "deploy", "docs/reference")
        for file in (ROOT / folder).rglob("*")
        if file.suffix in {".py", ".sql", ".yaml", ".md"}
    )
    table = section(page("CHANGELOG.md"), "### Renames")
    names = [
        (kind, name)
        for kind, cell in re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", table, re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", cell)
    ]

    def exists(kind: str, name: str) -> bool:
        if kind == "Python module":
            return any((ROOT / "src/iu_listen" / path).exists() for path in (name, f"{name}.py"))
        if kind == "SQL file":
            return (ROOT / "sql" / f"{name}.up.sql").exists()
        return (
            re.search(rf"\b{re.escape(name.rpartition('.')[2] if kind == 'SQL column' else name.lstrip('-'))}\b", code)
            is not None
        )

    assert len(names) >= 150
    assert [name for kind, name in names if not exists(kind, name)] == []


def test_every_path_in_the_map_exists():
    """Each path of the tables in the map is a file or a folder of the repository, or of src/iu_listen."""
    rows = [line for line in page("docs/map.md").splitlines() if line.startswith("| ")]
    paths = {path for row in rows for path in re.findall(r"`([\w/.]+(?:\.py|\.sql|/))`", row)}

    assert len(paths) >= 40
    assert [
        path for path in paths if not any((ROOT / folder / path).exists() for folder in (".", "src/iu_listen"))
    ] == []


def test_each_kind_of_document_has_one_row():
    """The map has one row for each kind of page.

    Fails when: a merge of two changes leaves both versions of a row.
    """
    kinds = [
        line.split("|")[1] for line in page("docs/map.md").partition("## Documents")[2].splitlines() if "|" in line
    ]
    assert len(kinds) == len(set(kinds))


def test_every_page_can_be_found():
    """Every page under docs/ is linked from the map."""
    text = page("docs/map.md")
    pages = [str(p.relative_to(ROOT / "docs")) for p in PAGES if p.is_relative_to(ROOT / "docs") and p.name != "map.md"]

    assert [p for p in pages if f"({p}" not in text] == []


@pytest.mark.parametrize("name", ["README.md", "docs/why/mutations.md", "docs/why/scenarios.md"])
def test_every_test_that_a_table_names_exists(name):
    """Each test in a table exists in the named file, and each kind and fault of the storm is in its table."""
    cells = re.findall(r"^\|.* \| ([^|]+) \|$", page(name), flags=re.MULTILINE)
    missing = []
    for file, names in re.findall(r"`(test_\w+)`(?:\]\([^)]+\))?: ([^;]+)", "\n;".join(cells)):
        tests = "".join(f.read_text() for f in (ROOT / "tests").rglob(f"{file}.py"))
        parts = [part.strip().lstrip("…_").partition("[")[0] for part in names.split(",")]
        missing += [
            f"{file}: {part}" for part in parts
            if not part.startswith("and ") and not re.search(rf"def test_\w*{re.escape(part)}\w*\(", tests)
        ]  # fmt: skip
    for table, row in re.findall(r'(kind|fault) "([^"]+)"', "".join(cells)):
        if row not in (KINDS if table == "kind" else FAULTS):
            missing.append(f"{table} {row}")

    assert missing == []


def test_scenarios_are_numbered_one_after_the_other():
    """In each table of the scenarios the numbers are consecutive, and no scenario is listed twice."""
    sections = page("docs/why/scenarios.md").split("\n## ")
    gaps = [
        f"{section.splitlines()[0]}: {after} comes after {before}"
        for section in sections
        for before, after in pairwise(map(int, re.findall(r"^\| (\d+) \|", section, flags=re.MULTILINE)))
        if after != before + 1
    ]
    listed = re.findall(r"^\|(?: \d+ \|)? ([^|]+) \|", "\n".join(sections), flags=re.MULTILINE)

    assert gaps == []
    assert {one for one in listed if listed.count(one) > 1} <= {"scenario"}
