"""What is around a tool's `main`: exit codes and messages."""

from __future__ import annotations

import subprocess
import sys

import pytest

from passl_densecl.cli.command import command
from passl_densecl.errors import InputError, RunError


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("no such thing"), 2), (RunError("the disk is full"), 3), (KeyboardInterrupt(), 130)]
)
def test_an_error_is_a_message_and_an_exit_code(error, code, capsys):
    @command
    def main() -> int:
        raise error

    assert main() == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (f"test_command.py: {error}\n" if str(error) else "")


def test_what_main_returns_is_the_exit_code_and_a_mistake_of_ours_has_its_traceback():
    @command
    def main(answer: int) -> int:
        return answer // (answer - 1)

    assert main(3) == 1
    with pytest.raises(ZeroDivisionError):
        main(1)


@pytest.mark.parametrize("lines", [1, 100_000], ids=["at the end", "in between"])
def test_a_reader_that_has_gone_is_no_error(lines):
    program = f"""
import sys, time
from passl_densecl.cli.command import command
@command
def main():
    sys.stdin.read()  # until the reader has gone
    for line in range({lines}):
        print("line", line)
    return 0
sys.exit(main())
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stdin.close()
    assert process.stderr.read() == b""
    assert process.wait(30) == 141


def test_a_pipe_that_breaks_elsewhere_is_a_mistake_of_ours():
    @command
    def main() -> int:
        raise BrokenPipeError("a worker's")

    with pytest.raises(BrokenPipeError, match="a worker's"):
        main()
