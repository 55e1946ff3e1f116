"""The command completion: print a script that completes commands and options in a shell."""

from __future__ import annotations

import sys
from typing import Literal

from cyclopts import App


def register(app: App) -> None:
    """Add this command."""

    def completion(shell: Literal["bash", "zsh", "fish"], /) -> int:
        """Print a script that completes commands and options in a shell.

        For bash, write it to ~/.local/share/bash-completion/completions/iu-listen; for fish, to
        ~/.config/fish/completions/iu-listen.fish; for zsh, to the file _iu-listen in a directory of fpath.
        """
        sys.stdout.write(app.generate_completion(shell=shell))
        return 0

    app.command(completion)
