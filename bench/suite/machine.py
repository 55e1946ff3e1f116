"""The description of a run: machine, versions, sizes, and how busy the machine was otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from suite.bench import SERVER, Bench
from suite.systems import System


def describe(bench: Bench, began: float, found: dict[System, str], missing: dict[str, str]) -> dict[str, Any]:
    """Facts about a run, for the report."""
    server = subprocess.run([bench.server.bin / "postgres", "--version"], capture_output=True, text=True, check=True)
    return {
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime(began)) + " UTC",
        "minutes": (time.time() - began) / 60,
        "cores": os.cpu_count(),
        "processor": _processor(),
        "load": os.getloadavg()[1],
        "python": platform.python_version(),
        "postgresql": server.stdout.split()[-1],
        "server": SERVER | {"fsync": "on", "synchronous_commit": "on"},
        "sizes": asdict(bench.sizes),
        "systems": [
            {"name": system.name, "kind": system.kind, "version": version, "settings": system.settings}
            for system, version in found.items()
        ],
        "missing": missing,
    }


def _processor() -> str:
    """Name of the processor, where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
