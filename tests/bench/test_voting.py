"""`medssr bench voting`: its arithmetic, its audit, and small runs of the parts without vLLM. No timings."""

import itertools
import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssr_dist.bench.voting.engine import VoteRun, run_vote, with_voting
from medssr_dist.bench.voting.ledger_audit import audit_ledger
from medssr_dist.bench.voting.replay import find_least_tokens, replay_votes, simulate_savings
from medssr_dist.bench.voting.report import draw_voting_plots, format_voting_table
from medssr_dist.bench.voting.run import QUICK
from medssr_dist.bench.voting.simulated_vote import (
    POLICY,
    SAMPLING,
    PlainPrompts,
    make_simulated_config,
    write_questions,
)
from medssr_dist.bench.voting.simulation import DrawnAnswers, InstantEngine, Speed
from medssr_dist.bench.voting.simulation_cluster import Cluster, simulate_cluster
from medssr_dist.bench.voting.stream_speed import measure_stream_speed
from medssr_dist.bench.voting.timeline import Timeline
from medssr_dist.bench.voting.voting_figures import (
    AdaptiveCase,
    AdaptiveVoting,
    CoordinatorRun,
    CoordinatorSpeed,
    PoolSpeed,
    SavingsCurve,
    StreamSpeed,
    VotingFigures,
)
from medssr_dist.config.voting import Voting
from medssr_dist.data.jsonl import read_json, read_jsonl
from medssr_dist.data.records import Label
from medssr_dist.inference.pool import EnginePool
from medssr_dist.run.stream import QuestionFeed
from medssr_dist.voting.early_stopping import is_certain
from medssr_dist.voting.ledger import VoteLedger, derive_seeds
from medssr_dist.voting.tally import Tally
from medssr_dist.voting.vote_scheduler import VoteScheduler, collect_votes

NO_BAR = SimpleNamespace(n=0, update=lambda count: None, set_postfix=lambda **values: None)


# --- utilisation and audit -----------------------------------------------------------------------------------------


def test_utilisation_is_of_what_full_batches_would_have_given():
    """Two engines of 10 tokens/s: up 10 s each to begin with, the second one dies at 6 s."""
    clock = SimpleNamespace(now=0.0)
    engines = [
        SimpleNamespace(
            capacity=lambda now, end=end: 10.0 * min(now, end),
            running=running,
            speed=Speed(batch=4),
            generated=50.0,
            failures=failures,
            slowness=1.0,
        )
        for end, running, failures in ((99.0, 4, []), (6.0, 1, [(6.0, "died")]))
    ]
    ledger = SimpleNamespace(tokens=0)
    timeline = Timeline(lambda: clock.now, engines, ledger, lambda: clock.now > 8)
    for second in range(11):
        clock.now, ledger.tokens = float(second), 12 * second
        assert timeline.sample() is False
    assert timeline.seconds == 10 and timeline.capacity == 160
    figures = timeline.summarise()
    assert figures.steady_utilisation == round((96 - 12) / (140 - 20), 4)  # from 1 s to 8 s
    assert figures.busy == round(100 / 160, 4) and figures.died == 1 and figures.tail_s == 1.0
    rows = timeline.list_rows()
    assert rows.failures == [(6.0, 1, "died")] and rows.occupancy[0] == bytes([255, 63])


@pytest.fixture
def voted(tmp_path):
    """A folder with a complete vote on 40 questions, its config and its answers."""
    write_questions(tmp_path / "questions.jsonl", 40)
    config, answers = make_simulated_config(samples=8), DrawnAnswers()
    with (
        VoteLedger(tmp_path, POLICY, SAMPLING) as ledger,
        EnginePool([InstantEngine(f"e{number}", answers) for number in range(3)], config.voting) as pool,
    ):
        collect_votes(
            pool,
            VoteScheduler(config, QuestionFeed(tmp_path / "questions.jsonl"), ledger, PlainPrompts()),
            ledger,
            NO_BAR,
            lambda: False,
        )
    return tmp_path, config, answers


def test_the_audit_finds_nothing_wrong_with_a_whole_ledger(voted):
    found = audit_ledger(*voted)
    assert (found.lost, found.doubled, found.labels_unlike_full_voting) == (0, 0, 0)
    labels = [Label.model_validate(row) for row in read_jsonl(voted[0] / "labeled.jsonl")]
    assert found.votes == sum(label.taken for label in labels) >= 40 * 5
    assert found.tokens == sum(label.tokens for label in labels)


def test_the_audit_counts_lost_doubled_and_wrong(voted):
    folder = voted[0]
    votes = (folder / "votes" / "00000.jsonl").read_text().splitlines(keepends=True)
    (folder / "votes" / "00000.jsonl").write_text("".join([*votes[2:], votes[5], votes[6], votes[6]]))
    assert (audit_ledger(*voted).lost, audit_ledger(*voted).doubled) == (2, 3)
    (folder / "votes" / "00000.jsonl").write_text("".join(votes))
    labels = (folder / "labeled.jsonl").read_text().splitlines(keepends=True)
    first = json.loads(labels[0])
    first["kept"], first["answer"], first["outcome"] = False, None, "tie"
    first.pop("crc32")
    (folder / "labeled.jsonl").write_text("".join([json.dumps(first) + "\n", *labels[1:-1]]))
    found = audit_ledger(*voted)
    last = json.loads(labels[-1])
    assert found.labels_unlike_full_voting == 2 and found.lost == 8 - last["taken"]


# --- small runs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", ["never", "lossless"])
def test_a_failing_cluster_loses_and_doubles_no_vote(tmp_path, adaptive):
    cluster = Cluster(
        engines=6,
        questions=600,
        samples=8,
        adaptive=adaptive,
        mtbf_s=60.0,
        wedge_share=0.3,
        straggler_share=1 / 6,
        stall_s=20.0,
        start_s=10.0,
        seed=6,
        answers=DrawnAnswers(tokens=200.0),
    )
    run = simulate_cluster(cluster, tmp_path)
    assert run.engines.died >= 1 and run.engines.wedged >= 1 and run.engines.stragglers == 1
    assert (run.audit.lost, run.audit.doubled, run.audit.labels_unlike_full_voting) == (0, 0, 0)
    assert 0 < run.utilisation <= run.engines.busy <= 1
    assert run.audit.votes == 4800 if adaptive == "never" else run.audit.votes < 4800


def test_replay_takes_what_asking_one_by_one_would(tmp_path):
    write_questions(tmp_path / "questions.jsonl", 30)
    config, answers = make_simulated_config(samples=9, adaptive="lossless"), DrawnAnswers(least=0.7, best=0.7)
    expected = 0
    for row in read_jsonl(tmp_path / "questions.jsonl"):
        tally = Tally()
        for seed in derive_seeds(row["id"], config.runtime.random_seed, 9):
            sample = answers.draw(row["id"], row["options"], seed)
            tally, expected = tally.add(sample.answer), expected + sample.tokens
            if is_certain(tally, tuple(row["options"]), config.voting):
                break
    assert replay_votes(config, tmp_path / "questions.jsonl", tmp_path, answers) == expected


VOTES = st.lists(st.tuples(st.sampled_from([*"ABC", None]), st.integers(1, 9)), min_size=6, max_size=6)


@settings(max_examples=60, deadline=None)
@given(VOTES, st.sampled_from(["lossless", "kept", "never"]), st.sampled_from(["requested", "valid"]))
def test_least_tokens_is_the_cheapest_subset_that_settles_it(votes, adaptive, confidence):
    voting = make_simulated_config(samples=6, adaptive=adaptive, confidence=confidence).voting
    subsets = itertools.chain.from_iterable(itertools.combinations(votes, size) for size in range(7))
    costs = [
        sum(tokens for _, tokens in subset)
        for subset in subsets
        if is_certain(Tally.from_answers(answer for answer, _ in subset), ("A", "B", "C"), voting)
    ]
    assert find_least_tokens(votes, ("A", "B", "C"), voting) == min(costs)


def test_a_better_policy_saves_more(tmp_path):
    curve = simulate_savings(tmp_path, 40, 16, accuracies=(0.4, 0.95))
    assert curve.simulated and 0.5 < curve.lossless[1] < 0.7 < curve.lossless[0] <= 1
    assert all(kept <= lossless for kept, lossless in zip(curve.kept, curve.lossless, strict=True))


def test_stream_and_sequential_train_on_the_same_labels(tmp_path):
    found = measure_stream_speed(tmp_path, 1.0)
    assert found.kept > 0 and found.wall_ratio > 0
    streamed, one_by_one = (
        [row["question"]["id"] for row in read_jsonl(tmp_path / mode / "labeled.jsonl")]
        for mode in ("stream", "sequential")
    )
    assert streamed == one_by_one


@pytest.fixture
def figures(tmp_path) -> VotingFigures:
    """Figures that miss some aims, with two small clusters in place of those of 64 and 512 engines."""
    clusters = {}
    for name in ("sim64", "sim512"):
        (tmp_path / name).mkdir()
        clusters[name] = simulate_cluster(Cluster(engines=4, questions=60, samples=4), tmp_path / name)
    case = AdaptiveCase(0.98, 0.975, 0.97, 0.97, True, True, votes=374, wasted_samples=2)
    modes = [f"{mode}_{confidence}" for mode in ("lossless", "kept") for confidence in ("requested", "valid")]
    few, many = (CoordinatorRun(questions, 20, 1.0, 1.0, 12_000, 90.0) for questions in (100, 10_000))
    return VotingFigures(
        pool=PoolSpeed(0.97, "m", 20, 8, 32, {"vllm": [100.0], "pool": [97.0]}),
        adaptive=AdaptiveVoting("m", "float32", 24, 16, 0.5, 8686, 0.3, dict.fromkeys(modes, case)),
        adaptive_simulated=SavingsCurve(500, 16, accuracy=[0.3, 0.9], lossless=[0.98, 0.6], kept=[0.9, 0.6]),
        coordinator=CoordinatorSpeed(512, 64, {"lossless": [few], "never": [many]}, (few, many)),
        clusters=clusters,
        stream=StreamSpeed(0.6, 100, 13, 5.0, 5.0, 6.0, 5.5, 64),
        quick=True,
        scale=asdict(QUICK),
    )


def test_the_report_names_what_was_missed(figures, tmp_path):
    missed = [line.split("  ")[0] for line in format_voting_table(figures).splitlines() if "NOT MET" in line]
    assert "lossless, tokens to full voting's" in missed and "pool, tokens/s to vLLM's" not in missed
    draw_voting_plots(figures, tmp_path / "voting.json")
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "voting_sim64.png",
        "voting_sim512.png",
        "voting_adaptive.png",
    }


def test_the_result_file_keeps_its_keys(figures, repo):
    written = read_json(repo / "benchmarks" / "results" / "voting_cpu.json")
    for name in ("date", "commit", "machine", "versions"):
        del written[name]
    found = json.loads(json.dumps(figures.to_json()))
    assert list_keys(found) == list_keys(written)


def list_keys(value, path: str = "") -> set[str]:
    """Paths of all keys in `value`; a list counts as its first element."""
    if isinstance(value, list):
        return list_keys(value[0], path + "[]") if value else set()
    if not isinstance(value, dict):
        return set()
    own = {f"{path}.{name}" for name in value}
    return own.union(*(list_keys(part, f"{path}.{name}") for name, part in value.items()))


def test_adaptive_is_set_against_full_voting_by_the_same_votes(tmp_path):
    """With engines that answer at once, in place of vLLM."""
    file, answers = tmp_path / "questions.jsonl", DrawnAnswers(least=0.8, best=0.8)
    write_questions(file, 20)
    (tmp_path / "model").mkdir()
    config = make_simulated_config(samples=8)
    with EnginePool([InstantEngine("e", answers)], config.voting) as pool:

        def vote(mode: str, confidence: str) -> tuple[VoteRun, Voting]:
            case = with_voting(config, mode, confidence)
            folder = tmp_path / f"{mode}_{confidence}"
            return run_vote(case, file, folder, pool, PlainPrompts(), tmp_path / "model"), case.voting

        full, _ = vote("never", "requested")
        assert len(full.votes) == 160 == len(full.requested)
        for mode, confidence in itertools.product(("lossless", "kept"), ("requested", "valid")):
            adaptive, voting = vote(mode, confidence)
            found = adaptive.compare_to(full, voting)
            assert found.labels_identical and found.votes_identical
            assert found.least_possible_ratio <= found.token_ratio_of_votes <= found.token_ratio <= 1
            assert found.wasted_samples == len(adaptive.requested) - len(adaptive.votes) >= 0
        adaptive.labels[0] = adaptive.labels[0].model_copy(update={"kept": not adaptive.labels[0].kept})
        assert not adaptive.compare_to(full, voting).labels_identical
