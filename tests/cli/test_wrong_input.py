"""Wrong input and settings: the exit code, the mistake and the remedy; never a traceback, never a password.

``run`` in command.py fails every test in which a traceback is printed.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlsplit, urlunsplit

import pytest

from cli.command import Tree, execute, on_one_server, refused, run, running

NOBODY = "00000000-0000-0000-0000-000000000000"
#: One example of every command that begins with a session.
COMMANDS = [
    ["probe"], ["apply", "--no-backup", "x"], ["verify"], ["rollback", "--yes"], ["run"], ["emit"], ["status"],
    ["health"], ["health", "--here"], ["doctor"], ["gate", "show"], ["gate", "open", "worker"], ["route", "list"],
    ["route", "disable", "x"], ["cursor", "show"], ["cursor", "reset", "--to", "now"], ["cursor", "reanchor"], ["attempts"],
    ["dead-letter", "list"], ["dead-letter", "show", NOBODY], ["dead-letter", "replay", "--all"],
    ["retention", "show"], ["retention", "set", "events", "--off"], ["retention", "plan"], ["retention", "run", "--yes"],
]  # fmt: skip


# -- no database -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_server_at_the_address(command):
    """If no server listens, every command exits with 3 and says where to look."""
    done = refused(3, "cannot connect", "Check that the server is running", "--dsn")(
        *command, dsn="postgresql://ada:hunter2@127.0.0.1:1/iu"
    )
    assert done.out == ""
    assert "hunter2" not in done.err


def test_unknown_host():
    """An unknown host name exits with 3."""
    refused(3, "cannot connect", "not known")("status", dsn="postgresql://ada:hunter2@no-such-host.invalid/iu")


@pytest.mark.parametrize("variable", ["IU_LISTEN_DSN", "PGHOST"])
def test_the_environment_counts(variable):
    """IU_LISTEN_DSN and libpq's own variables also select the database."""
    env = {
        "IU_LISTEN_DSN": {"IU_LISTEN_DSN": "postgresql://127.0.0.1:1/iu"},
        "PGHOST": {"PGHOST": "127.0.0.1", "PGPORT": "1", "PGPASSWORD": "hunter2"},
    }[variable]
    done = refused(3, "cannot connect", "127.0.0.1")("status", env=env)
    assert "hunter2" not in done.err


def test_the_command_line_goes_before_the_environment():
    """--dsn has precedence over IU_LISTEN_DSN."""
    done = refused(3, "('127.0.0.1', 1)")(
        "status", "--dsn", "postgresql://127.0.0.1:1/x", dsn="postgresql://127.0.0.1:2/x"
    )
    assert "('127.0.0.1', 2)" not in done.err


@pytest.mark.parametrize("command", [["status"], ["run"], ["apply", "--no-backup", "x"]], ids=" ".join)
def test_wrong_password(own_server, command):
    """A wrong password exits with 3, and appears nowhere in the output, neither decoded nor percent-encoded."""
    parts = urlsplit(own_server.tcp_dsn())
    for password in ("hunter2", "p@ss/w:rd#"):
        typed = quote(password, safe="")
        dsn = urlunsplit(parts._replace(netloc=f"postgres:{typed}@{parts.hostname}:{parts.port}"))
        done = refused(3, "password authentication failed", "Check the user name and the password")(*command, dsn=dsn)
        assert password not in done.out + done.err
        assert typed not in done.out + done.err


@on_one_server
def test_no_such_database(substrate):
    """A database that does not exist exits with 3 and its name."""
    dsn = re.sub(r"/iu_test_\w+", "/no_such_database", substrate.dsn)
    for command in ("run", "status"):
        refused(3, '"no_such_database" does not exist', "Create this database")(command, dsn=dsn)


@pytest.mark.parametrize(
    "dsn",
    [
        "rubbish",
        "host=127.0.0.1 hunter2",
        "mysql://ada:hunter2@127.0.0.1/iu",
        "postgresql://ada:hunter2@127.0.0.1:port/iu",
        "postgresql://ada:hunter2@[::1/iu",
        "postgresql://ada:hunter2@127.0.0.1/iu?sslmode=perhaps",
    ],
)
def test_an_invalid_connection_string_is_refused(dsn):
    """An invalid connection string exits with 2 and an example of a valid one."""
    done = refused(2, "invalid connection string", "postgresql://user:password@host:5432/database")(
        "status", "--dsn", dsn
    )
    assert "hunter2" not in done.err


# -- wrong database ----------------------------------------------------------------------------------------------


@on_one_server
def test_not_a_database_of_iu_core(empty):
    """On a database without IU Core a command exits with 2 and asks whether it is the right one."""
    for command in COMMANDS[::2]:
        if command[0] not in ("apply", "verify", "doctor") and "--here" not in command:
            refused(2, "has no outbox", "Check the connection string.", "iu-listen init")(*command, dsn=empty.dsn)
    refused(1, "the base is missing")("verify", dsn=empty.dsn)
    refused(1, "missing")("doctor", dsn=empty.dsn)


@on_one_server
def test_without_the_package(substrate):
    """On a database without the package, commands that need it exit with 2 and name the command that applies it."""
    for command in ["run", "status", "health"], ["cursor show", "dead-letter list"]:
        for line in command:
            refused(2, "the package is not applied", "iu-listen apply")(*line.split(), dsn=substrate.dsn)
    refused(1, "is pending", "iu-listen apply --plan")("doctor", dsn=substrate.dsn)


@on_one_server
def test_half_a_package(applied):
    """With an incomplete package run and status exit with 2 and name the missing object; doctor exits with 1."""
    execute(applied.dsn, "drop function fn_iu_route_dead_letter_replay")
    for command in ("run", "status", "health"):
        refused(2, "half applied", "fn_iu_route_dead_letter_replay", "iu-listen rollback")(command, dsn=applied.dsn)
    refused(1, "half applied", "repair.md")("doctor", dsn=applied.dsn)


@on_one_server
def test_an_edited_file(applied, tmp_path):
    """After a file was edited that is already applied, apply exits with 1 and its name; doctor says the same."""
    tree = Tree(tmp_path)
    path = tree.root / "sql/worker/008_route_worker_substrate.up.sql"
    path.write_text(path.read_text() + "\n")
    said = "worker/008_route_worker_substrate was edited after it was applied"
    refused(1, said)("apply", "--no-backup", "x", dsn=applied.dsn, env=tree.env)
    refused(1, said)("doctor", dsn=applied.dsn, env=tree.env)
    assert run("doctor", dsn=applied.dsn).code == 0


@pytest.mark.slow
@on_one_server
def test_a_standby(applied, standby):
    """On a real standby, commands that write refuse and name the primary, and commands that read answer."""
    says = ("standby", "Connect to the primary")
    for command in (["run"], ["probe"], ["emit"], ["gate", "open", "worker"], ["rollback", "--yes"],
                    ["route", "disable", "x"], ["cursor", "reset", "--to", "now"], ["cursor", "reanchor"],
                    ["dead-letter", "replay", "--all"]):  # fmt: skip
        refused(2, *says)(*command, dsn=standby)

    done = run("apply", "--no-backup", "x", "--json", dsn=standby)
    assert done.code == 1
    assert {g["number"]: g["evidence"] for g in done.json["gates"] if not g["pass"]} == {
        2: "the server takes no writes: it is a standby",
        8: "not run: a gate before this one is closed",
    }

    done = run("health", "--json", dsn=standby)
    assert done.code == 1
    assert any("standby" in reason for reason in done.json["reasons"])
    for command in (["status"], ["attempts"], ["gate", "show"], ["route", "list"], ["cursor", "show"],
                    ["dead-letter", "list"]):  # fmt: skip
        assert run(*command, dsn=standby).code == 0
    refused(1, "takes no writes")("doctor", dsn=standby)


@on_one_server
def test_a_worker_that_nobody_registered(applied):
    """run with an unregistered worker exits with 2 and lists the registered ones; health and doctor fail."""
    says = ("worker nobodys is not registered", "Registered workers: iu_outbound_default")
    refused(2, *says)("run", "--worker", "nobodys", dsn=applied.dsn)
    refused(2, *says)("run", dsn=applied.dsn, env={"IU_LISTEN_WORKER": "nobodys"})
    refused(2, *says)("cursor", "reset", "--to", "now", "--worker", "nobodys", dsn=applied.dsn)
    refused(1, "not registered")("health", "--worker", "nobodys", dsn=applied.dsn)
    refused(1, "nobodys is not registered")("doctor", "--worker", "nobodys", dsn=applied.dsn)


# -- events ------------------------------------------------------------------------------------------------------


@on_one_server
@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--payload", "{"], ("the payload is not JSON", "Quote it")),
        (["--payload", "[1]"], ("must be a JSON object",)),
        (["--payload", '{"n": NaN}'], ("the database cannot store this value",)),
        (["--payload", '{"n": "\\u0000"}'], ("the database cannot store this value",)),
        (["--payload", '{"password": "x"}'], ("the payload has a forbidden key", "body, content, raw", "password")),
        (
            ["--type", "never_heard_of"],
            ("never_heard_of is not registered and active", "Registered types: version_applied"),
        ),
        (["--count", "0"], ("--count", "from 1")),
        (["--count", "99999999999"], ("--count", "1000000")),
        (["--count", "many"], ("--count", "int")),
        (["--subject", "not-a-uuid"], ("--subject", "UUID")),
    ],
)
def test_emit(substrate, args, says):
    """An invalid event is refused with 2 and its mistake, and nothing is written."""
    refused(2, *says)("emit", *args, dsn=substrate.dsn)
    assert run("attempts", "--json", dsn=substrate.dsn).json == []


@on_one_server
def test_emit_against_the_closed_master_gate(substrate):
    """A closed master gate refuses an event with 1 and tells how to open it; an invalid payload still exits with 2."""
    assert run("gate", "close", "master", dsn=substrate.dsn).code == 0
    refused(1, "the master gate is closed", "iu-listen gate open master")("emit", dsn=substrate.dsn)
    refused(2, "not JSON")("emit", "--payload", "{", dsn=substrate.dsn)


@on_one_server
def test_a_gate_whose_key_is_missing(substrate):
    """A gate whose key is missing is closed, and cannot be opened before apply has created the key."""
    refused(1, "missing in dot_config", "iu-listen apply")("gate", "open", "worker", dsn=substrate.dsn)


# -- settings ----------------------------------------------------------------------------------------------------

NOWHERE = {"dsn": "postgresql://127.0.0.1:1/x"}


def test_a_setting_out_of_range():
    """A setting out of its range is reported before connecting, from the command line and from the environment."""
    refused(2, "--batch-limit must be from 1 to 100000, not 0")("run", "--batch-limit", "0", **NOWHERE)
    refused(2, "IU_LISTEN_BATCH_LIMIT must be from 1 to 100000, not 0")(
        "run", env={"IU_LISTEN_BATCH_LIMIT": "0"}, **NOWHERE
    )
    refused(2, "--log-format must be one of auto, console, json, not 'xml'")("run", "--log-format", "xml", **NOWHERE)


def test_all_mistakes_at_once():
    """Several wrong settings are all reported at once."""
    env = {"IU_LISTEN_BATCH_LIMIT": "0", "IU_LISTEN_CATCH_UP": "soon", "IU_LISTEN_LISTEN": "maybe"}
    done = refused(2, "--grace-period", "IU_LISTEN_BATCH_LIMIT", "IU_LISTEN_CATCH_UP", "IU_LISTEN_LISTEN")(
        "run", "--grace-period", "nan", env=env, **NOWHERE
    )
    assert "cannot connect" not in done.err


def test_a_lease_that_could_not_be_kept():
    """A lease that is not longer than the catch-up interval exits with 2: an idle consumer would lose it repeatedly."""
    for lease, catch_up in (("5", "5"), ("3", "5")):
        refused(2, "session_timeout (", "must be longer than catch_up (")(
            "run", "--session-timeout", lease, "--catch-up", catch_up, **NOWHERE
        )


# -- the command line itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["staus"], ('Unknown command "staus"', 'Did you mean "status"')),
        (["status", "--jsn"], ("Unknown option: --jsn", "Did you mean --json")),
        (["gate", "opn", "worker"], ('Unknown command "opn"', '"open"')),
        (["gate", "open", "wroker"], ("wroker", '"worker"')),
        (["gate", "open"], ("NAME",)),
        (["dead-letter", "show", "x"], ("UUID",)),
        (["dead-letter", "replay", "x"], ("UUID",)),
        (["dead-letter", "replay"], ("either ids of dead letters or --all", "dead-letter list")),
        (["dead-letter", "replay", NOBODY, "--all"], ("either ids of dead letters or --all",)),
        (["cursor", "reset"], ("--to",)),
        (["cursor", "reset", "--to", "nirvana"], ("beginning", "now")),
        (["attempts", "--event", "x"], ("UUID",)),
        (["attempts", "--status", "lost"], ("dry_run", "skipped")),
        (["attempts", "--limit", "-1"], ("--limit",)),
        (["dead-letter", "list", "--limit", "-1"], ("--limit",)),
        (["probe", "--lock-timeout", "0"], ("--lock-timeout", "0.01")),
        (["probe", "--lock-timeout", "nan"], ("--lock-timeout",)),
        (["apply", "--lock-timeout", "-1"], ("--lock-timeout",)),
    ],
)  # fmt: skip
def test_the_command_line(args, says):
    """A wrong command line exits with 2 before connecting, with a suggestion."""
    done = refused(2, *says)(*args, **NOWHERE)
    assert done.out == ""


@on_one_server
def test_unknown_routes_and_dead_letters_are_refused(applied):
    """An unknown route or dead letter exits with 2, and the existing routes are named."""
    refused(2, "there is no route nowhere", "iu.version_applied.workflow")("route", "show", "nowhere", dsn=applied.dsn)
    refused(2, "there is no route nowhere")("route", "enable", "nowhere", dsn=applied.dsn)
    refused(2, f"there is no dead letter {NOBODY}")("dead-letter", "show", NOBODY, dsn=applied.dsn)
    refused(2, f"there is no dead letter {NOBODY}")("dead-letter", "replay", NOBODY, dsn=applied.dsn)


def test_up_is_for_the_embedded_server():
    """up with a database in the environment exits with 2, and names the alternative."""
    refused(2, "`up` uses the embedded server", "iu-listen apply")("up", **NOWHERE)


def test_a_reader_that_has_read_enough():
    """If the reader closes the pipe early, as head does, there is no error."""
    with running("--help") as command:
        assert command.process.stdout is not None
        command.until_it_says("Usage")
        assert command.ended() == 0
