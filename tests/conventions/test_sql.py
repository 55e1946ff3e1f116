"""The SQL of the repository is complete, commented, paired with rollbacks, and equal to the schema that it creates."""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from iu_listen.install import migrate
from iu_listen.install.package import Package, package_state
from iu_listen.postgres.session import session
from iu_listen.postgres.sqlfiles import Migration, all_files, package_files, sql_root
from support import connected

sys.path.insert(0, str(Path(__file__).parent))
import schema

UNCOMMENTED = """
select 'relation ' || c.relname from pg_class c
 where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'v', 'S')
   and obj_description(c.oid, 'pg_class') is null
   -- an identity column's sequence is the column's business
   and not exists (select from pg_depend d where d.objid = c.oid and d.deptype = 'i' and c.relkind = 'S')
union all
select 'index ' || c.relname from pg_class c join pg_index i on i.indexrelid = c.oid
 where c.relnamespace = 'public'::regnamespace and obj_description(c.oid, 'pg_class') is null
   and not exists (select from pg_constraint k where k.conindid = c.oid)
union all
select 'column ' || c.relname || '.' || a.attname from pg_attribute a join pg_class c on c.oid = a.attrelid
 where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped
   and col_description(c.oid, a.attnum) is null
union all
select 'constraint ' || k.conname from pg_constraint k
 where k.connamespace = 'public'::regnamespace and k.contype in ('c', 'p', 'u', 'f')
   and obj_description(k.oid, 'pg_constraint') is null
union all
select 'function ' || p.proname from pg_proc p
 where p.pronamespace = 'public'::regnamespace and obj_description(p.oid, 'pg_proc') is null
union all
select 'type ' || c.relname from pg_class c
 where c.relnamespace = 'public'::regnamespace and c.relkind = 'c' and obj_description(c.reltype, 'pg_type') is null
union all
select 'trigger ' || t.tgname from pg_trigger t where not t.tgisinternal and obj_description(t.oid, 'pg_trigger') is null
"""

CATALOG = """
select 'table' as kind, c.relname::text as name from pg_class c
 where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
union all select 'view', c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'v'
union all select 'sequence', c.relname from pg_class c
 where c.relnamespace = 'public'::regnamespace and c.relkind = 'S' and c.relname like 'event_outbox%'
union all select 'index', c.relname from pg_class c
 where c.relnamespace = 'public'::regnamespace and c.relkind = 'i'
   and not exists (select from pg_constraint k where k.conindid = c.oid)
union all select 'type', c.relname from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'c'
union all select 'function', p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'public'::regnamespace
union all select 'trigger', t.tgrelid::regclass || '.' || t.tgname from pg_trigger t where not t.tgisinternal
union all select 'column', c.relname || '.' || a.attname from pg_attribute a join pg_class c on c.oid = a.attrelid
 where c.relname in ('event_outbox', 'iu_route_attempt', 'iu_outbound_route') and c.relkind = 'r' and a.attnum > 0 and not a.attisdropped
union all select 'key', d.key from dot_config d
"""


async def _catalog(dsn: str) -> set[tuple[str, str]]:
    async with connected(dsn) as connection:
        return {(row["kind"], row["name"]) for row in await connection.fetch(CATALOG)}


def test_every_object_has_a_comment(applied):
    """Every table, column, constraint, index, view, function, trigger and sequence has a comment."""

    async def missing() -> list[str]:
        async with connected(applied.dsn) as connection:
            return [row[0] for row in await connection.fetch(UNCOMMENTED)]

    assert asyncio.run(missing()) == []


def test_the_list_of_objects_is_what_the_files_make(substrate):
    """sql/queries/package_objects.sql names exactly the objects that applying the package adds."""

    async def both() -> tuple[set[tuple[str, str]], set[tuple[str, str]]]:
        before = await _catalog(substrate.dsn)
        async with session(substrate.dsn, name="test") as connection:
            state = await package_state(connection)
            await migrate.apply_files(connection, state.pending, {}, lambda _: None)
            state = await package_state(connection)
        listed = {(o.kind, o.name) for o in state.present if o.kind != "row"}
        return await _catalog(substrate.dsn) - before, listed

    made, listed = asyncio.run(both())

    assert made == listed


def test_schema_sql_is_the_migrated_database(applied):
    """schema.sql equals the dump of a database to which everything was applied, with hashes as bodies of functions."""
    if applied.server is None or applied.server.major != schema.MAJOR:
        pytest.skip(f"dumps differ between versions; the file is that of {schema.MAJOR}")

    assert schema.FILE.read_text() == schema.dump(applied.dsn, applied.server.bin), "run: make schema"


def test_every_forward_file_has_its_rollback():
    """Each forward file has a .down.sql that states the losses, and the numbers are unique."""
    files = all_files()

    assert [m.name for m in files if not m.path("down").exists()] == []
    assert [m.name for m in files if "-- loses:" not in m.text("down")] == []
    assert len({m.short_name for m in files}) == len(files)


def _code(text: str) -> str:
    """The text of a file without its comments."""
    return re.sub(r"--.*$", "", text, flags=re.MULTILINE)


def _outline(text: str) -> list[str]:
    """The first words of each statement of a file; the bodies of functions are left out."""
    code = re.sub(r"\$(\w*)\$.*?\$\1\$", "''", _code(text), flags=re.DOTALL)
    code = re.sub(r"^begin atomic$.*?^end;$", ";", code, flags=re.DOTALL | re.MULTILINE)
    code = re.sub(r"'(?:[^']|'')*'", "''", code)
    return [" ".join(part.split()[:4]).lower() for part in code.split(";") if part.strip()]


def test_a_repeatable_file_only_creates_or_replaces():
    """A repeatable file has only statements that can be repeated without a loss; every file in functions/ is one.

    Fails when: a file that is applied again drops an object, changes data or a table, or fails because its objects
    exist.
    """
    repeatable = [m for m in package_files() if m.repeatable]
    allowed = re.compile(r"create or replace (function|view)|comment on (function|view|column)")

    assert len(repeatable) >= 1
    assert [m.name for m in package_files() if m.name.startswith("functions/") and not m.repeatable] == []
    assert [m.name for m in repeatable if m.header("transaction")] == []
    assert [f"{m.name}: {start}" for m in repeatable for start in _outline(m.text()) if not allowed.match(start)] == []


#: Versioned files whose functions are not yet in a repeatable file.
UNDIVIDED: set[str] = set()


def test_only_repeatable_files_create_functions_and_views():
    """A versioned file creates no function and no view, and no object is created by two files.

    Fails when: the present text of a function is in a file that cannot be edited.
    """
    made = [
        (m, name)
        for m in package_files()
        for name in re.findall(
            r"^create (?:or replace )?(?:function|view) public\.(\w+)", _code(m.text()), re.MULTILINE
        )
    ]
    names = [name for _, name in made]

    assert {f"{m.name}: {n}" for m, n in made if not m.repeatable and m.number not in UNDIVIDED} == set()
    assert {name for name in names if names.count(name) > 1} == set()


#: Longest plpgsql function, from "create" to the end of its body, in lines.
LONGEST_FUNCTION = 120


def test_no_function_is_too_long_to_be_read():
    """No plpgsql function has more than 120 lines; a longer one is divided into functions with names."""
    functions = re.compile(
        r"^(create (?:or replace )?function public\.(\w+)(?:(?!^create ).)*?^\$\$;)", re.MULTILINE | re.DOTALL
    )
    long = {
        f"{m.name}: {name}": size
        for m in package_files()
        for text, name in functions.findall(m.text())
        if (size := len(text.splitlines())) > LONGEST_FUNCTION and m.number not in UNDIVIDED
    }

    assert long == {}


def test_only_the_batch_calls_its_steps():
    """The steps of a batch are called by the batch and by each other, because its planner settings are not theirs.

    Fails when: another function or query calls a step, so that a session may keep a plan that was made without them.
    """
    callers = {
        str(file.relative_to(sql_root()))
        for file in sql_root().rglob("*.sql")
        if not file.name.endswith(".down.sql") and re.search(r"public\.fn_iu_batch_\w+\(", _code(file.read_text()))
    }

    assert callers == {"functions/routing.up.sql", "worker/009_route_worker_functions.up.sql"}


def _creators() -> dict[str, set[str]]:
    """The files that create a table, type, view, sequence or function, by its name; overloaded functions share a name."""
    text = (sql_root() / "queries/package_objects.sql").read_text()
    found: dict[str, set[str]] = {}
    for file, name in re.findall(r"\('(\S+)', '(?:table|type|view|sequence|function)', '(\w+)", text):
        found.setdefault(name, set()).add(file)
    return found


def _uses(migration: Migration) -> set[str]:
    """The other files of the package whose objects the DDL and the function bodies of a file name."""
    creators = _creators()
    named = (creators.get(name, set()) for name in re.findall(r"\bpublic\.(\w+)", _code(migration.text())))
    return {file for files in named if migration.name not in files for file in files}


def test_needs_and_calls_are_true():
    """Each object of the package that a file names is created by the file, by one that it needs, or by one it calls.

    ``needs:`` counts transitively. ``calls:`` is for the bodies of plpgsql functions, whose names are looked up when
    they run; the apply itself fails where a file needs an object that does not exist yet.
    """
    by_name = {m.name: m for m in package_files()}

    def needed(name: str) -> set[str]:
        return {name}.union(*(needed(n) for n in by_name[name].needs))

    missing = {m.name: lacking for m in package_files() if (lacking := _uses(m) - needed(m.name) - set(m.calls))}
    idle = {m.name: spare for m in package_files() if (spare := set(m.calls) - (_uses(m) - needed(m.name)))}

    assert missing == {}
    assert idle == {}, "calls: names files whose objects are not used, or which needs: has already"


def test_versioned_files_are_applied_in_the_order_of_their_numbers():
    """Needs change only the places of repeatable files; runtime/ comes last."""
    versioned = [m.name for m in package_files() if not m.repeatable]
    worker, runtime = ([n for n in versioned if n.startswith(folder)] for folder in ("worker/", "runtime/"))

    assert versioned == [*sorted(worker), *sorted(runtime)]
    assert [m.name for m in package_files()][-len(runtime) :] == runtime


def test_every_forward_file_says_what_it_needs_and_locks():
    """The header of each forward file of the package names its needs and its locks."""
    assert [m.name for m in package_files() if not (m.header("needs") and m.header("locks"))] == []


def test_every_file_is_ascii():
    """A database of any encoding can hold the text of every file, comments included.

    Fails when: a comment has an arrow or a quotation mark that a database in EUC_JP or LATIN1 cannot hold.
    """
    assert [f.name for f in sql_root().rglob("*.sql") if not f.read_bytes().isascii()] == []


def test_every_table_has_a_primary_key(applied):
    """Each table of the package has a primary key, so a publication for all tables permits updates; not IU Core's."""

    async def without() -> set[str]:
        async with connected(applied.dsn) as connection:
            rows = await connection.fetch(
                """select c.relname from pg_class c
                    where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'
                      and not exists (select from pg_index i where i.indrelid = c.oid and i.indisprimary)"""
            )
            return {row[0] for row in rows}

    assert asyncio.run(without()) == {"dot_config", "event_type_registry", "iu_outbound_route"}


def test_every_function_pins_its_search_path(applied):
    """The caller's search_path and temporary types cannot affect a function of the package.

    pg_temp is named last in the search_path, because a path without it searches it first. One function is called for
    each row of every producer, where the setting would cost too much; all its names have their schema.
    """

    async def loose() -> list[str]:
        async with connected(applied.dsn) as connection:
            rows = await connection.fetch(
                """select p.oid::regprocedure::text from pg_proc p where p.pronamespace = 'public'::regnamespace
                    -- The names of a SQL-standard body are bound when it is created.
                    and p.prosqlbody is null
                    and (p.proconfig is null or not 'search_path=pg_catalog, pg_temp' = any (p.proconfig))"""
            )
            return [row[0] for row in rows]

    assert asyncio.run(loose()) == ["fn_iu_bell_due(text)"]
    text = (sql_root() / "functions/wake.up.sql").read_text()
    body = text.partition("function public.fn_iu_bell_due")[2].partition("as $$")[2].partition("$$;")[0]
    assert re.findall(r"(?<![\w.])\w+\(|[=<>|]", body.replace("operator(pg_catalog.=)", "")) == []


def test_no_function_takes_a_hidden_row_for_a_missing_one(applied):
    """Each function that a query calls and that changes data has row_security off, for any caller.

    The functions that it calls inherit the setting. Fails when: a new function decides by rows that a policy may hide.
    """
    called = {name for file in _queries() for name in re.findall(r"public\.(fn_iu_\w+)\(", file.read_text())}

    async def loose() -> set[str]:
        async with connected(applied.dsn) as connection:
            rows = await connection.fetch(
                """select p.proname from pg_proc p
                    where p.pronamespace = 'public'::regnamespace and p.provolatile = 'v' and p.proname = any ($1)
                      and (p.proconfig is null or not 'row_security=off' = any (p.proconfig))""",
                sorted(called),
            )
            return {row[0] for row in rows}

    # The emitter belongs to IU Core; the seam and the trigger of a closed partition always raise.
    assert asyncio.run(loose()) <= {"fn_iu_emit_event", "fn_iu_route_deliver", "fn_iu_outbox_retired"}


#: Queries that run before the search_path of a session, or of a transaction, is pg_catalog.
FIRST = ("backend_pid", "session_settings", "transaction_settings")


@pytest.mark.parametrize("name", FIRST)
def test_what_is_asked_first_qualifies_everything(name):
    """Until the search_path is pg_catalog, every function and operator of a query is named with its schema."""
    text = re.sub(r"--.*|'[^']*'", "", (sql_root() / "queries" / f"{name}.sql").read_text())
    calls = re.findall(r"([\w.]+)\s*\(", text)

    assert [c for c in calls if not c.startswith("pg_catalog.") and c not in {"coalesce", "operator"}] == []
    assert re.findall(r"\s[-+*/<>=~!@#%^&|`?]+\s", text) == []


def _queries() -> list[Path]:
    return sorted((sql_root() / "queries").rglob("*.sql"))


@pytest.mark.parametrize("file", _queries(), ids=lambda f: f.stem)
def test_every_query_explains_itself(file):
    """A query file begins with a description of its answer, and names each of its parameters."""
    text = file.read_text()
    parameters = {int(n) for n in re.findall(r"\$(\d+)", re.sub(r"--.*|\$\$", "", text))}

    assert text.startswith("-- ")
    assert {n for n in parameters if f"${n}" not in re.sub(r"^(?!--).*$", "", text, flags=re.MULTILINE)} == set()


def test_every_query_can_be_prepared(applied):
    """Each file in sql/queries is one statement that the migrated database accepts, with a search_path of pg_catalog.

    So each name without a schema, of any function or operator, variadic or not, is one of pg_catalog.
    """
    several = {"fresh_database", "break_audit", "mend_audit"}

    async def refused() -> list[str]:
        found = []
        async with connected(applied.dsn) as connection:
            await connection.execute("set search_path = pg_catalog, pg_temp")
            for file in _queries():
                if file.stem in several:
                    continue
                try:
                    await connection.prepare(file.read_text())
                except Exception as error:
                    found.append(f"{file.stem}: {error}")
        return found

    assert asyncio.run(refused()) == []


def test_the_state_of_the_package_is_read_from_each_file_once(monkeypatch):
    """Every command compares the files with the ledger when it begins: each file is read a fixed number of times.

    Fails when: the changed files are determined again for each file.
    """
    package = Package((), {m.name: m.checksum for m in package_files()})
    compared = []
    checksum = Migration.checksum.fget
    monkeypatch.setattr(Migration, "checksum", property(lambda m: compared.append(m.name) or checksum(m)))
    assert package.complete
    assert package.drift() == []
    assert max(Counter(compared).values()) <= 6


def test_the_checks_of_a_database_in_use_are_those_of_070():
    """W1 to W8 in sql/queries/verify_live.sql are those of runtime/070.

    Fails when: one of them is changed in one file only.
    """
    both = (sql_root() / "queries/verify_live.sql", sql_root() / "runtime/070_verify.up.sql")
    one, other = (path.read_text().partition("select 'W1'")[2].partition("select 'W9'")[0] for path in both)

    assert one == other
    assert one.count("union all") == 8
