"""The table of slurm/bench.sh, from run directories made here; test_slurm.py runs the jobs."""

from dataclasses import asdict

import pytest
from config_builder import make_config

from medssr_dist.bench.nodes import NodeRates, begin_nodes_run, main, read_node_rates
from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.errors import InputError
from medssr_dist.inference import event_log
from medssr_dist.inference.event_log import EventLog
from medssr_dist.launch.attempts import FIRST_TOKEN, Attempt
from medssr_dist.launch.timings import Timings
from medssr_dist.run.directory import RunDir, open_run
from medssr_dist.voting.quality import measure_quality
from medssr_dist.voting.quality_records import VoteSummary


@pytest.fixture
def questions(tmp_path):
    """A run that has written its questions and begun to vote."""
    with open_run(tmp_path / "questions", make_config()) as run:
        for step in ("synthesize", "vote"):
            run.begin_step(step, make_config(), {})
        run.finish_step("synthesize")
    run.synthesis.folder.mkdir()
    run.synthesis.questions.write_text("{}\n" * 4)
    return run.root


def test_a_new_run_has_the_questions_alone_and_is_kept(questions, tmp_path):
    run = RunDir(tmp_path / "bench" / "nodes-2")
    begin_nodes_run(questions, run.root)
    assert run.synthesis.questions.read_text() == "{}\n" * 4
    assert list(run.read_manifest().steps) == ["synthesize"] and run.is_finished("synthesize")
    with open_run(run.root, make_config()):
        pass
    begin_nodes_run(questions, run.root)
    assert len(run.read_manifest().attempts) == 1


def test_runs_without_finished_questions_are_refused(tmp_path, capsys):
    with pytest.raises(InputError, match="no finished questions"):
        begin_nodes_run(tmp_path, tmp_path / "nodes-1")
    assert main(["table", str(tmp_path)]) == 2
    assert "holds no finished nodes-N/voting" in capsys.readouterr().err


def test_rates_do_not_include_the_start_of_the_engines(questions, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "bench"
    for nodes, seconds in ((2, 150), (10, 110)):  # of them 100 until an engine is ready
        run = RunDir(folder / f"nodes-{nodes}")
        begin_nodes_run(questions, run.root)
        counts = {"questions": 4, "kept": 2, "votes": 50, "tokens": 1000}
        quality = measure_quality([], make_config().voting, dict).model_copy(update=counts)
        summary = VoteSummary(votes_taken_now=50, seconds=seconds, tokens=1000, quality=quality)
        write_json(run.voting.summary, summary.model_dump(mode="json"))
        with EventLog(run.voting.engine_events) as log:
            for clock, event in ((0.0, "start"), (100.0, "ready")):
                monkeypatch.setattr(event_log.time, "time", lambda clock=clock: clock)
                log("engine 0", event, "")
        timings = Timings(Attempt.begin(run.root), started=0.0)
        timings.record(FIRST_TOKEN, at=7.5)
        timings.write()
    begin_nodes_run(questions, folder / "nodes-4")  # still waiting
    assert read_node_rates(folder) == [
        NodeRates(nodes=2, votes_per_s=1.0, tokens_per_s=20.0, first_token_s=7.5),
        NodeRates(nodes=10, votes_per_s=5.0, tokens_per_s=100.0, first_token_s=7.5),
    ]
    capsys.readouterr()  # the attempts' logs
    assert main(["table", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["2", "1.0", "20.0", "1.00", "7.5"]
    assert read_json(folder / "bench.json")["rows"] == [asdict(row) for row in read_node_rates(folder)]
