"""API keys are read from the environment or a private file, and never appear in a file, log or process list."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from process_list import command_lines

from medssr_dist.config.load import load_config
from medssr_dist.errors import InputError
from medssr_dist.offline_teacher.server import start_teacher
from medssr_dist.run.paths import RunPaths

KEY = "sk-planted-0123456789abcdef"


@pytest.fixture
def key_file(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("home") / "api_key"
    file.write_text(KEY + "\n")
    file.chmod(0o600)
    return file


@pytest.fixture
def config_file(tmp_path, repo) -> Path:
    tree = {
        "extends": str(repo / "configs" / "smollm2_cpu.yaml"),
        "synthesis": {"accepted": 12, "alpha": 0.0, "endpoints": [{"base_url": "http://localhost:1/v1", "model": "m"}]},
    }
    file = tmp_path / "keyed.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def load_key(config_file: Path, key_file: Path) -> str:
    config = load_config(config_file, [f"synthesis.endpoints.0.api_key=file:{key_file}"])
    return config.synthesis.endpoints[0].api_key.get_secret_value()


def test_key_is_read_from_a_file_of_mode_0600(config_file, key_file, monkeypatch):
    assert load_key(config_file, key_file) == KEY
    monkeypatch.setenv("HOME", str(key_file.parent))
    assert load_key(config_file, Path("~/api_key")) == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610])
def test_key_file_open_to_others_is_refused_with_the_fix(config_file, key_file, mode):
    key_file.chmod(mode)
    with pytest.raises(
        InputError, match=rf"endpoints\.0\.api_key: .* mode {mode:04o} .* chmod 600 {key_file}"
    ) as error:
        load_key(config_file, key_file)
    assert KEY not in str(error.value)


@pytest.mark.skipif(os.getuid() != 0, reason="only root may change the owner of a file")
def test_key_file_of_another_user_is_refused(config_file, key_file):
    os.chown(key_file, 65534, 65534)
    with pytest.raises(InputError, match="owner 65534"):
        load_key(config_file, key_file)


def test_unreadable_key_file_is_reported_by_name(config_file, key_file):
    with pytest.raises(InputError, match="absent cannot be read \\(No such file"):
        load_key(config_file, key_file.with_name("absent"))
    key_file.write_bytes(b"\xff")
    with pytest.raises(InputError, match="not UTF-8"):
        load_key(config_file, key_file)


def test_a_pipe_in_place_of_a_key_file_is_refused(config_file, key_file):
    os.mkfifo(pipe := key_file.with_name("pipe"), 0o600)
    with pytest.raises(InputError, match="pipe is a pipe"):
        load_key(config_file, pipe)


@pytest.mark.parametrize("content", ["", " \n", "sk-first\nsecond", "sk-a b", "sk-\0", "sk-é", "k" * 10_001])
def test_a_file_that_holds_no_key_is_refused(config_file, key_file, content):
    key_file.write_text(content)
    with pytest.raises(InputError, match="it holds no key: one line"):
        load_key(config_file, key_file)


def test_a_key_behind_a_byte_order_mark_is_read(config_file, key_file):
    key_file.write_bytes(b"\xef\xbb\xbf" + KEY.encode() + b"\r\n")
    assert load_key(config_file, key_file) == KEY


def test_literal_key_is_refused_and_not_repeated(config_file):
    with pytest.raises(InputError, match="or a file of mode 0600") as error:
        load_config(config_file, [f"synthesis.endpoints.0.api_key={KEY}"])
    assert KEY not in str(error.value)


@pytest.mark.parametrize("source", ["environment", "file"])
def test_key_appears_in_no_process_list_file_or_output(config_file, key_file, tmp_path, source):
    """Checked during and after a real synthesis, whose files are readable by their user only."""
    key = "${PLANTED_KEY}" if source == "environment" else f"file:{key_file}"
    env = os.environ | {"PLANTED_KEY": KEY, "MEDSSR_CACHE": str(tmp_path / "cache")}
    seen = ""
    with start_teacher(tmp_path / "teacher.log", options=["--rate-500", "0.2"]) as url:
        command = [sys.executable, "-m", "medssr_dist.cli", "synthesize", "--config", str(config_file), "--run-dir"]
        command += [
            str(tmp_path / "run"),
            f"synthesis.endpoints.0.base_url={url}",
            f"synthesis.endpoints.0.api_key={key}",
        ]
        with open(tmp_path / "out", "w") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=env, umask=0o022)
            while process.poll() is None:
                seen += command_lines()
    assert process.returncode == 0, (tmp_path / "out").read_text()[-2000:]
    written = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert RunPaths(tmp_path / "run").synthesis.journal in written and "synthesis.endpoints.0.api_key=" in seen
    assert KEY not in seen and [file for file, data in written.items() if KEY.encode() in data] == []
    open_to_others = [path for path in (tmp_path / "run").rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077]
    assert open_to_others == []
