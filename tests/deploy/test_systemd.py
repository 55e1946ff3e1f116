"""deploy/systemd: systemd's own checks of the units, and that their values agree with the settings."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from conftest import Database
from iu_listen.model.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNIT = FOLDER / "iu-listen.service"
RETENTION = FOLDER / "iu-listen-retention.service"

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")


def entries(section: str, unit: Path = UNIT) -> dict[str, list[str]]:
    """The keys of a section of a unit, each with all its values, as systemd collects them."""
    found: dict[str, list[str]] = {}
    current = ""
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif current == section and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


SERVICE = entries("Service")


def one(key: str) -> str:
    (value,) = SERVICE[key]
    return value


def settings() -> Settings:
    """The settings with which the service starts, without an environment file."""
    return Settings.load(dict(line.split("=", 1) for line in SERVICE["Environment"]))


@pytest.fixture(params=[UNIT, RETENTION], ids=lambda unit: unit.stem)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a unit whose program exists on this machine."""
    copy = tmp_path / request.param.name
    original = request.param.read_text()
    text, replaced = re.subn(r"^ExecStart=\S+", f"ExecStart={sys.executable}", original, flags=re.MULTILINE)
    assert replaced == 1
    copy.write_text(text)
    return copy


@needs_systemd
def test_systemd_has_nothing_to_say_about_the_unit(unit: Path) -> None:
    """systemd-analyze verify accepts the unit without a message."""
    found = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


@needs_systemd
def test_the_exposure_is_low(unit: Path) -> None:
    """systemd-analyze security rates the unit below 1.5 of 10; the rest is the network and the host's file tree."""
    found = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(unit)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout


def test_the_watchdog_waits_longer_than_a_healthy_consumer_is_silent() -> None:
    """The longest time between two signs of progress, a wait and a batch with its deadline, is below WatchdogSec."""
    assert settings().catch_up + settings().batch_deadline < int(one("WatchdogSec"))
    assert (one("Type"), one("NotifyAccess")) == ("notify", "main")


def test_a_stop_is_given_the_time_that_it_may_take() -> None:
    """TimeoutStopSec is longer than the grace period and than the deadline of the batch that ends first."""
    assert max(settings().grace_period, settings().batch_deadline) < int(one("TimeoutStopSec"))
    assert one("KillSignal") == one("WatchdogSignal") == "SIGTERM"


def test_systemd_never_gives_up() -> None:
    """The service is restarted after every end, without a limit, for every exit code."""
    assert one("Restart") == "always"
    assert entries("Unit")["StartLimitIntervalSec"] == ["0"]
    assert "RestartPreventExitStatus" not in SERVICE
    assert int(one("RestartSec")) >= 1


def test_a_missing_configuration_never_means_the_embedded_server() -> None:
    """The unit names the database, by the service file that it loads as a credential."""
    name, _, path = one("LoadCredential").partition(":")
    assert path == f"/etc/iu-listen/{name}"
    environment = dict(line.split("=", 1) for line in SERVICE["Environment"])
    assert environment["PGSERVICEFILE"] == f"%d/{name}"
    (service,) = parse_qs(urlsplit(settings().dsn or "").query)["service"]
    example = configparser.ConfigParser()
    example.read(FOLDER / f"{name}.example")
    assert example.sections() == [service]
    assert example[service]["password"] == ""


def test_no_password_is_in_the_unit_or_the_environment() -> None:
    """Neither the unit nor the example of its environment file sets a password."""
    for text in (UNIT.read_text(), (FOLDER / "environment.example").read_text()):
        assert not re.search(r"^[^#]*(PGPASSWORD|PGPASSFILE|:[^/@\s]+@)", text, flags=re.MULTILINE)


def test_the_example_of_live_routes_is_a_drop_in() -> None:
    """The example of live routes names existing settings, and the directory of the credentials that it loads."""
    text = (FOLDER / "live-routes.conf.example").read_text()
    settings = dict(re.findall(r"^#?Environment=(IU_LISTEN_\w+)=(\S+)$", text, flags=re.MULTILINE))
    assert settings.keys() == {"IU_LISTEN_APP", "IU_LISTEN_SECRETS", "IU_LISTEN_ALLOW_PRIVATE"}
    Settings.load(settings)
    assert f"file:{settings['IU_LISTEN_SECRETS']}crm_key" in text
    assert "LoadCredential=crm_key:/" in text


def test_the_example_of_the_environment_names_settings_that_exist() -> None:
    """Every line of the example, without its comment sign, is a setting with a valid value."""
    text = (FOLDER / "environment.example").read_text()
    example = dict(re.findall(r"^# (IU_LISTEN_\w+)=(\S+)$", text, flags=re.MULTILINE))
    assert example
    Settings.load(example)
    known = {f"IU_LISTEN_{name.upper()}" for name in Settings.__dataclass_fields__}
    assert set(example) <= known


def test_a_service_file_that_its_group_may_read_is_believed(applied: Database, tmp_path: Path) -> None:
    """The driver takes host, user and password from a service file of mode 0440, which is the mode of a credential."""
    parts = urlsplit(applied.dsn)
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    lines = {
        "host": query.get("host") or parts.hostname, "port": query.get("port") or parts.port,
        "dbname": parts.path.lstrip("/"), "user": parts.username, "password": (parts.password or "").replace("%", "%%"),
    }  # fmt: skip
    file = tmp_path / "pg_service.conf"
    file.write_text("[iu_listen]\n" + "".join(f"{key}={value}\n" for key, value in lines.items() if value))
    file.chmod(0o440)
    environment = {**os.environ, "PGSERVICEFILE": str(file), "IU_LISTEN_DSN": settings().dsn or ""}
    found = subprocess.run(
        [sys.executable, "-m", "iu_listen", "status", "--json"], env=environment, cwd=tmp_path,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["workers"]


#: Forbids memory that is writable and executable, and then runs iu-listen. PR_SET_MDWE exists since Linux 6.3.
FORBID = """
import ctypes, sys
if ctypes.CDLL(None, use_errno=True).prctl(65, 1, 0, 0, 0):
    sys.exit(77)
from iu_listen.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="MemoryDenyWriteExecute is Linux")
def test_nothing_in_it_writes_code(applied: Database) -> None:
    """Under MemoryDenyWriteExecute the commands, the driver and all their imports work."""
    found = subprocess.run(
        [sys.executable, "-c", FORBID, "status", "--json", "--dsn", applied.dsn],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if found.returncode == 77:
        pytest.skip("this kernel has no PR_SET_MDWE")
    assert found.returncode == 0, found.stderr
    assert one("MemoryDenyWriteExecute") == "yes"


def test_the_retention_is_confined_like_the_consumer() -> None:
    """The retention has all restrictions of the consumer, and its own login."""
    confined = entries("Service", RETENTION)
    life = ("Type", "NotifyAccess", "ExecStart", "Environment", "EnvironmentFile", "LoadCredential", "WatchdogSec",
            "WatchdogSignal", "Restart", "RestartSec", "TimeoutStartSec")  # fmt: skip
    assert {k: v for k, v in SERVICE.items() if k not in life}.items() <= confined.items()
    assert set(confined["Environment"]) <= set(SERVICE["Environment"])
    assert confined["LoadCredential"] != SERVICE["LoadCredential"]
    assert confined["Type"] == ["oneshot"]
    assert confined["ExecStart"] == ["/usr/local/bin/iu-listen retention run --yes"]


@needs_systemd
def test_the_timer_is_one() -> None:
    """systemd accepts the timer, which starts the service of the same name."""
    timer = FOLDER / "iu-listen-retention.timer"
    (when,) = entries("Timer", timer)["OnCalendar"]
    found = subprocess.run(["systemd-analyze", "calendar", when], capture_output=True, timeout=60, check=False)
    assert found.returncode == 0
    assert timer.with_suffix(".service") == RETENTION
