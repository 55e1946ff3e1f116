"""The files of the repository, for the tests about it."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def tracked(*patterns: str) -> list[Path]:
    """Files that git tracks, or all files if there is no git."""
    done = subprocess.run(["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return [f for f in ROOT.rglob("*") if f.is_file() and ".venv" not in f.parts]
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).is_file()]
