"""`medssr status` of a run directory in which any file is something else: one line, exit code 0 or 2, no traceback."""

from __future__ import annotations

import os

import pytest
from attempt_files import write_timings
from config_builder import make_config

from medssr_dist import cli
from medssr_dist.launch.attempts import FIRST_STEP, Attempt, AttemptExit
from medssr_dist.run.clock import time_step
from medssr_dist.run.directory import open_run
from medssr_dist.training.stage_job import StageSummary

CONTENTS = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "object": b"{}",
    "number": b"5",
    "text": b'"x"',
    "list of objects": b'[{"steps": 1}]',
    "cut": b'{"steps": {',
    "deep": b"[" * 100_000,
    "deep object": b'{"steps":' * 20_000,
    "long number": b'{"steps": ' + b"1" * 9_000 + b"}",
    "infinity": b'{"vote": 1e999, "steps": Infinity}',
    "surrogate": b'{"attempts": [{"started": "x", "commit": "c", "versions": {}, "host": "\\ud800"}], "steps": {}}',
    "escapes": b'{"attempts": [{"started": "x", "commit": "\\u001b[2J", "versions": {}, "host": "h"}], "steps": {}}',
    "null step": b'{"attempts": [], "steps": {"vote": null}}',
    "unknown step": b'{"steps": {"sing": {"settings": {}, "inputs": {}, "started": "x", "finished": null}}}',
    "key twice": b'{"steps": {}, "steps": {}}',
    "NUL": b"\0" * 50,
    "not UTF-8": b"\xff\xfe{}",
    "huge text": b'{"steps": "' + b"x" * 2_000_000 + b'"}',
    "wrong types": b'{"policy": [], "voting": 1, "training": {"stage1": {"enabled": "maybe"}}, "code": [], "count": 0}',
}
FILES = [
    "manifest.json",
    "config.resolved.json",
    "clock.json",
    "synthesis/progress.json",
    "synthesis/summary.json",
    "synthesis/questions.jsonl",
    "voting/ledger.json",
    "voting/labeled.jsonl",
    "voting/labeled.end.json",
    "training/stage1/metrics.jsonl",
    "training/stage1/summary.json",
    "evaluation/answers.jsonl",
    "evaluation/scores.json",
    "attempts/0001/exit.json",
    "attempts/0001/timings.json",
]


@pytest.fixture
def run_dir(tmp_path):
    config = make_config()
    with open_run(tmp_path / "run", config) as run:
        for step in ("synthesize", "vote", "stage1", "evaluate"):
            run.begin_step(step, config, {"model": "0" * 16})
        with time_step(run.root, "vote"):
            pass
        attempt = Attempt.begin(run.root)
        write_timings(attempt, {FIRST_STEP: 3.0})
        attempt.finish(AttemptExit(4, "node n2 is lost"))
    return run.root


def check(capsys, arguments) -> None:
    code = cli.main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    assert code in (0, 2), err
    assert "Traceback" not in err and "\x1b" not in out + err
    last = err.splitlines()[-1:] or [""]
    assert len(last[0]) <= 510 and (code == 0) == (not last[0].startswith("medssr: "))


def test_the_run_itself_is_sound(run_dir, capsys):
    assert cli.main(["status", str(run_dir)]) == 0 and "node n2 is lost" in capsys.readouterr().out


@pytest.mark.parametrize("file", FILES)
def test_any_content_of_a_file_is_told_in_one_line(run_dir, capsys, file):
    place = run_dir / file
    place.parent.mkdir(parents=True, exist_ok=True)
    for content in CONTENTS.values():
        place.write_bytes(content)
        check(capsys, ["status", run_dir])
    place.unlink()
    place.mkdir()
    check(capsys, ["status", run_dir])
    place.rmdir()
    os.mkfifo(place)  # would be waited for without end
    check(capsys, ["status", run_dir])


def test_names_do_not_steer_the_terminal(tmp_path, capsys):
    root = tmp_path / "\x1b[31m\nrun"
    with open_run(root, make_config()):
        pass
    check(capsys, ["status", root])
    check(capsys, ["status", tmp_path / "\x1b]0;title\x07"])
    check(capsys, ["compare", root, tmp_path / "\ud800"])


def test_a_summary_of_a_stage_is_a_record(tmp_path):
    assert (
        StageSummary(
            prompts=1, skipped_too_long=0, old_logprobs="", seconds=1.0, steps=0, reward_by_step=[], tokens=0
        ).model
        == ""
    )
