"""The parts of the launcher one by one. tests/slurm runs the whole launcher on a real Slurm."""

from __future__ import annotations

import stat
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from attempt_files import write_timings
from ledger_writer import fill

from medssr_dist.config.load import load_config
from medssr_dist.data.checksums import compute_file_checksum
from medssr_dist.data.jsonl import JsonlLedger, read_json
from medssr_dist.errors import InputError
from medssr_dist.inference.event_log import EventLog
from medssr_dist.launch import ports, ray_node
from medssr_dist.launch.attempts import (
    FIRST_ANSWER,
    FIRST_ENGINE,
    FIRST_TOKEN,
    Attempt,
    AttemptExit,
    count_idle_attempts,
    find_unfinished,
)
from medssr_dist.launch.fit_config import FittedConfig, fit_config
from medssr_dist.launch.ray_node import NodeResources, build_node_environment, build_ray_command
from medssr_dist.launch.ray_watch import describe_missing_nodes
from medssr_dist.launch.timings import Timings
from medssr_dist.run.paths import RunPaths
from medssr_dist.training.weights.checkpoints import CheckpointKeeper, StoredFile, list_checkpoints, recover_checkpoint

LOOPBACK = "127.0.0.1"


def test_the_launcher_needs_only_the_standard_library():
    """It runs outside the container that holds everything else."""
    code = (
        "import sys, medssr_dist.launch.__main__\n"
        "names = {name.split('.')[0] for name in sys.modules}\n"
        "print(*sorted(names & {'pydantic', 'yaml', 'numpy', 'msgspec', 'tqdm', 'torch', 'ray', 'aiohttp'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_two_jobs_on_a_node_get_different_ports():
    first, second = ports.claim_ports(LOOPBACK, 7), ports.claim_ports(LOOPBACK, 7)
    try:
        assert abs(first.first - second.first) >= ports.SIZE
        assert first.last < 32_768
        numbers = [int(option.split("=")[1]) for option in first.ray_options(head=True)]
        assert len(set(numbers)) == len(numbers)
        assert all(first.first < number <= first.last for number in numbers)
    finally:
        first.guard.close()
        second.guard.close()


def test_a_block_with_a_port_in_use_is_skipped():
    block = ports.claim_ports(LOOPBACK, 3)
    block.guard.close()
    taken = ports._bind(LOOPBACK, block.first + 100)
    with taken:
        other = ports.claim_ports(LOOPBACK, 3)
        other.guard.close()
        assert other.first != block.first


def test_ray_is_started_with_explicit_options(tmp_path):
    block = ports.PortBlock(20_000, None)
    head = build_ray_command(None, "10.0.0.1", block, NodeResources(4, 0, 8000), 2, tmp_path)
    worker = build_ray_command("10.0.0.1:20001", "10.0.0.2", block, NodeResources(64, 8, 500_000), 0, tmp_path)
    assert {"--head", "--port=20001", "--num-gpus=2", "--num-cpus=6", "--node-ip-address=10.0.0.1"} <= set(head)
    assert {"--address=10.0.0.1:20001", "--num-gpus=8", "--num-cpus=64", f"--temp-dir={tmp_path}"} <= set(worker)
    assert not any(option.startswith("--port=") for option in worker)


def test_the_environment_holds_the_path_of_the_token_only(tmp_path):
    block = ports.PortBlock(20_000, None)
    env = build_node_environment(
        LOOPBACK, block, 2, ["n1", "n2"], NodeResources(2, 0, 8000), tmp_path / "token", tmp_path
    )
    assert env["RAY_AUTH_MODE"] == "token" and env["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert env["GLOO_SOCKET_IFNAME"] == "lo" and env["MEDSSR_NODES"] == "n1 n2" and env["MEDSSR_DEVICE"] == "cpu"
    assert "MEDSSR_DEVICE" not in build_node_environment(
        LOOPBACK, block, 2, ["n1"], NodeResources(2, 8, 8000), tmp_path, tmp_path
    )


def test_resources_come_from_slurms_environment(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "12")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "1000")
    assert NodeResources.from_slurm() == NodeResources(12, 4, 1000)


def test_gpus_that_slurm_did_not_give_are_named(monkeypatch):
    """A node with GPUs on a cluster without GRES, or a job that asked for none, must not run on its CPUs unnoticed."""
    for name in ("SLURM_GPUS_ON_NODE", "MEDSSR_GPUS", "MEDSSR_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(ray_node, "count_nvidia_gpus", lambda: 8)
    with pytest.raises(InputError, match=r"8 GPUs, but Slurm gave the job none.*--gpus-per-node=8.*MEDSSR_GPUS=8"):
        NodeResources.from_slurm()
    monkeypatch.setenv("MEDSSR_GPUS", "8")
    assert NodeResources.from_slurm().gpus == 8
    monkeypatch.delenv("MEDSSR_GPUS")
    monkeypatch.setenv("MEDSSR_DEVICE", "cpu")
    assert NodeResources.from_slurm().gpus == 0


def _vote_on(run: Path, questions: int) -> None:
    """Have the vote's own ledger write votes on the first questions; votes that it has are not written again."""
    fill(RunPaths(run).voting.folder, questions, labels=0)


def _attempt_with(run: Path, votes: int, end: bool = True) -> Attempt:
    attempt = Attempt.begin(run)
    _vote_on(run, votes)
    if end:
        attempt.finish(AttemptExit(4, "node n2 is lost"))
    return attempt


def test_attempts_without_progress_are_counted(tmp_path):
    assert count_idle_attempts(tmp_path) == 0
    for votes, idle in ((0, 1), (5, 0), (5, 1), (5, 2), (9, 0)):
        attempt = _attempt_with(tmp_path, votes)
        assert count_idle_attempts(tmp_path) == idle
    assert attempt.number == "0005"
    assert read_json(attempt.folder / "exit.json")["reason"] == attempt.exit.reason == "node n2 is lost"
    assert find_unfinished(tmp_path) is None
    last = _attempt_with(tmp_path, 9, end=False)
    assert find_unfinished(tmp_path).number == last.number == "0006"


def _save(run: Path, step: int, complete: bool = True) -> None:
    """Have training's own writer begin the checkpoint of `step`, and complete it unless a rank is lost."""

    def write(folder: Path, tag: str, state: dict) -> list[dict[str, StoredFile]]:
        (folder / tag).mkdir()
        (folder / tag / "rank0").write_text("x")
        if not complete:
            raise KeyboardInterrupt  # a kill: nothing is cleaned up
        return [{"rank0": StoredFile(1, compute_file_checksum(folder / tag / "rank0"))}]

    keeper = CheckpointKeeper(RunPaths(run).stage("stage1").checkpoints, 1, lambda: 1, write)
    with suppress(KeyboardInterrupt):
        keeper.save(step, {}, reward=step)


def test_only_a_complete_checkpoint_is_progress_in_training(tmp_path):
    """Steps that are trained again and lost again are no progress; checkpoints are saved and pruned by training."""
    metrics = RunPaths(tmp_path).stage("stage1").metrics
    attempts = [  # metrics lines, checkpoint begun, is it completed, idle attempts afterwards
        (2, None, False, 1),
        (3, 4, False, 2),
        (4, 4, True, 0),
        (7, None, False, 1),
        (5, 8, True, 0),  # the checkpoint of step 4 is pruned
        (9, 12, False, 1),
    ]
    for steps, step, complete, idle in attempts:
        attempt = Attempt.begin(tmp_path)
        recover_checkpoint(RunPaths(tmp_path).stage("stage1").checkpoints)  # as a stage does before it resumes
        with JsonlLedger(metrics) as ledger:
            ledger.append(*[{"step": number} for number in range(steps)])
        if step:
            _save(tmp_path, step, complete)
        attempt.finish(AttemptExit(1, "the driver failed"))
        assert count_idle_attempts(tmp_path) == idle
    assert list_checkpoints(RunPaths(tmp_path).stage("stage1").checkpoints)[0].step == 8


def test_the_token_is_private_and_ends_with_the_attempt(tmp_path):
    attempt = Attempt.begin(tmp_path)
    token = attempt.create_token()
    assert len(token) == 64 and attempt.paths.token.read_text() == token
    assert stat.S_IMODE(attempt.paths.token.stat().st_mode) == 0o600
    attempt.finish(AttemptExit(0, "done"))
    assert not attempt.paths.token.exists()


def test_timings_show_the_first_answer_of_this_attempt(tmp_path):
    attempt = _attempt_with(tmp_path, 3, end=False)
    timings = Timings(attempt, started=0.0)
    with JsonlLedger(RunPaths(tmp_path).evaluation.answers):
        pass
    timings.record_from_files()
    assert FIRST_ANSWER not in timings.reached
    _vote_on(tmp_path, 4)
    timings.record_from_files()
    timings.write()
    assert set(read_json(attempt.folder / "timings.json")) == {FIRST_ANSWER, "end of the attempt"}


def test_timings_show_the_first_engine_and_token_of_this_job(tmp_path, monkeypatch):
    attempt, file = Attempt.begin(tmp_path), RunPaths(tmp_path).voting.engine_events
    events = [(90.0, "ready"), (91.0, "first token"), (130.0, "ready"), (131.5, "first token"), (140.0, "ready")]
    with EventLog(file) as log:
        for now, event in events:
            with monkeypatch.context() as patch:
                patch.setattr(time, "time", lambda now=now: now)
                log("engine 0", event, "")
    with open(file, "a") as torn:
        torn.write('{"time": 14')
    timings = Timings(attempt, started=100.0)
    timings.record("Ray on every node", 120.0)
    timings.write()
    reached = read_json(attempt.folder / "timings.json")
    assert list(reached)[:3] == ["Ray on every node", FIRST_ENGINE, FIRST_TOKEN]
    assert (reached[FIRST_ENGINE], reached[FIRST_TOKEN]) == (30.0, 31.5)
    assert "1.5 s, at     31.5 s: first vLLM token" in (attempt.folder / "launch.log").read_text()


@pytest.mark.parametrize(
    ("overrides", "nodes", "expected", "slots"),
    [
        ([], 1, ["training.nodes=1", "training.engines=1", "voting.engines=1"], 4),
        (["voting.engines=7"], 1, ["training.nodes=1", "training.engines=1"], 10),
        (["runtime.mode=sequential"], 1, ["training.nodes=1", "training.engines=1", "voting.engines=1"], 3),
    ],
)
def test_a_config_is_fitted_to_one_node(repo, overrides, nodes, expected, slots):
    file = repo / "configs" / "smollm2_cpu.yaml"
    assert fit_config(file, overrides, nodes, 0, "run") == FittedConfig([*overrides, *expected], slots)
    assert fit_config(file, overrides, nodes, 8, "run").slots == 0
    assert fit_config(file, overrides, nodes, 0, "synthesize").slots == 0


def test_more_nodes_share_the_same_batch(repo):
    nodes = ["training.nodes=4", "training.engines=4", "voting.engines=4"]
    assert fit_config(repo / "configs" / "smollm2_cpu.yaml", [], 4, 0, "run") == FittedConfig(nodes, 4)


@pytest.mark.parametrize(("growth", "times"), [("none", 1), ("linear", 4), ("sqrt", 2)])
def test_steps_grow_with_the_nodes(repo, growth, times):
    file, asked = repo / "configs" / "demo_cpu.yaml", [f"training.scale_batch={growth}"]
    one, four = (
        load_config(file, []).training,
        load_config(file, fit_config(file, asked, 4, 0, "run").overrides).training,
    )
    for before, after in ((one.stage1, four.stage1), (one.stage2, four.stage2)):
        assert after.prompts_per_step == times * before.prompts_per_step
        assert after.learning_rate == pytest.approx(times * before.learning_rate)
    kept = fit_config(file, [*asked, "training.stage1.prompts_per_step=4"], 4, 0, "run").overrides
    assert load_config(file, kept).training.stage1.prompts_per_step == 4  # what the user sets stays


def test_a_number_of_nodes_that_does_not_fit_is_refused(repo, tmp_path):
    file = tmp_path / "two.yaml"
    file.write_text(
        f"extends: {repo}/configs/smollm2_cpu.yaml\ntraining: {{nodes: 2, stage1: {{micro_batch_size: 4}}, "
        "stage2: {micro_batch_size: 4}}\n"
    )
    with pytest.raises(InputError, match="laid out for 2 nodes .* the job has 3"):
        fit_config(file, [], 3, 8, "run")
    with pytest.raises(InputError, match=r"stage1: prompts_per_step x samples_per_prompt = 16 is fewer than ranks"):
        fit_config(repo / "configs" / "smollm2_cpu.yaml", [], 9, 8, "run")


def test_missing_nodes_are_named():
    assert describe_missing_nodes({"n1": "10.0.0.1", "n2": "10.0.0.2"}, {"10.0.0.1"}) == "n2 (10.0.0.2)"


def test_outside_a_job_the_launcher_refuses_to_start(tmp_path, monkeypatch, capsys):
    from medssr_dist.launch.__main__ import main

    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert main(["--run-dir", str(tmp_path), "--slots", "1", "true"]) == 2
    assert "sbatch" in capsys.readouterr().err
    assert not (tmp_path / "attempts").exists()


def test_an_attempt_without_a_recorded_end_is_not_idle(tmp_path):
    """A node that dies with the launcher leaves no exit.json."""
    write_timings(_attempt_with(tmp_path, 1, end=False), {})
    assert count_idle_attempts(tmp_path) == 0
