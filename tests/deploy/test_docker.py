"""deploy/docker and deploy/otel, without a docker engine: the rules for these files, and the demo's own commands."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import yaml

from conftest import Database
from iu_listen import __version__, embedded
from iu_listen.model.settings import Settings
from support import connected

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "docker"
DOCKERFILE = FOLDER / "Dockerfile"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
COLLECTOR: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "otel" / "collector.yaml").read_text())


def instructions(file: Path = DOCKERFILE) -> list[tuple[str, str]]:
    """Every instruction of the Dockerfile with its arguments; continued lines are joined."""
    lines = [line for line in file.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage; those before the first stage are left out."""
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


BUILD, FINAL = stages()


def final(word: str) -> str:
    """The arguments of the only instruction of this kind in the final stage."""
    (rest,) = [rest for name, rest in FINAL if name == word]
    return rest


# -- image ---------------------------------------------------------------------------------------------------------


def test_both_stages_have_the_same_base() -> None:
    """Both stages have the same base, so that the environment of the first finds its interpreter in the last.

    The base is an argument, so that it can be given by digest.
    """
    assert instructions()[0] == ("ARG", "BASE=python:3.13-slim")
    assert {rest.split(" ")[0] for stage in (BUILD, FINAL) for word, rest in stage if word == "FROM"} == {"${BASE}"}


def test_an_application_is_built_on_the_same_images() -> None:
    """The image of an application takes both images as arguments; the defaults are those of this repository."""
    application = instructions(FOLDER / "app.Dockerfile")
    arguments = [rest for word, rest in application if word == "ARG"]
    assert arguments[:2] == [instructions()[0][1], f"IU_LISTEN=iu-listen:{__version__}"]
    bases = {rest.split(" ")[0] for word, rest in application if word == "FROM"}
    assert bases == {"${BASE}", "${IU_LISTEN}"}


def test_the_image_runs_as_nobody_in_particular() -> None:
    """The user is a number and not root, so that an orchestrator can check it without reading the image."""
    user, group = final("USER").split(":")
    assert int(user) >= 10_000
    assert int(group) >= 10_000
    assert [word for word, _ in FINAL].index("USER") < [word for word, _ in FINAL].index("ENTRYPOINT")


def test_signals_reach_the_process() -> None:
    """Entrypoint, command and health check are in exec form: no shell is between docker and iu-listen."""
    assert json.loads(final("ENTRYPOINT")) == ["iu-listen"]
    assert json.loads(final("CMD")) == ["run"]
    assert final("STOPSIGNAL") == "SIGTERM"
    options, _, command = final("HEALTHCHECK").partition(" CMD ")
    assert json.loads(command) == ["iu-listen", "health", "--here"]
    (timeout,) = re.findall(r"--timeout=(\d+)s", options)
    assert int(timeout) > Settings().deadline


def test_the_final_image_installs_nothing() -> None:
    """The last stage has no RUN: its files come from the first stage and from the base, so it has no compiler."""
    assert [word for word, _ in FINAL if word in ("RUN", "ADD")] == []
    assert [rest for word, rest in FINAL if word == "COPY"] == ["--from=build /opt/iu-listen /opt/iu-listen"]
    assert "[embedded]" not in DOCKERFILE.read_text()


def test_every_installation_is_hashed() -> None:
    """Each pip command installs files with a known hash, also for the build of the wheel, and names no package index.

    No build frontend is downloaded, either.
    """
    commands = [
        part for word, rest in BUILD if word == "RUN" for part in rest.split("&&") if "pip" in shlex.split(part)[0]
    ]
    assert len(commands) == 3
    for command in commands:
        assert "--require-hashes" in command or "--no-deps --build-constraint hashes.txt" in command, command
        assert "index" not in command
    assert "syntax=" not in DOCKERFILE.read_text() + (FOLDER / "app.Dockerfile").read_text()


def test_the_build_sees_what_it_copies_and_nothing_else() -> None:
    """The ignore file lets through exactly what the Dockerfile copies: no .git, no tests, no secrets of a checkout."""
    lines = [line for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    copied = {source for word, rest in BUILD if word == "COPY" for source in rest.split()[:-1]}
    assert {line[1:] for line in lines if line.startswith("!")} == copied
    assert any(fnmatch.fnmatch("src/iu_listen/__pycache__", line) for line in lines[1:] if line[0] != "!")


def test_the_build_copies_what_exists() -> None:
    """Every path that the Dockerfile copies exists, as does every file from which pyproject.toml builds the wheel."""
    copied = {source for word, rest in BUILD if word == "COPY" for source in rest.split()[:-1]}
    assert {"pyproject.toml", "hashes.txt", "src", "sql", "README.md", "LICENSE"} <= copied
    assert [source for source in sorted(copied) if not (ROOT / source).exists()] == []


# -- compose -------------------------------------------------------------------------------------------------------


def test_what_is_published_is_published_on_loopback() -> None:
    """Every published port names 127.0.0.1, because docker's rules bypass a host firewall."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    for port in ports:
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), port


def test_every_image_has_a_version() -> None:
    """No image is `latest` or without a tag, and the project's own has the version of this repository."""
    for name, service in SERVICES.items():
        image, _, tag = service["image"].partition(":")
        assert tag, name
        assert tag != "latest", name
        if image == "iu-listen":
            assert tag == __version__
    assert f"-t iu-listen:{__version__} " in DOCKERFILE.read_text()


def test_no_secret_is_written_down() -> None:
    """The value of each password, secret, token or key comes from a required variable."""
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|TOKEN|KEY", key):
                assert re.fullmatch(r"\$\{\w+:\?[^}]+\}", value), f"{name}: {key}"
            else:
                assert "://" not in str(value) or "@" not in str(value), f"{name}: {key}"


def test_services_start_in_order() -> None:
    """Services start in order: healthy database, package, role, consumer; each wait has the right condition."""
    for service in SERVICES.values():
        for needed, how in service.get("depends_on", {}).items():
            one_shot = SERVICES[needed].get("restart") == "no"
            checked = "healthcheck" in SERVICES[needed] and "disable" not in SERVICES[needed]["healthcheck"]
            expected = (
                "service_completed_successfully" if one_shot else "service_healthy" if checked else "service_started"
            )
            assert how["condition"] == expected, needed
    assert {"postgres", "roles"} <= SERVICES["consumer"]["depends_on"].keys()
    assert {"postgres", "apply"} <= SERVICES["roles"]["depends_on"].keys()


def test_the_consumer_speaks_to_the_collector_as_it_listens() -> None:
    """The image has the exporter for OTLP over HTTP, and the consumer uses the collector's port for it."""
    environment = SERVICES["consumer"]["environment"]
    assert environment["OTEL_TRACES_EXPORTER"] == "otlp"
    assert "[http,kafka,nats,otlp,prometheus,redis]" in DOCKERFILE.read_text()
    port = COLLECTOR["receivers"]["otlp"]["protocols"]["http"]["endpoint"].rpartition(":")[2]
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://collector:{port}"


def test_prometheus_and_grafana_find_what_they_show() -> None:
    """The consumer serves metrics where Prometheus scrapes; Grafana has the dashboard and that Prometheus."""
    prometheus, grafana = ({target.split(":")[1]: target.split(":")[0] for target in SERVICES[name]["volumes"]}
                           for name in ("prometheus", "grafana"))  # fmt: skip
    for source in (*prometheus.values(), *grafana.values()):
        assert (ROOT / "deploy" / "docker" / source).exists(), source
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yaml").read_text())
    assert config["scrape_configs"][0]["static_configs"][0]["targets"] == ["consumer:9464"]
    assert set(config["rule_files"]) <= set(prometheus)
    environment = SERVICES["consumer"]["environment"]
    assert (environment["OTEL_METRICS_EXPORTER"], environment["OTEL_EXPORTER_PROMETHEUS_HOST"]) == (
        "prometheus", "0.0.0.0",
    )  # fmt: skip
    sources = yaml.safe_load((ROOT / "deploy" / "grafana" / "provisioning" / "datasources.yaml").read_text())
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"


def test_nothing_in_the_demo_may_more_than_it_must() -> None:
    """All services except the database run read-only, without capabilities and without new privileges."""
    for name, service in SERVICES.items():
        if name == "postgres":
            continue
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "privileged" not in service, name


def test_the_consumer_is_given_the_time_to_stop() -> None:
    """stop_grace_period is longer than the grace period and than the deadline of the batch that ends first."""
    consumer = SERVICES["consumer"]
    settings = Settings.load(consumer["environment"])
    assert int(consumer["stop_grace_period"].removesuffix("s")) > max(settings.grace_period, settings.batch_deadline)


def test_what_is_mounted_exists() -> None:
    """Every mounted file is in the repository and read-only; volumes are declared."""
    for service in SERVICES.values():
        for mount in service.get("volumes", ()):
            source, _, rest = mount.partition(":")
            if source.startswith("."):
                assert (FOLDER / source).resolve().is_file(), source
                assert rest.endswith(":ro")
            else:
                assert source in COMPOSE["volumes"]
    # Since version 18 the image refuses to start with a volume at the former path.
    assert SERVICES["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]


def test_the_collector_passes_on_what_it_takes() -> None:
    """Every part of a pipeline is configured, every configured part is used, and the exporter sends to a service."""
    for kind in ("receivers", "processors", "exporters"):
        used = {part for pipeline in COLLECTOR["service"]["pipelines"].values() for part in pipeline[kind]}
        assert used == COLLECTOR[kind].keys()
    assert COLLECTOR["service"]["pipelines"]["traces"]["processors"][0] == "memory_limiter"
    (exporter,) = COLLECTOR["exporters"].values()
    assert exporter["endpoint"] == "${env:TRACES_ENDPOINT}"
    host, _, port = SERVICES["collector"]["environment"]["TRACES_ENDPOINT"].partition(":")
    assert (host in SERVICES, port) == (True, "4317")
    taken = {value["endpoint"].rpartition(":")[2] for value in COLLECTOR["receivers"]["otlp"]["protocols"].values()}
    assert taken == {port.rpartition(":")[2] for port in SERVICES["collector"]["ports"]}


async def roles(dsn: str) -> set[str]:
    """Every role of the cluster."""
    async with connected(dsn) as connection:
        return {row["rolname"] for row in await connection.fetch("select rolname from pg_roles")}


async def drop_roles(dsn: str, names: Iterable[str]) -> None:
    """Drop these roles, and their privileges in this database."""
    async with connected(dsn) as connection:
        for name in names:
            await connection.execute(f"drop owned by {name}; drop role {name}")


@pytest.fixture
def fresh(empty: Database) -> Iterator[dict[str, str]]:
    """An empty database as environment variables; roles that the test creates are dropped afterwards."""
    if empty.server is None:
        pytest.skip("makes roles with fixed names")
    before = asyncio.run(roles(empty.dsn))
    parts = urlsplit(empty.dsn)
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    path = f"{embedded.binaries(18)}{os.pathsep}{os.environ['PATH']}"
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PG", "IU_LISTEN_"))}
    yield {
        **clean,
        "PATH": path,
        "PGHOST": query["host"],
        "PGPORT": query["port"],
        "PGDATABASE": parts.path.lstrip("/"),
    }
    asyncio.run(drop_roles(empty.dsn, asyncio.run(roles(empty.dsn)) - before))


def test_the_demo_sets_itself_up(fresh: dict[str, str], tmp_path: Path) -> None:
    """The commands of `apply` and `roles`, run as by compose, prepare a database that the consumer's role may read."""

    def run(service: str, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
        given = {**fresh, "PGUSER": SERVICES[service]["environment"]["PGUSER"], **environment}
        return subprocess.run(
            command, env=given, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )

    iu_listen = [sys.executable, "-m", "iu_listen"]
    mounts = {m.split(":")[1]: str((FOLDER / m.split(":")[0]).resolve()) for m in SERVICES["roles"]["volumes"]}
    psql = [re.sub(r"(?<==).*", lambda m: mounts.get(m[0], m[0]), word) for word in SERVICES["roles"]["entrypoint"]]
    for service, command in (("apply", [*iu_listen, *SERVICES["apply"]["command"]]), ("roles", psql)):
        # The second run finds everything in place, as a second `compose up` does.
        for _ in range(2):
            done = run(service, command, CONSUMER_PASSWORD="it's; one")
            assert done.returncode == 0, f"{service}: {done.stdout}{done.stderr}"
    health = run("consumer", [*iu_listen, "health", "--json"])
    assert json.loads(health.stdout)["registered"], health.stderr
    denied = run("consumer", [*iu_listen, "gate", "open", "worker"])
    assert denied.returncode != 0
    opened = run("apply", [*iu_listen, "gate", "open", "worker"])
    assert opened.returncode == 0, opened.stderr
