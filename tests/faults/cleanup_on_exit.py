"""A process that cleans up if this process is killed and cannot."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def cleanup_after_process(script: str, *args: object, account: tuple[int, int] | None = None) -> Iterator[None]:
    """If this process ends within the block in any way, a shell runs ``script`` with these arguments."""
    uid, gid = account or (None, None)
    # The shell waits for a line that never comes, until this process ends and the kernel closes the pipe.
    with subprocess.Popen(
        ["/bin/sh", "-c", f"read -r line; {script}", "sh", *map(str, args)],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
        user=uid, group=gid, extra_groups=None if account is None else [],
    ) as cleaner:  # fmt: skip
        try:
            yield
        finally:
            cleaner.kill()
