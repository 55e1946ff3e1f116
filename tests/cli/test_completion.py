"""Shell completion: bash itself completes the commands."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from cli.command import refused, run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_command_is_in_the_script(shell):
    """The script of each shell has the commands and an option of them."""
    done = run("completion", shell)
    assert done.code == 0, done.err
    for word in ("dead-letter", "event-type", "until-idle"):
        assert word in done.out, word


def test_bash_completes_a_command(tmp_path):
    """bash completes the beginning of a command to the commands that begin so.

    Fails when: the script cannot be read by bash, or belongs to another name.
    """
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not here")
    script = tmp_path / "iu-listen.bash"
    script.write_text(run("completion", "bash").out)
    ask = f"""source {script}
        function_name=$(complete -p iu-listen | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        COMP_WORDS=(iu-listen de); COMP_CWORD=1; COMP_LINE='iu-listen de'; COMP_POINT=12
        $function_name iu-listen de iu-listen
        printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run([bash, "--norc", "-c", ask], capture_output=True, text=True, check=False)
    assert {"delivery", "dead-letter", "demo", "dev"} >= set(done.stdout.split()) >= {"demo", "dev"}, done.stderr


def test_an_unknown_shell_is_refused():
    """Another shell is refused, with the names of the possible ones."""
    refused(2, "bash", "zsh", "fish")("completion", "tcsh")
