"""The version of iu-listen. pyproject.toml has the same value."""

from __future__ import annotations

from typing import Final

VERSION: Final = "0.1.0"
