"""The whole vote: scheduler, ledger and the real pool, with simple engines."""

from __future__ import annotations

import json
from contextlib import contextmanager
from itertools import count

import pytest
from config_builder import make_config
from far_engine import FarEngine
from stored_votes import stored_labels, stored_votes, write_questions
from stream_parts import Tokenizer, make_prompts

from medssr_dist.config.schema import Config
from medssr_dist.data.answers import extract_answer
from medssr_dist.data.checksums import CRC_KEY
from medssr_dist.data.jsonl import read_json
from medssr_dist.data.records import Label, Question, Vote
from medssr_dist.errors import InputError, Stopped
from medssr_dist.inference import pool as pool_module
from medssr_dist.inference.pool import EnginePool
from medssr_dist.inference.requests import Completion
from medssr_dist.run import stream
from medssr_dist.run.stream import QuestionFeed, publish_taken, read_kept_count
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.voting import quality_plots, vote_scheduler
from medssr_dist.voting import vote as voting_run
from medssr_dist.voting.calibration import CalibrationSlice
from medssr_dist.voting.ledger import derive_seeds, hash_vote_sampling
from medssr_dist.voting.quality_text import format_quality

K = 4
TOKENIZER = Tokenizer()
QUESTIONS = [
    Question.make(f"Question {i}?", ["one", "two", "three"], source="set", truth="B" if i < 3 else None)
    for i in range(6)
]
REPLIES = {0: "BBBA", 1: "AABB", 2: "----", 3: "BBB-", 4: "BCA-", 5: "CCCC"}
EXPECTED = [("B", True), (None, False), (None, False), ("B", True), (None, False), ("C", True)]
SEEDS = {question.id: derive_seeds(question.id, 42, K) for question in QUESTIONS}


def config(mode="sequential", **voting) -> Config:
    voting = {"samples": K, "max_tokens": 16, "adaptive": "never", **voting}
    return make_config(policy={"prompt": "direct"}, voting=voting, runtime={"mode": mode})


def reply(request, seed) -> Completion:
    number = list(SEEDS).index(request.key)
    letter = REPLIES[number][SEEDS[request.key].index(seed)]
    text = "no idea" if letter == "-" else f"The answer is ({letter})."
    return Completion.from_text(request, seed, text, 5, truncated=letter == "-")


class DyingVoter(FarEngine):
    """The process that votes dies after this many samples."""

    def __init__(self, after: int):
        answered = count()

        def answer(request, seed):
            if next(answered) == after:
                raise KeyboardInterrupt
            return reply(request, seed)

        super().__init__(answer=answer)


@pytest.fixture(autouse=True)
def short_polls(monkeypatch):
    monkeypatch.setattr(stream, "_POLL_S", 0.001)
    monkeypatch.setattr(pool_module, "_POLL_S", 0.005)
    monkeypatch.setattr(voting_run, "_POLL_S", 0.0)


@pytest.fixture(autouse=True)
def no_plot(monkeypatch):
    """The plot takes longer than the rest of the vote; test_quality.py draws it."""
    monkeypatch.setattr(quality_plots, "plot_quality", lambda found, path: None)


@pytest.fixture
def model(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    monkeypatch.setattr(voting_run, "load_tokenizer", lambda folder, policy: TOKENIZER)
    return folder


@pytest.fixture
def run(tmp_path, model, monkeypatch):
    def run(*engines, folder="voting", questions=QUESTIONS, settings=None, **options):
        settings = settings or config()
        file = tmp_path / "questions.jsonl"
        write_questions(file, questions)

        @contextmanager
        def small_pool(config, model, events):
            with EnginePool(list(engines) or [FarEngine(answer=reply)], config.voting) as pool:
                yield pool

        monkeypatch.setattr(voting_run, "open_engine_pool", small_pool)
        return voting_run.vote(settings, QuestionFeed(file), len(questions), model, tmp_path / folder, **options)

    return run


def stored(folder):
    return stored_votes(folder), stored_labels(folder)


def decisions(labels: list[Label]):
    return [(label.question.id, label.answer, label.kept) for label in labels]


def test_the_vote_labels_questions_in_order_and_counts(tmp_path, run, model):
    summary = run()
    taken, labels = stored(tmp_path / "voting")
    assert [(label.answer, label.kept) for label in labels] == EXPECTED
    assert [label.question for label in labels] == QUESTIONS
    key = (fingerprint_model(model), hash_vote_sampling(config(), make_prompts()))
    assert {(vote.policy, vote.sampling) for vote in taken} == {key}
    assert {(vote.question_id, vote.seed) for vote in taken} == {(q, seed) for q in SEEDS for seed in SEEDS[q]}
    assert {vote.text for vote in taken if vote.answer == "B"} == {"The answer is (B)."}
    assert {vote.method for vote in taken if vote.answer} == {"statement"}
    assert summary.model_dump(mode="json") == read_json(tmp_path / "voting" / "summary.json")
    counts = {
        "questions": 6,
        "labeled": 3,
        "ties": 2,
        "all_invalid": 1,
        "kept": 3,
        "truth_known": 1,
        "agree_with_truth": 1,
        "votes": 24,
        "invalid_votes": 6,
        "truncated_votes": 6,
        "tokens": 120,
    }
    assert {name: getattr(summary.quality, name) for name in counts} == counts
    assert summary.votes_taken_now == 24 and summary.tokens == 120
    assert read_kept_count(tmp_path / "voting" / "labeled.jsonl") == 3


def test_the_quality_uses_the_given_truth(run):
    quality = run(truth=lambda question: "C").quality
    assert (quality.truth_known, quality.agree_with_truth) == (3, 1)


@pytest.mark.parametrize("adaptive", ["lossless", "kept"])
def test_adaptive_votes_give_the_same_labels_from_fewer_votes(tmp_path, run, adaptive):
    run(folder="full")
    summary = run(folder="adaptive", settings=config(adaptive=adaptive))
    _, full = stored(tmp_path / "full")
    _, labels = stored(tmp_path / "adaptive")
    assert [label.kept for label in labels] == [label.kept for label in full]
    if adaptive == "lossless":
        assert decisions(labels) == decisions(full)
    assert summary.votes_taken_now < 24
    assert labels[5].taken == 3 and labels[5].confidence_requested == (0.75, 1.0)


def test_labels_are_in_question_order_with_uneven_engines(tmp_path, run):
    engines = [FarEngine(str(delay), delay, answer=reply) for delay in (0.02, 0.0, 0.005)]
    run(*engines, settings=config(in_flight=2))
    assert [label.question for label in stored(tmp_path / "voting")[1]] == QUESTIONS
    assert all(engine.given for engine in engines)


@pytest.mark.parametrize("after", [0, 1, 3, 4, 9, 16, 23])
def test_an_interrupted_vote_resumes_without_double_votes(tmp_path, run, after):
    run(folder="whole")
    with pytest.raises(KeyboardInterrupt):
        run(DyingVoter(after))
    assert read_kept_count(tmp_path / "voting" / "labeled.jsonl") is None
    had = len(stored_votes(tmp_path / "voting")) if (tmp_path / "voting" / "votes").exists() else 0
    summary = run()
    taken, labels = stored(tmp_path / "voting")
    whole_votes, whole_labels = stored(tmp_path / "whole")
    assert len({vote.key for vote in taken}) == len(taken) == 24
    assert set(taken) == set(whole_votes)
    assert labels == whole_labels
    assert summary.votes_taken_now == 24 - had
    assert read_kept_count(tmp_path / "voting" / "labeled.jsonl") == 3


@pytest.mark.parametrize("adaptive", ["never", "lossless"])
def test_the_vote_ends_with_the_kept_labels_wanted(tmp_path, run, adaptive):
    """Labels 0, 3 and 5 would be kept: with two wanted, questions 4 and 5 get no label, however fast an engine is."""
    engines = [FarEngine(str(delay), delay, answer=reply) for delay in (0.02, 0.0)]
    summary = run(*engines, settings=config(kept=2, adaptive=adaptive))
    folder = tmp_path / "voting"
    first = (folder / "labeled.jsonl").read_bytes()
    assert [label.kept for label in stored_labels(folder)] == [True, False, False, True]
    assert read_kept_count(folder / "labeled.jsonl") == 2
    assert (summary.kept_wanted, summary.quality.kept) == (2, 2)
    again = FarEngine(answer=reply)
    run(again, settings=config(kept=2, adaptive=adaptive))
    assert again.attempts == 0 and (folder / "labeled.jsonl").read_bytes() == first
    more = run(settings=config(kept=4, adaptive=adaptive))  # more than there are: all questions get a label
    assert (more.kept_wanted, more.quality.kept, more.quality.questions) == (4, 3, 6)
    assert (folder / "labeled.jsonl").read_bytes().startswith(first) and read_kept_count(folder / "labeled.jsonl") == 3
    taken = stored_votes(folder)
    assert len({vote.key for vote in taken}) == len(taken)


@pytest.mark.parametrize("after", [0, 3, 9, 14])
def test_an_interrupted_vote_keeps_exactly_the_labels_wanted(tmp_path, run, after):
    run(folder="whole", settings=config(kept=2))
    with pytest.raises(KeyboardInterrupt):
        run(DyingVoter(after), settings=config(kept=2))
    run(settings=config(kept=2))
    assert stored_labels(tmp_path / "voting") == stored_labels(tmp_path / "whole")
    assert read_kept_count(tmp_path / "voting" / "labeled.jsonl") == 2


def test_a_kill_between_votes_and_label_loses_no_vote(tmp_path, run):
    """Votes are written first: a question with all its votes and no label gets its label without a new vote."""
    run()
    folder = tmp_path / "voting"
    lines = (folder / "labeled.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "labeled.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:50])
    (folder / "labeled.end.json").unlink()
    engine = FarEngine(answer=reply)
    assert run(engine).votes_taken_now == 0
    assert engine.attempts == 0
    assert (folder / "labeled.jsonl").read_bytes() == b"".join(lines)


def test_a_finished_vote_starts_no_engine(run):
    run()
    engine = FarEngine()
    assert run(engine).votes_taken_now == 0
    assert engine.attempts == 0


def test_other_questions_than_the_labeled_ones_are_refused(run):
    run(questions=QUESTIONS[:3])
    with pytest.raises(InputError, match="--run-dir"):
        run(questions=[QUESTIONS[1], QUESTIONS[0], *QUESTIONS[2:]])
    with pytest.raises(InputError, match="3 labels, but there are only 2 questions"):
        run(questions=QUESTIONS[:2])


def test_new_questions_do_not_repeat_the_first_ones(run):
    run(questions=QUESTIONS[:3])
    assert run().votes_taken_now == 12


def test_a_question_that_comes_twice_is_refused(run):
    with pytest.raises(InputError, match="comes twice"):
        run(questions=[*QUESTIONS, QUESTIONS[2]])


def test_a_stopped_vote_keeps_its_votes(tmp_path, run):
    checks = count()
    with pytest.raises(Stopped, match="same command"):
        run(FarEngine(delay=0.01, answer=reply), should_stop=lambda: next(checks) == 8, settings=config(in_flight=1))
    had = len(stored_votes(tmp_path / "voting"))
    assert 0 < had < 24
    assert not (tmp_path / "voting" / "summary.json").exists()
    assert run().votes_taken_now == 24 - had


def test_an_error_from_should_stop_ends_the_vote(run):
    def trainer_died():
        raise RuntimeError("trainer died")

    with pytest.raises(RuntimeError, match="trainer died"):
        run(should_stop=trainer_died)


def test_a_question_that_kills_engines_is_quarantined(tmp_path, run, monkeypatch):
    monkeypatch.setattr(pool_module, "_BACKOFF_S", 0.0)

    def fault(engine, request):
        return "die" if request.key == QUESTIONS[3].id else None

    summary = run(FarEngine("a", 0.001, fault, answer=reply), FarEngine("b", 0.001, fault, answer=reply))
    _, labels = stored(tmp_path / "voting")
    assert [label.outcome for label in labels].count("quarantined") == 1
    assert labels[3].outcome == "quarantined" and "engine core died" in labels[3].reason
    rest = [index for index in range(6) if index != 3]
    assert [(labels[index].answer, labels[index].kept) for index in rest] == [EXPECTED[index] for index in rest]
    assert summary.quality.questions == 6


# --- the trainer follows ----------------------------------------------------------------------------


def test_without_a_trainer_the_vote_never_waits(run):
    """`medssr vote` alone, with more kept labels than the buffer holds."""
    checks = count()

    def should_stop():
        assert next(checks) < 500, "it waits for a trainer that does not exist"
        return False

    assert run(settings=config(mode="stream", buffer=1), should_stop=should_stop).quality.kept == 3


def test_the_vote_waits_while_the_trainer_lags(tmp_path, run):
    """Buffer 1, one question at a time: after the second kept label (of question 3) the vote waits."""
    labels, seen = tmp_path / "voting" / "labeled.jsonl", []

    def catch_up_after_five_checks():
        seen.append(len(labels.read_text().splitlines()) if labels.exists() else 0)
        if seen.count(4) == 5:
            publish_taken(labels, 2)
        return False

    settings = config(mode="stream", buffer=1, window=1)
    run(settings=settings, should_stop=catch_up_after_five_checks, trainer_follows=True)
    assert seen.count(4) >= 5
    assert seen[-1] == 6


def test_without_questions_the_end_is_marked(tmp_path, run):
    assert run(questions=[]).quality.questions == 0
    assert read_kept_count(tmp_path / "voting" / "labeled.jsonl") == 0


# --- requests ---------------------------------------------------------------------------------------


def test_a_wave_is_one_request_with_the_config_parameters(run):
    engine = FarEngine(answer=reply)
    run(engine, questions=QUESTIONS[:1])
    (request,) = engine.given
    assert (request.key, request.n, request.seed) == (QUESTIONS[0].id, K, SEEDS[QUESTIONS[0].id][0])
    assert (request.temperature, request.top_p, request.max_tokens, request.choices) == (1.0, 1.0, 16, ())
    assert tuple(request.prompt) == make_prompts().render(QUESTIONS[0]).ids
    assert request.options == QUESTIONS[0].options


def test_adaptive_waves_have_the_fewest_votes_to_decide(run):
    engine = FarEngine(answer=reply)
    run(engine, questions=[QUESTIONS[0], QUESTIONS[5]], settings=config(adaptive="lossless", in_flight=1))
    waves = {question.id: [] for question in QUESTIONS}
    for request in engine.given:
        waves[request.key].append(request.n)
    assert waves[QUESTIONS[5].id][0] == waves[QUESTIONS[0].id][0] == 3


def test_no_more_questions_are_open_than_the_window(run, monkeypatch):
    most = []
    start = vote_scheduler.VoteScheduler._start

    def counted(self, question):
        open_question = start(self, question)
        most.append(len(self._open))
        return open_question

    monkeypatch.setattr(vote_scheduler.VoteScheduler, "_start", counted)
    run(settings=config(window=2))
    assert max(most) == 2 and len(most) == 6


def test_text_can_be_left_out(tmp_path, run):
    run(settings=config(keep_text=False))
    assert {vote.text for vote in stored_votes(tmp_path / "voting")} == {""}


def test_votes_are_plain_json_lines(tmp_path, run):
    run()
    (file,) = (tmp_path / "voting" / "votes").glob("*.jsonl")
    required = {name for name, field in Vote.model_fields.items() if field.is_required()}
    for line in file.read_text().splitlines():
        assert required | {CRC_KEY} <= set(json.loads(line)) <= {*Vote.model_fields, CRC_KEY}


def test_the_engines_extract_answers_like_extract_answer(tmp_path, run):
    run()
    options = {question.id: question.options for question in QUESTIONS}
    for vote in stored_votes(tmp_path / "voting"):
        found = extract_answer(vote.text, options[vote.question_id])
        assert (vote.answer, vote.method) == (found.letter, found.method)


# --- option orders, rules of labels, calibration ----------------------------------------------------


def reply_by_text(request, seed) -> Completion:
    """A policy that knows the option "two", wherever it stands; every fourth vote names the first letter shown."""
    index = seed - derive_seeds(request.key, 42, 12).start
    knows = next(letter for letter, text in request.options.items() if text == "two")
    letter = "A" if index % 4 == 3 else knows
    return Completion.from_text(request, seed, f"The answer is ({letter}).", 5 + index, truncated=False, logprob=-0.5)


def shuffled(**voting) -> Config:
    return config(**{"samples": 12, "shuffle_options": True} | voting)


def test_each_vote_stores_its_order_and_the_questions_own_letter(tmp_path, run):
    run(FarEngine(answer=reply_by_text), settings=shuffled())
    votes, labels = stored(tmp_path / "voting")
    for vote in votes:
        (shown,) = vote.text.split("(")[1][0]
        assert vote.answer == vote.order["ABC".index(shown)]
    assert {label.answer for label in labels} == {"B"}
    first = [vote for vote in votes if vote.question_id == QUESTIONS[0].id]
    orders = [vote.order for vote in sorted(first, key=lambda vote: vote.seed)]
    assert len(set(orders)) == 3 and orders == orders[:3] * 4


def test_a_letter_bias_spreads_over_all_options(tmp_path, run):
    """Three votes of twelve on each question name the letter A: one for each option, as each stands there once."""
    run(FarEngine(answer=reply_by_text), settings=shuffled(samples=36))
    for label in stored_labels(tmp_path / "voting"):
        assert sum(label.counts.values()) == 36 and label.counts["A"] == label.counts["C"] == 3


@pytest.mark.parametrize("after", [0, 5, 20, 50])
@pytest.mark.parametrize("rule", ["majority", "length", "agreement", f"{__name__}:count_texts"])
def test_an_interrupted_shuffled_vote_resumes_exactly(tmp_path, run, after, rule):
    settings = shuffled(rule=rule)
    run(FarEngine(answer=reply_by_text), folder="whole", settings=settings)
    answered = count()

    def answer(request, seed):
        if next(answered) == after:
            raise KeyboardInterrupt
        return reply_by_text(request, seed)

    with pytest.raises(KeyboardInterrupt):
        run(FarEngine(answer=answer), settings=settings)
    run(FarEngine(answer=reply_by_text), settings=settings)
    taken, labels = stored(tmp_path / "voting")
    whole_votes, whole_labels = stored(tmp_path / "whole")
    assert len({vote.key for vote in taken}) == len(taken) == 72
    assert set(taken) == set(whole_votes) and labels == whole_labels
    assert {label.rule for label in labels} == {rule}


def count_texts(found):
    """A user's rule that reads texts, also those of an earlier attempt."""
    assert all(vote.text for vote in found.votes)
    return {"B": 0.75, "A": 0.25}


@pytest.mark.parametrize("adaptive", ["lossless", "kept"])
def test_early_stopping_keeps_the_labels_of_shuffled_votes(tmp_path, run, adaptive):
    run(FarEngine(answer=reply_by_text), folder="full", settings=shuffled())
    early = run(FarEngine(answer=reply_by_text), settings=shuffled(adaptive=adaptive))
    full, labels = stored_labels(tmp_path / "full"), stored_labels(tmp_path / "voting")
    assert decisions(labels) == decisions(full) and early.votes_taken_now < 72


def test_other_orders_are_another_way_of_sampling(run):
    run(questions=QUESTIONS[:2])
    with pytest.raises(InputError, match="another policy or way of sampling"):
        run(FarEngine(answer=reply_by_text), questions=QUESTIONS[:2], settings=shuffled())


def test_logprobs_are_stored_where_a_rule_needs_them(tmp_path, run):
    engine = FarEngine(answer=reply_by_text)
    run(engine, settings=shuffled(rule="logprob"))
    assert all(request.logprobs for request in engine.given)
    assert {vote.logprob for vote in stored_votes(tmp_path / "voting")} == {-0.5}
    plain = FarEngine(answer=reply_by_text)
    run(plain, folder="plain", settings=shuffled())
    assert not any(request.logprobs for request in plain.given)


def make_slice(count: int, right: int) -> CalibrationSlice:
    """Questions on which every vote is for "two"; it is the known answer of the first `right` ones."""
    return CalibrationSlice(
        tuple(
            Question.make(f"Slice {i}?", ["one", "two", "three"], source="slice", truth="B" if i < right else "C")
            for i in range(count)
        ),
        ("slice.jsonl",),
    )


def knows_two(request, seed) -> Completion:
    if request.key in SEEDS:
        return reply(request, seed)
    return Completion.from_text(request, seed, "The answer is (B).", 5, truncated=False)


CALIBRATE = {"data": [{"path": "slice.jsonl"}]}


def test_the_slice_is_voted_on_first_and_sets_the_threshold(tmp_path, run):
    """All 60 labels of the slice have a share of 1 and are right, so the lowest threshold passes: 0.25."""
    settings = config(calibrate=CALIBRATE, threshold=0.25, adaptive="lossless")
    summary = run(FarEngine(answer=knows_two), settings=settings, calibration=make_slice(60, 60))
    certificate = summary.quality.certificate
    assert certificate.data == ("slice.jsonl",) and certificate.thresholds[0].threshold == 0.25
    assert read_json(tmp_path / "voting" / "certificate.json") == certificate.model_dump(mode="json")
    assert len(stored_votes(tmp_path / "voting" / "calibration")) == 60 * K  # no early stopping on the slice
    assert [label.kept for label in stored_labels(tmp_path / "voting")] == [True, False, False, True, False, True]
    assert summary.quality.threshold == 0.25 and "share >= 0.25" in dict(format_quality(summary.quality))["promise"]
    again = FarEngine(answer=knows_two)
    assert run(again, settings=settings, calibration=make_slice(60, 60)).quality.certificate == certificate
    assert again.attempts == 0


def test_a_refused_slice_keeps_its_votes_and_may_grow(tmp_path, run):
    settings = config(calibrate=CALIBRATE, adaptive="lossless")
    with pytest.raises(InputError, match="give about 29 questions"):
        run(FarEngine(answer=knows_two), settings=settings, calibration=make_slice(20, 20))
    assert not stored_labels(tmp_path / "voting")
    engine = FarEngine(answer=knows_two)
    run(engine, settings=settings, calibration=make_slice(30, 30))
    assert len(stored_votes(tmp_path / "voting" / "calibration")) == 30 * K
    assert sum(request.n for request in engine.given if request.key not in SEEDS) == 10 * K


@pytest.mark.parametrize("after", [3, 90, 130])
def test_an_interrupted_calibration_resumes(tmp_path, run, after):
    settings, slice_ = config(calibrate=CALIBRATE), make_slice(30, 30)
    run(FarEngine(answer=knows_two), folder="whole", settings=settings, calibration=slice_)
    answered = count()

    def answer(request, seed):
        if next(answered) == after:
            raise KeyboardInterrupt
        return knows_two(request, seed)

    with pytest.raises(KeyboardInterrupt):
        run(FarEngine(answer=answer), settings=settings, calibration=slice_)
    run(FarEngine(answer=knows_two), settings=settings, calibration=slice_)
    for part in ("", "calibration"):
        votes, labels = stored(tmp_path / "voting" / part)
        whole_votes, whole_labels = stored(tmp_path / "whole" / part)
        assert set(votes) == set(whole_votes) and len(votes) == len(whole_votes) and labels == whole_labels


def test_stems_of_the_slice_must_be_there(tmp_path, run):
    file = tmp_path / "stems.jsonl"
    file.write_text(json.dumps({"id": QUESTIONS[0].id, "stems": ["Another stem?"]}) + "\n")
    settings = config(calibrate=CALIBRATE, paraphrases=str(file))
    with pytest.raises(InputError, match="no stems for 30 of 30 questions"):
        run(FarEngine(answer=knows_two), settings=settings, calibration=make_slice(30, 30))


def test_votes_store_the_stem_that_they_saw(tmp_path, run):
    file = tmp_path / "stems.jsonl"
    file.write_text(json.dumps({"id": QUESTIONS[0].id, "stems": ["Another stem?"]}) + "\n")
    engine = FarEngine(answer=reply)
    run(engine, questions=QUESTIONS[:1], settings=config(paraphrases=str(file)))
    votes = sorted(stored_votes(tmp_path / "voting"), key=lambda vote: vote.seed)
    assert [vote.paraphrase for vote in votes] == [0, 1, 0, 1]
    shown = QUESTIONS[0].model_copy(update={"stem": "Another stem?"})
    prompts = {0: make_prompts().render(QUESTIONS[0]).ids, 1: make_prompts().render(shown).ids}
    for request in engine.given:
        assert tuple(request.prompt) == prompts[(request.seed - SEEDS[QUESTIONS[0].id].start) % 2]
