"""What is around a tool's `main`: exit codes and messages."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from passl_densecl.cli.command import Parser, command
from passl_densecl.errors import InputError, RunError


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("no such thing"), 2), (RunError("the disk is full"), 3), (KeyboardInterrupt(), 130)]
)
def test_an_error_is_a_message_and_an_exit_code(error, code, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tools/embed.py"])

    @command
    def main() -> int:
        raise error

    assert main() == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (f"embed.py: {error}\n" if str(error) else "")


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
from passl_densecl.cli.command import Parser, command
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


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&- <&-"])
def test_closed_streams_are_no_error(closed, tmp_path):
    line = f"{sys.executable} -m passl_densecl config cp small/densecl_r18 {tmp_path}/c.yaml {closed}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "c.yaml").stat().st_size > 500


def test_a_pipe_that_breaks_elsewhere_is_a_mistake_of_ours():
    @command
    def main() -> int:
        raise BrokenPipeError("a worker's")

    with pytest.raises(BrokenPipeError, match="a worker's"):
        main()


@pytest.mark.parametrize(
    ("word", "value"), [("--list-file", "x"), ("--list_file", "x"), ("--list_file=x", None), ("--list_f", "x")]
)
def test_underscores_mean_hyphens(word, value, capsys):
    parser = Parser(prog="tool")
    verb = parser.add_subparsers(dest="verb").add_parser("pack")
    verb.add_argument("--list-file")
    verb.add_argument("--labeled", action="store_true")
    words = [word] if value is None else [word, value]
    found = parser.parse_args(["pack", *words, "--labelled"])
    assert (found.list_file, found.labeled) == ("x", True)
    assert "_file" not in verb.format_help()
    with pytest.raises(SystemExit):
        parser.parse_args(["pack", "--no_such"])
    assert "unknown option --no_such" in capsys.readouterr().err


@pytest.mark.parametrize("error", ["InputError('no such thing')", "RunError('the disk is full')"])
@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_several_processes_says_what_only_it_knows(error, rank):
    """An InputError, which all have in common, is printed once; a RunError ends the process without exit handlers."""
    program = f"""
import atexit, sys
from passl_densecl.cli.command import Parser, command
from passl_densecl.errors import InputError, RunError
atexit.register(print, "left by the front door")
@command
def main():
    print("begun")
    raise {error}
sys.exit(main())
"""
    environment = os.environ | {"PADDLE_TRAINER_ID": str(rank), "PADDLE_TRAINERS_NUM": "2"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    expected = (2, "begun\nleft by the front door\n") if "Input" in error else (3, "begun\n")
    assert (done.returncode, done.stdout) == expected
    said = "" if "Input" in error and rank else error.split("'")[1]
    assert done.stderr == (f"-c: {said}\n" if said else "")
