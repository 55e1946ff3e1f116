"""Somebody who cleans up when we are killed and cannot."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def mourned_by(script: str, *args: object, account: tuple[int, int] | None = None) -> Iterator[None]:
    """Should this process end within the block, however it does, a shell runs ``script`` with these arguments."""
    uid, gid = account or (None, None)
    # It waits for a line that never comes. The end of the pipe is the end of us: the kernel closes what we have open.
    with subprocess.Popen(
        ["/bin/sh", "-c", f"read -r line; {script}", "sh", *map(str, args)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
        user=uid, group=gid, extra_groups=None if account is None else [],
    ) as mourner:  # fmt: skip
        try:
            yield
        finally:
            mourner.kill()
