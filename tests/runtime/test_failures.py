"""How a command ends: one line for a fault of the machine, a file with the traceback for a bug."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from medssr_dist import cli
from medssr_dist.errors import InputError
from medssr_dist.runtime.failures import describe_foreseen, to_line


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run `medssr status RUN` where the command itself raises `error`; return exit code, and what it printed."""

    def run(error: BaseException, folder: Path = tmp_path) -> tuple[int, str]:
        def fail(_):
            raise error

        monkeypatch.setattr(cli, "_status", fail)
        code = cli.main(["status", str(folder)])
        return code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x", "/runs/a/votes"), "/runs/a/votes: No space left on device; free some space"),
        (OSError(errno.EDQUOT, "x", "/runs/a"), "quota"),
        (PermissionError(errno.EACCES, "x", "/runs/a"), "/runs/a: Permission denied; check the owner"),
        (OSError(errno.EROFS, "x", "/runs/a"), "read-only"),
        (OSError(errno.EMFILE, "x"), "ulimit -n"),
        (OSError(errno.ENOLCK, "x"), "no file locks"),
        (socket.gaierror(-2, "Name or service not known"), "host is not known here (Name or service not known)"),
        (RuntimeError("Could not determine home directory."), "set HOME"),
        (KeyError("getpwuid(): uid not found: 4711"), "no entry in the passwd file"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "not valid UTF-8"),
    ],
    ids=["full", "quota", "permission", "read-only", "open files", "locks", "host", "home", "passwd", "encoding"],
)
def test_a_fault_of_the_machine_is_one_line(run, error, words):
    code, shown = run(error)
    assert code == 2 and words in shown and shown.count("\n") == 1 and shown.startswith("medssr: ")


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "runs/a", "--oops", "WORD"],
        ["status", "runs/a", "--api-key=WORD"],
        ["WORD"],
        ["preview", "--config", "c.yaml", "--n", "WORD"],
        ["export", "--run-dir", "a", "--to", "b", "--form", "WORD"],
        ["teacher", "--port", "WORD"],
        ["bench", "WORD"],
    ],
)
@pytest.mark.parametrize("word", ["sk-planted-0123456789abcdef", "x" * 100_000, "9" * 5000, "\x1b[2J", "\udcff"])
def test_a_wrong_argument_is_shown_short_and_without_keys(capsys, arguments, word):
    with pytest.raises(SystemExit) as end:
        cli.main([argument.replace("WORD", word) for argument in arguments])
    last = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == 2 and len(last) < 520 and last.isprintable() and "sk-planted" not in last


def test_a_message_is_short_and_printable(run):
    code, shown = run(InputError("value \x1b[31m" + "x" * 3_000_000 + "\nfix it"))
    assert code == 2 and len(shown) < 520 and "\x1b" not in shown and "\\x1b[31m" in shown
    assert to_line("a\nb") == "a b"


def test_a_bug_leaves_its_traceback_in_the_run_directory(run, tmp_path):
    code, shown = run(ZeroDivisionError("division by zero"))
    (file,) = tmp_path.glob("medssr-traceback-*.txt")
    assert code == 1 and shown.count("\n") == 1 and str(file) in shown and "ZeroDivisionError" in shown
    assert "in fail" in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_fault_that_passes_by_itself_is_requeued():
    """A stale file handle of NFS: exit code 1, after which a Slurm job is requeued, not 2."""
    assert describe_foreseen(OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/runs/a")) is None


def test_ctrl_c_is_one_line(run):
    code, shown = run(KeyboardInterrupt())
    assert code == 3 and "resumes" in shown and shown.count("\n") == 1


_LOUD = """
import sys
from medssr_dist import cli

cli._status = lambda args: [print("x" * 1000) for _ in range(1000)]
raise SystemExit(cli.main(["status", sys.argv[1]]))
"""


def test_a_closed_pipe_is_no_traceback(tmp_path):
    program = tmp_path / "loud.py"
    program.write_text(_LOUD)
    with subprocess.Popen(
        [sys.executable, str(program), str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        process.stdout.read(10)
        process.stdout.close()
        shown = process.stderr.read()
    assert "Traceback" not in shown


def test_a_missing_or_unfit_package_names_its_fix():
    absent = describe_foreseen(ModuleNotFoundError("No module named 'ray'", name="ray"))
    assert "the package ray is not installed" in absent and "pip install 'medssr_dist[cpu]'" in absent
    openrlhf = describe_foreseen(ModuleNotFoundError("No module named 'openrlhf'", name="openrlhf.models"))
    assert openrlhf.endswith("pip install --no-deps openrlhf==0.11.2")
    try:
        try:
            raise RuntimeError("operator torchvision::nms does not exist")
        except RuntimeError as cause:
            raise ModuleNotFoundError("Could not import module 'LlamaConfig'") from cause
    except ModuleNotFoundError as error:
        assert "pip uninstall torchvision" in describe_foreseen(error)
    assert describe_foreseen(ModuleNotFoundError("No module named 'medssr_dist.x'", name="medssr_dist.x")) is None
