"""Run the harness with this adapter in its registry: `run.py CHECKOUT [--postgres-bin DIR] OPTIONS OF bench run`.

It needs the Python of the harness, with the libraries of the harness; the adapter runs with that of iu-listen.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib import import_module
from pathlib import Path

HERE = Path(__file__).resolve().parent
SYSTEM = "iu-listen"


class LocalPostgres:
    """A server of the same settings as the container of the harness, as plain processes of this machine.

    It has its own directory of data and the port of the harness. PostgreSQL refuses to run as root, so root runs it as
    the account `postgres`.
    """

    def __init__(self, programs: Path, settings: Path, port: int, user: str) -> None:
        self._programs, self._settings, self._port, self._user = programs, settings, port, user
        self._data: Path | None = None

    def create(self) -> None:
        """Create and start it, unless it runs."""
        if self._data is None:
            root = Path(tempfile.mkdtemp(prefix="iu-listen-harness-"))
            if os.geteuid() == 0:
                shutil.chown(root, "postgres")
            self._data = root / "data"
            self._run("initdb", "--auth=trust", "--username", self._user, "--pgdata", str(self._data))
            self.start()

    def start(self) -> None:
        options = f"-c config_file={self._settings} -c listen_addresses=localhost -p {self._port} -k {self._data}"
        self._control("start", "-w", "-o", options, "-l", f"{self._data}.log")

    def stop(self) -> None:
        """Stop it as the container is stopped: sessions are ended, and the data stays."""
        self._control("stop", "-m", "fast")

    def remove(self) -> None:
        """Stop it, and remove its data."""
        if self._data is not None:
            self._control("stop", "-m", "immediate")
            shutil.rmtree(self._data.parent)
            self._data = None

    def _control(self, *arguments: str) -> None:
        self._run("pg_ctl", "-D", str(self._data), *arguments)

    def _run(self, program: str, *arguments: str) -> None:
        account = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.geteuid() == 0 else {}
        command = [self._programs / program, *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **account)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a checkout of the harness")
    parser.add_argument(
        "--python", type=Path, default=HERE.parents[1] / ".venv/bin/python", help="the adapter's Python"
    )
    parser.add_argument("--postgres-bin", type=Path, help="programs of PostgreSQL, with pgstattuple; instead of Docker")
    own, options = parser.parse_known_args()
    checkout = own.checkout.resolve()
    sys.path.insert(0, str(checkout))
    adapters, orchestrator = import_module("bench_harness.adapters"), import_module("bench_harness.orchestrator")

    def launch(manifest, overrides):
        env = adapters._base_env(manifest, overrides)  # noqa: SLF001 as every launcher of the registry does
        return adapters.LaunchSpec([str(own.python), str(HERE / "adapter.py")], env)

    adapters.ADAPTERS[SYSTEM] = adapters.AdapterEntry(bench_dir=HERE, builder=lambda _skip: None, launcher=launch)
    if own.postgres_bin:
        server = LocalPostgres(own.postgres_bin, checkout / "postgres.conf", adapters.PG_PORT, adapters.PG_USER)
        orchestrator.start_postgres = lambda _image: server.create()
        orchestrator.stop_postgres = lambda _image: server.remove()
        orchestrator._compose_stop_postgres = lambda _image: server.stop()  # noqa: SLF001
        orchestrator._compose_start_postgres = lambda _image: server.start()  # noqa: SLF001

    run_one_system = orchestrator.run_one_system

    def run_with_account(system, **arguments):
        """Run a system; then deliver the rest of our events, and put their account into the manifest of the run."""
        descriptor = run_one_system(system, **arguments)
        if system != SYSTEM:
            return descriptor
        spec = launch(adapters.AdapterManifest.load(HERE), {"SCENARIO": "drain"})
        done = subprocess.run(spec.argv, env=os.environ | spec.env, stdout=subprocess.PIPE, check=True)
        account = json.loads(done.stdout)
        print(f"[{SYSTEM}] {account}", file=sys.stderr)
        return {**descriptor, "account": account}

    orchestrator.run_one_system = run_with_account
    return orchestrator.main(["run", "--systems", SYSTEM, *options])


if __name__ == "__main__":
    raise SystemExit(main())
