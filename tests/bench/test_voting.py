"""The voting benchmark: its arithmetic, its audit, and little runs of all that needs no vLLM. Never a timing."""

import itertools
import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medssr_dist.bench.voting.engine import Voted, with_voting
from medssr_dist.bench.voting.replay import least_tokens, replay, simulated_curve
from medssr_dist.bench.voting.report import draw_voting_plots, format_voting_table
from medssr_dist.bench.voting.simulation import DrawnAnswers, InstantEngine, Speed
from medssr_dist.bench.voting.simulation_cluster import (
    POLICY,
    SAMPLING,
    Cluster,
    PlainTokenizer,
    Timeline,
    audit,
    simulate,
    simulated_config,
    write_questions,
)
from medssr_dist.bench.voting.stream_speed import stream_against_sequential
from medssr_dist.data.jsonl import read_jsonl
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
        assert timeline.look() is False
    assert timeline.seconds == 10 and timeline.capacity == 160
    figures = timeline.figures()
    assert figures["steady_utilisation"] == round((96 - 12) / (140 - 20), 4)  # from 1 s to 8 s
    assert figures["busy"] == round(100 / 160, 4) and figures["died"] == 1 and figures["tail_s"] == 1.0
    rows = timeline.rows()
    assert rows["failures"] == [(6.0, 1, "died")] and rows["occupancy"][0] == bytes([255, 63])


@pytest.fixture
def voted(tmp_path):
    """A folder with a whole vote of 40 questions, its config and its answers."""
    write_questions(tmp_path / "questions.jsonl", 40)
    config, answers = simulated_config(samples=8), DrawnAnswers()
    with (
        VoteLedger(tmp_path, POLICY, SAMPLING) as ledger,
        EnginePool([InstantEngine(f"e{number}", answers) for number in range(3)], config.voting) as pool,
    ):
        collect_votes(
            pool,
            VoteScheduler(config, QuestionFeed(tmp_path / "questions.jsonl"), ledger, PlainTokenizer()),
            ledger,
            NO_BAR,
            lambda: False,
        )
    return tmp_path, config, answers


def test_the_audit_finds_nothing_wrong_with_a_whole_ledger(voted):
    found = audit(*voted)
    assert (found["lost"], found["doubled"], found["labels_unlike_full_voting"]) == (0, 0, 0)
    labels = [Label.model_validate(row) for row in read_jsonl(voted[0] / "labeled.jsonl")]
    assert found["votes"] == sum(label.taken for label in labels) >= 40 * 5
    assert found["tokens"] == sum(label.tokens for label in labels)


def test_the_audit_counts_lost_doubled_and_wrong(voted):
    folder = voted[0]
    votes = (folder / "votes" / "00000.jsonl").read_text().splitlines(keepends=True)
    (folder / "votes" / "00000.jsonl").write_text("".join([*votes[2:], votes[5], votes[6], votes[6]]))
    assert {name: audit(*voted)[name] for name in ("lost", "doubled")} == {"lost": 2, "doubled": 3}
    (folder / "votes" / "00000.jsonl").write_text("".join(votes))
    labels = (folder / "labeled.jsonl").read_text().splitlines(keepends=True)
    first = json.loads(labels[0])
    first["kept"], first["answer"], first["outcome"] = False, None, "tie"
    (folder / "labeled.jsonl").write_text("".join([json.dumps(first) + "\n", *labels[1:-1]]))
    found = audit(*voted)
    last = Label.model_validate_json(labels[-1])
    assert found["labels_unlike_full_voting"] == 2 and found["lost"] == 8 - last.taken


# --- little runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adaptive", ["never", "lossless"])
def test_a_cluster_that_dies_hangs_and_lags_loses_and_doubles_nothing(tmp_path, adaptive):
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
    found = simulate(cluster, tmp_path)
    assert found["died"] >= 1 and found["wedged"] >= 1 and found["stragglers"] == 1
    assert (found["lost"], found["doubled"], found["labels_unlike_full_voting"]) == (0, 0, 0)
    assert 0 < found["utilisation"] <= found["busy"] <= 1
    assert found["votes"] == 4800 if adaptive == "never" else found["votes"] < 4800


def test_replay_takes_what_asking_one_by_one_would(tmp_path):
    write_questions(tmp_path / "questions.jsonl", 30)
    config, answers = simulated_config(samples=9, adaptive="lossless"), DrawnAnswers(least=0.7, best=0.7)
    expected = 0
    for row in read_jsonl(tmp_path / "questions.jsonl"):
        tally = Tally()
        for seed in derive_seeds(row["id"], config.runtime.random_seed, 9):
            sample = answers.draw(row["id"], row["options"], seed)
            tally, expected = tally.add(sample.answer), expected + sample.tokens
            if is_certain(tally, tuple(row["options"]), config.voting):
                break
    assert replay(config, tmp_path / "questions.jsonl", tmp_path, answers) == expected


VOTES = st.lists(st.tuples(st.sampled_from([*"ABC", None]), st.integers(1, 9)), min_size=6, max_size=6)


@settings(max_examples=60, deadline=None)
@given(VOTES, st.sampled_from(["lossless", "kept", "never"]), st.sampled_from(["requested", "valid"]))
def test_least_tokens_is_the_cheapest_subset_that_settles_it(votes, adaptive, confidence):
    voting = simulated_config(samples=6, adaptive=adaptive, confidence=confidence).voting
    subsets = itertools.chain.from_iterable(itertools.combinations(votes, size) for size in range(7))
    costs = [
        sum(tokens for _, tokens in subset)
        for subset in subsets
        if is_certain(Tally.from_answers(answer for answer, _ in subset), ("A", "B", "C"), voting)
    ]
    assert least_tokens(votes, ("A", "B", "C"), voting) == min(costs)


def test_a_better_policy_saves_more(tmp_path):
    curve = simulated_curve(tmp_path, 40, 16, accuracies=(0.4, 0.95))
    assert curve["simulated"] and 0.5 < curve["lossless"][1] < 0.7 < curve["lossless"][0] <= 1
    assert all(kept <= lossless for kept, lossless in zip(curve["kept"], curve["lossless"], strict=True))


def test_stream_and_sequential_train_on_the_same_labels(tmp_path):
    found = stream_against_sequential(tmp_path, 1.0)
    assert found["stream"]["kept"] > 0 and found["stream_wall_ratio"] > 0
    streamed, one_by_one = (
        [row["question"]["id"] for row in read_jsonl(tmp_path / mode / "labeled.jsonl")]
        for mode in ("stream", "sequential")
    )
    assert streamed == one_by_one


def test_the_report_names_what_was_missed(tmp_path):
    cluster = Cluster(engines=4, questions=60, samples=4)
    found = {name: simulate(cluster, tmp_path / name) for name in _folders(tmp_path, "sim64", "sim512")}
    case = {"token_ratio": 0.98, "least_possible_ratio": 0.97, "labels_identical": True, "wasted_samples": 2}
    memory = [{"questions": 100, "peak_mb": 90.0}, {"questions": 10_000, "peak_mb": 91.0}]
    figures = {
        "pool_ratio_to_vllm": 0.97,
        "adaptive_token_ratio": 0.98,
        "adaptive_labels_identical": True,
        "coordinator_votes_per_s": 12_000,
        "coordinator_votes_per_s_full": 14_000,
        "coordinator_peak_mb_10k": 90.0,
        "coordinator_peak_mb_1m": 91.0,
        "coordinator": {"memory": memory},
        "stream_wall_ratio": 0.6,
        "quick": True,
        "adaptive": {
            "model": "m",
            "share_of_right_votes": 0.3,
            "cases": {
                f"{mode}_{confidence}": case for mode in ("lossless", "kept") for confidence in ("requested", "valid")
            },
        },
        "adaptive_simulated": {"samples": 16, "accuracy": [0.3, 0.9], "lossless": [0.98, 0.6], "kept": [0.9, 0.6]},
        "clusters": found,
    }
    for name, cluster in found.items():
        figures |= {f"{name}_{key}": cluster[key] for key in ("utilisation", "lost", "doubled")}
    missed = [line.split("  ")[0] for line in format_voting_table(figures).splitlines() if "NOT MET" in line]
    assert "lossless, tokens to full voting's" in missed and "pool, tokens/s to vLLM's" not in missed
    occupancy = {name: cluster["timeline"]["occupancy"] for name, cluster in found.items()}
    draw_voting_plots(figures, occupancy, tmp_path / "voting.json")
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "voting_sim64.png",
        "voting_sim512.png",
        "voting_adaptive.png",
    }


def _folders(root, *names: str):
    for name in names:
        (root / name).mkdir()
        yield name


def test_adaptive_is_set_against_full_voting_by_the_same_votes(tmp_path):
    """On engines that answer at once, in place of vLLM."""
    file, answers = tmp_path / "questions.jsonl", DrawnAnswers(least=0.8, best=0.8)
    write_questions(file, 20)
    (tmp_path / "model").mkdir()
    config = simulated_config(samples=8)
    with EnginePool([InstantEngine("e", answers)], config.voting) as pool:

        def voted(mode: str, confidence: str) -> tuple[Voted, object]:
            case = with_voting(config, mode, confidence)
            folder = tmp_path / f"{mode}_{confidence}"
            return Voted(case, file, folder, pool, PlainTokenizer(), tmp_path / "model"), case.voting

        full, _ = voted("never", "requested")
        assert len(full.votes) == 160 == len(full.asked)
        for mode, confidence in itertools.product(("lossless", "kept"), ("requested", "valid")):
            adaptive, voting = voted(mode, confidence)
            found = adaptive.against(full, voting)
            assert found["labels_identical"] and found["votes_identical"]
            assert found["least_possible_ratio"] <= found["token_ratio_of_votes"] <= found["token_ratio"] <= 1
            assert found["wasted_samples"] == len(adaptive.asked) - len(adaptive.votes) >= 0
        adaptive.labels[0] = adaptive.labels[0].model_copy(update={"kept": not adaptive.labels[0].kept})
        assert not adaptive.against(full, voting)["labels_identical"]
