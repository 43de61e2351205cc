"""A run directory is its user's alone: owner, mode, links, inherited access rights, and file systems without locks."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

import pytest
from config_builder import make_config

from medssr_dist.data.jsonl import JsonlLedger, write_json
from medssr_dist.data.private_files import open_private_folder, replace_private
from medssr_dist.errors import InputError
from medssr_dist.run.clock import read_clock, time_step
from medssr_dist.run.directory import RunDir, open_run
from medssr_dist.run.paths import RunPaths
from medssr_dist.synthesis.client.budget import ReservationLedger
from medssr_dist.synthesis.journal import Journal

_ACL = "system.posix_acl_default"


@pytest.fixture
def victim(tmp_path):
    file = tmp_path / "victim"
    file.write_text("precious\n")
    return file


@pytest.mark.parametrize("mode", [0o777, 0o775, 0o757, 0o1777, 0o702])
def test_a_folder_that_others_may_write_in_is_refused(tmp_path, mode):
    root = tmp_path / "run"
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(InputError, match=f"has mode {mode:04o}.* chmod go-w {root}"), open_run(root, make_config()):
        pass
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("place", ["voting", "training/stage1/checkpoints"])
@pytest.mark.parametrize("change", ["mode", "owner", "link"])
def test_a_folder_within_a_run_that_others_may_change_is_refused(tmp_path, place, change):
    """What stands in it is believed, and checkpoints run code."""
    if change == "owner" and os.getuid():
        pytest.skip("only root may change the owner of a folder")
    with open_run(tmp_path / "run", make_config()) as run:
        pass
    folder = run.root / place
    folder.mkdir(parents=True)
    if change == "link":
        folder.rmdir()
        (elsewhere := tmp_path / "elsewhere").mkdir()
        folder.symlink_to(elsewhere)
        with open_run(run.root, make_config()):  # a link to a folder of one's own, on another disk for example
            elsewhere.chmod(0o777)
    elif change == "mode":
        folder.chmod(0o775)
    else:
        os.chown(folder, 65534, 65534)
    with pytest.raises(InputError, match=f"{folder} (has mode|belongs to)"), open_run(run.root, make_config()):
        pass


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o755])
def test_a_folder_that_others_may_only_read_is_used(tmp_path, mode):
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(mode)
    with open_run(tmp_path / "run", make_config()) as run:
        assert run.manifest_file.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the owner of a folder")
def test_a_folder_of_another_user_is_refused(tmp_path):
    (tmp_path / "run").mkdir(mode=0o700)
    os.chown(tmp_path / "run", 65534, 65534)
    with pytest.raises(InputError, match="belongs to user 65534"), open_run(tmp_path / "run", make_config()):
        pass


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("rows.jsonl", lambda path: JsonlLedger(path).close()),
        ("journal.jsonl", lambda path: Journal(path).close()),
        (".journal.jsonl.lock", lambda path: Journal(path.with_name("journal.jsonl")).close()),
        ("exposure.bin", lambda path: ReservationLedger(path, 10).close()),
    ],
)
def test_nothing_is_written_through_a_link(tmp_path, victim, name, write):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / name).symlink_to(victim)
    with pytest.raises(InputError, match=f"{name} is a link"):
        write(folder / name)
    assert victim.read_text() == "precious\n"


def test_a_planted_lock_is_not_followed(tmp_path, victim):
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "run" / ".lock").symlink_to(victim)
    with pytest.raises(InputError, match=r"\.lock is a link"), open_run(tmp_path / "run", make_config()):
        pass
    assert victim.read_text() == "precious\n"


def test_a_link_at_the_name_of_a_document_is_replaced(tmp_path, victim):
    file = tmp_path / "a.json"
    file.symlink_to(victim)
    write_json(file, {"a": 1})
    assert victim.read_text() == "precious\n" and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) == 0o600


def test_temporary_names_cannot_be_foreseen_and_are_cleared(tmp_path):
    with pytest.raises(RuntimeError), replace_private(tmp_path / "a") as file:
        first = {path.name for path in tmp_path.iterdir()}
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [] and str(os.getpid()) not in str(first)
    with open_run(tmp_path / "run", make_config()) as run:
        pass
    (run.root / ".manifest.json.abc.tmp").write_text("left by a kill")
    with open_run(run.root, make_config()):
        assert not list(run.root.glob("*.tmp")) and not (run.root / ".manifest.json.abc.tmp").exists()


def test_inherited_rights_of_others_are_removed(tmp_path):
    entries = [(1, 7), (4, 7), (0x20, 7)]  # owner, group and others may do everything
    rights = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", kind, mode, 2**32 - 1) for kind, mode in entries)
    try:
        os.setxattr(tmp_path, _ACL, rights)
    except OSError:
        pytest.skip("this file system has no access control lists")
    with open_run(tmp_path / "run", make_config()) as run, time_step(run.root, "vote"):
        ledger = JsonlLedger(run.voting.labels)
        ledger.append({"a": 1})
        ledger.close()
    found = [path for path in run.root.rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert found == [] and stat.S_IMODE(run.root.stat().st_mode) == 0o700


def test_a_path_that_is_no_folder_is_one_line(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "loop", tmp_path / "file", tmp_path / "a\0b", tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="choose another with --run-dir"), open_run(root, make_config()):
            pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InputError, match=r"run/\.lock: .* no file locks"), open_run(tmp_path / "run", make_config()):
        pass


def test_an_existing_folder_keeps_its_mode(tmp_path):
    (tmp_path / "run").mkdir(mode=0o750)
    (tmp_path / "run").chmod(0o750)
    open_private_folder(tmp_path / "run")
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o750


@pytest.mark.parametrize("content", ["[]", '{"vote": "x"}', '{"vote": -1}', '{"vote": 1e999}', "{oops", '{"a": [1]}'])
def test_a_damaged_clock_is_reported_before_the_step(tmp_path, content):
    RunPaths(tmp_path).clock_file.write_text(content)
    with pytest.raises(InputError, match=r"clock\.json"), time_step(tmp_path, "vote"):
        pytest.fail("the step has begun")


def test_a_clock_that_cannot_be_written_ends_no_step(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise InputError("no space left")

    monkeypatch.setattr("medssr_dist.run.clock.write_json", fail)
    with time_step(tmp_path, "vote"):
        pass
    assert "the time of step vote is not recorded: no space left" in caplog.text and read_clock(tmp_path) == {}


def test_only_ascii_numbers_are_attempts(tmp_path):
    for name in ("0001", "²", "x", "1" * 30, "٣"):
        (tmp_path / "attempts" / name).mkdir(parents=True)
    assert [attempt.folder.name for attempt in RunDir(tmp_path).attempts()] == ["0001"]
