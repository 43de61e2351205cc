"""The vote ledger and the vote itself, with a small pool in the engines' place."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist import stream
from medssr_dist.config import Config, Voting
from medssr_dist.errors import InputError, Stopped
from medssr_dist.jsonl import read_json, read_jsonl
from medssr_dist.records import Label, Question, Vote
from medssr_dist.runtime.models import model_fingerprint
from medssr_dist.runtime.requests import Completion
from medssr_dist.stream import kept_at_end, publish_taken
from medssr_dist.voting import run as voting_run
from medssr_dist.voting.ledger import VoteLedger, sampling_hash
from medssr_dist.voting.majority import decide

K = 4
TOKENIZER = SimpleNamespace(chat_template=None)
QUESTION = Question.make("Which vitamin prevents scurvy?", ["A", "B12", "C", "D"], source="set", truth="C")
QUESTIONS = [
    Question.make(f"Question {i}?", ["one", "two", "three"], source="set", truth="B" if i < 3 else None)
    for i in range(6)
]


def config(mode="sequential", **voting) -> Config:
    return Config.model_validate(
        {
            "policy": {"model": "m", "max_model_len": 256},
            "synthesis": {"accepted": 1, "seeds": ["s"], "endpoints": [{"base_url": "u", "model": "m"}]},
            "voting": {"samples": K, "max_tokens": 16, **voting},
            "training": {
                "ranks_per_node": 1,
                "stage1": {"max_new_tokens": 16},
                "stage2": {"enabled": False, "max_new_tokens": 16},
            },
            "evaluation": {"max_tokens": 16},
            "runtime": {"mode": mode},
        }
    )


def votes(answers: str, question=QUESTION, policy="p", sampling="s", first_seed=0) -> list[Vote]:
    """One vote a letter; '-' is an invalid one."""
    common = {"question_id": question.id, "policy": policy, "sampling": sampling, "method": None, "text": ""}
    return [
        Vote(seed=first_seed + i, answer=None if a == "-" else a, tokens=3, truncated=a == "-", **common)
        for i, a in enumerate(answers)
    ]


def label(answers: str, **voting) -> Label:
    return decide(QUESTION, votes(answers), Voting(samples=len(answers), **voting))


# --- ledger -----------------------------------------------------------------------------------------


def test_ledger_resumes_votes_and_labels(tmp_path):
    ledger = VoteLedger(tmp_path, "p", "s")
    ledger.add_votes(votes("AAB-"))
    ledger.add_label(label("AAB-"))
    ledger.close()
    again = VoteLedger(tmp_path, "p", "s")
    assert list(again.votes_of(QUESTION).values()) == votes("AAB-")
    assert again.labels == {QUESTION.id: label("AAB-")}
    assert again.kept == 1
    assert sorted(v.seed for v in again.all_votes({QUESTION.id})) == [0, 1, 2, 3]


def test_a_torn_last_vote_is_cut_off_and_the_next_stands_on_its_own_line(tmp_path):
    ledger = VoteLedger(tmp_path, "p", "s")
    ledger.add_votes(votes("AAB"))
    ledger.close()
    file = tmp_path / "votes.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    again = VoteLedger(tmp_path, "p", "s")
    assert sorted(again.votes_of(QUESTION)) == [0, 1]
    again.add_votes(votes("C", first_seed=2))
    again.close()
    assert [row["answer"] for row in read_jsonl(file)] == ["A", "A", "C"]


def test_votes_of_another_policy_or_sampling_do_not_count(tmp_path):
    ledger = VoteLedger(tmp_path, "p", "s")
    ledger.add_votes(votes("A"))
    ledger.add_votes(votes("BB", policy="other"))
    ledger.add_votes(votes("CC", sampling="other"))
    ledger.close()
    assert [v.answer for v in VoteLedger(tmp_path, "p", "s").votes_of(QUESTION).values()] == ["A"]
    assert [v.answer for v in VoteLedger(tmp_path, "other", "s").votes_of(QUESTION).values()] == ["B", "B"]
    assert len(list(read_jsonl(tmp_path / "votes.jsonl"))) == 5


def test_labels_of_another_policy_or_sampling_are_refused(tmp_path):
    """Else a question would be voted on again and keep its old label."""
    ledger = VoteLedger(tmp_path, "p", "s")
    ledger.add_label(label("AAB-"))
    ledger.close()
    with pytest.raises(InputError, match="labeled.jsonl holds labels of another policy.*--run-dir"):
        VoteLedger(tmp_path, "p", "other")


def test_texts_stay_on_disk(tmp_path):
    vote = votes("A")[0].model_copy(update={"text": "long " * 1000})
    ledger = VoteLedger(tmp_path, "p", "s")
    ledger.add_votes([vote])
    ledger.close()
    assert next(read_jsonl(tmp_path / "votes.jsonl"))["text"] == vote.text
    for found in (ledger, VoteLedger(tmp_path, "p", "s")):
        assert found.votes_of(QUESTION)[0].text == ""


def test_sampling_hash_covers_what_shapes_a_vote_and_nothing_else():
    base = sampling_hash(config(), None)
    for changed in ({"temperature": 0.7}, {"top_p": 0.9}, {"max_tokens": 8}):
        assert sampling_hash(config(**changed), None) != base
    for same in ({"samples": 99}, {"threshold": 0.9}, {"engines": 2}, {"shard_size": 1}, {"buffer": 1}):
        assert sampling_hash(config(**same), None) == base


# --- requests ---------------------------------------------------------------------------------------


def requests(tmp_path, taken: set[int], samples=K):
    """Requests for QUESTION when its votes at the offsets `taken` are on disk."""
    ledger = VoteLedger(tmp_path, "p", "s")
    (whole,) = voting_run._requests(config(samples=samples), [QUESTION], ledger, TOKENIZER)
    for offset in taken:
        ledger.add_votes(votes("A", first_seed=whole.seed + offset))
    rest = list(voting_run._requests(config(samples=samples), [QUESTION], ledger, TOKENIZER))
    ledger.close()
    return whole, rest


def test_one_request_a_question_with_the_configs_parameters(tmp_path):
    whole, rest = requests(tmp_path, set())
    assert rest == [whole]
    assert (whole.key, whole.n, whole.temperature, whole.top_p, whole.max_tokens) == (QUESTION.id, K, 1.0, 1.0, 16)
    assert whole.choices == ()
    assert QUESTION.stem in whole.prompt
    assert "C. C" in whole.prompt


@pytest.mark.parametrize(
    ("taken", "asked"),
    [
        ({0}, [(1, 3)]),
        ({0, 1, 2}, [(3, 1)]),
        ({1}, [(0, 1), (2, 2)]),
        ({0, 2}, [(1, 1), (3, 1)]),
        ({0, 1, 2, 3}, []),
    ],
)
def test_only_missing_seeds_are_asked_in_contiguous_runs(tmp_path, taken, asked):
    whole, rest = requests(tmp_path, taken)
    assert [(r.seed - whole.seed, r.n) for r in rest] == asked
    assert {r.key for r in rest} <= {QUESTION.id}


@given(st.sets(st.integers(0, 40)))
def test_contiguous_runs_cover_the_seeds_exactly(seeds):
    runs = voting_run._contiguous(sorted(seeds))
    assert [first + i for first, count in runs for i in range(count)] == sorted(seeds)
    assert all(first + count < following for (first, count), (following, _) in zip(runs, runs[1:], strict=False))


def test_a_questions_seeds_depend_on_neither_its_place_nor_its_neighbours(tmp_path):
    ledger = VoteLedger(tmp_path, "p", "s")
    seed_of = {r.key: r.seed for r in voting_run._requests(config(), QUESTIONS, ledger, TOKENIZER)}
    reverse = {r.key: r.seed for r in voting_run._requests(config(), QUESTIONS[:2][::-1], ledger, TOKENIZER)}
    ledger.close()
    assert reverse.items() <= seed_of.items()
    assert len(set(seed_of.values())) == len(QUESTIONS)


# --- the whole step ---------------------------------------------------------------------------------

REPLIES = {0: "BBBA", 1: "AABB", 2: "----", 3: "BBB-", 4: "BCA-", 5: "CCCC"}
EXPECTED = {0: ("B", True), 1: (None, False), 2: (None, False), 3: ("B", True), 4: (None, False), 5: ("C", True)}


class SmallPool:
    """Answers each question as REPLIES says, in the order asked; its process dies after `dies_after` questions."""

    def __init__(self, dies_after: int | None = None):
        self.dies_after, self.requests, self.closed = dies_after, [], False

    def __call__(self, *args):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.closed = True

    def generate(self, requests):
        for request in requests:
            if len(self.requests) == self.dies_after:
                raise KeyboardInterrupt
            self.requests.append(request)
            number = int(request.prompt.split()[1].rstrip("?"))
            yield request.key, [self._complete(REPLIES[number], request.seed + i, i) for i in range(request.n)]

    def _complete(self, replies: str, seed: int, index: int) -> Completion:
        letter = replies[index]
        return Completion("no idea" if letter == "-" else f"The answer is ({letter}).", 5, letter == "-", seed)


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(stream, "_POLL_S", 0.001)


@pytest.fixture
def model(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(voting_run, "load_tokenizer", lambda folder, policy: TOKENIZER)
    return folder


@pytest.fixture
def run(tmp_path, model, monkeypatch):
    def run(pool, folder="voting", questions=QUESTIONS, settings=None, **options):
        monkeypatch.setattr(voting_run, "EnginePool", pool)
        return voting_run.vote(settings or config(), questions, model, tmp_path / folder, **options)

    return run


def stored(folder):
    found = [Vote.model_validate(row) for row in read_jsonl(folder / "votes.jsonl")]
    return found, [Label.model_validate(row) for row in read_jsonl(folder / "labeled.jsonl")]


def test_the_step_labels_each_question_and_counts(tmp_path, run, model):
    pool = SmallPool()
    summary = run(pool)
    taken, labels = stored(tmp_path / "voting")
    assert pool.closed
    assert [(label.answer, label.kept) for label in labels] == list(EXPECTED.values())
    key = (model_fingerprint(model), sampling_hash(config(), None))
    assert {(vote.policy, vote.sampling) for vote in taken} == {key}
    assert taken[0].method == "statement"
    assert taken[0].text == "The answer is (B)."
    assert summary == read_json(tmp_path / "voting" / "summary.json")
    counts = {
        "questions": 6, "labeled": 3, "ties": 2, "all_invalid": 1, "kept": 3, "truth_known": 1, "agree_with_truth": 1,
        "votes": 24, "invalid_votes": 6, "truncated_votes": 6, "tokens": 120, "votes_taken_now": 24,
    }  # fmt: skip
    assert {name: summary[name] for name in counts} == counts
    assert kept_at_end(tmp_path / "voting" / "labeled.jsonl") == 3


def test_the_summary_asks_the_given_truth(run):
    summary = run(SmallPool(), truth=lambda question: "C")
    assert (summary["truth_known"], summary["agree_with_truth"]) == (3, 1)


@pytest.mark.parametrize("dies_after", range(7))
def test_interrupted_and_resumed_takes_no_vote_twice(tmp_path, run, dies_after):
    run(SmallPool(), "whole")
    first, second = SmallPool(dies_after), SmallPool()
    if dies_after < len(QUESTIONS):
        with pytest.raises(KeyboardInterrupt):
            run(first)
        assert first.closed
        assert kept_at_end(tmp_path / "voting" / "labeled.jsonl") is None
    else:
        run(first)
    summary = run(second)
    taken, labels = stored(tmp_path / "voting")
    whole_votes, whole_labels = stored(tmp_path / "whole")
    assert len({vote.key for vote in taken}) == len(taken) == 24
    assert set(taken) == set(whole_votes)
    assert len(labels) == len(QUESTIONS)
    assert {label.question.id: label for label in labels} == {label.question.id: label for label in whole_labels}
    assert summary["votes_taken_now"] == sum(request.n for request in second.requests) == 24 - 4 * dies_after
    assert kept_at_end(tmp_path / "voting" / "labeled.jsonl") == 3


@pytest.mark.parametrize("lost", [1, 40, 150, 400, 1000, 2000])
def test_killed_while_writing_votes(tmp_path, run, lost):
    """The file ends anywhere: whole votes are kept, the torn one and the lost ones are taken again."""
    run(SmallPool(), "whole")
    run(SmallPool(6))
    folder = tmp_path / "voting"
    for name in ("labeled.jsonl", "labeled.end.json", "summary.json"):
        (folder / name).unlink()
    data = (folder / "votes.jsonl").read_bytes()
    (folder / "votes.jsonl").write_bytes(data[:-lost])
    whole_lines = data[:-lost].count(b"\n")
    summary = run(SmallPool())
    taken, labels = stored(folder)
    assert len({vote.key for vote in taken}) == len(taken) == 24
    assert summary["votes_taken_now"] == 24 - whole_lines
    assert {label.question.id for label in labels} == {question.id for question in QUESTIONS}


def test_killed_between_votes_and_label(tmp_path, run):
    """Votes are written first: a question with all its votes and no label gets the label, and no vote."""
    run(SmallPool())
    folder = tmp_path / "voting"
    lines = (folder / "labeled.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "labeled.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:50])
    (folder / "labeled.end.json").unlink()
    pool = SmallPool()
    summary = run(pool)
    assert pool.requests == []
    assert summary["votes_taken_now"] == 0
    assert (folder / "labeled.jsonl").read_bytes() == b"".join(lines)


def test_a_finished_vote_asks_nothing_and_starts_no_engine(run):
    run(SmallPool())
    pool = SmallPool(dies_after=0)
    assert run(pool)["votes_taken_now"] == 0
    assert pool.requests == []


def test_stopped_keeps_what_was_taken(tmp_path, run):
    asked = iter([False, False, True])
    with pytest.raises(Stopped, match="same command"):
        run(SmallPool(), should_stop=lambda: next(asked))
    taken, labels = stored(tmp_path / "voting")
    assert (len(taken), len(labels)) == (12, 3)
    assert not (tmp_path / "voting" / "summary.json").exists()
    summary = run(SmallPool())
    assert (summary["votes_taken_now"], summary["votes"], summary["questions"]) == (12, 24, 6)


def test_what_should_stop_raises_ends_the_vote_and_frees_the_engines(run):
    def trainer_died():
        raise RuntimeError("trainer died")

    pool = SmallPool()
    with pytest.raises(RuntimeError, match="trainer died"):
        run(pool, should_stop=trainer_died)
    assert pool.closed
    assert len(pool.requests) == 1


def test_a_vote_that_no_trainer_follows_waits_for_nobody(run):
    """`medssr vote` alone, in stream mode, with more kept labels than the buffer holds."""
    asked = []

    def should_stop():
        asked.append(True)
        assert len(asked) < 50, "waits for a trainer that is not there"
        return False

    assert run(SmallPool(), settings=config(mode="stream", buffer=1), should_stop=should_stop)["kept"] == 3


def test_with_a_trainer_the_vote_waits_until_it_has_caught_up(tmp_path, run):
    """Buffer 1: after the second kept label (of question 3) the vote waits for the trainer."""
    labels, asked = tmp_path / "voting" / "labeled.jsonl", []

    def caught_up_when_asked_often():
        asked.append(len(labels.read_text().splitlines()))
        if len(asked) == 12:
            publish_taken(labels, 2)
        return False

    settings = config(mode="stream", buffer=1)
    run(SmallPool(), settings=settings, should_stop=caught_up_when_asked_often, trainer_follows=True)
    assert asked.count(4) > 3
    assert asked[-1] == 6


def test_without_questions_there_is_an_empty_end(tmp_path, run):
    assert run(SmallPool(), questions=[])["questions"] == 0
    assert kept_at_end(tmp_path / "voting" / "labeled.jsonl") == 0


def test_votes_are_plain_json_lines(tmp_path, run):
    run(SmallPool())
    lines = (tmp_path / "voting" / "votes.jsonl").read_text().splitlines()
    assert all(set(json.loads(line)) == set(Vote.model_fields) for line in lines)
