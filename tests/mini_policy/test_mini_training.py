"""Training of the mini policy at tiny size: it learns, resumes exactly, samples as it should, and is published."""

import json

import pytest
import torch

from medssr_dist.knowledge.mini_world import EVALUATION, load_mini_world, make_mini_questions
from medssr_dist.mini_policy import make
from medssr_dist.mini_policy.__main__ import main
from medssr_dist.mini_policy.learn import Learner, MiniShape, Phase
from medssr_dist.mini_policy.make import MiniGoal, MiniPlan, make_mini_policy
from medssr_dist.mini_policy.mini_text import LOOKUPS, PLAIN, Document, MiniText
from medssr_dist.mini_policy.mini_tokenizer import train_tokenizer
from medssr_dist.mini_policy.packing import IGNORED, LETTER_WEIGHT, DocumentPacker
from medssr_dist.mini_policy.sampled_accuracy import MiniAccuracy, compute_accuracy, sample_replies

TINY = MiniShape(
    vocabulary=400,
    hidden=32,
    layers=1,
    heads=1,
    intermediate=64,
    rows=2,
    row_tokens=384,
    warmup_steps=2,
    phases=(Phase(0, LOOKUPS), Phase(2, PLAIN)),
)


@pytest.fixture(scope="module")
def tokenizer():
    text = MiniText(load_mini_world(), 5)
    return train_tokenizer([text.draw().text for _ in range(300)], TINY.vocabulary, TINY.positions)


def make_learner(tokenizer):
    return Learner(TINY, tokenizer, MiniText(load_mini_world(), 3), 3)


def test_loss_is_on_replies_and_on_whole_passages(tokenizer):
    packer = DocumentPacker(tokenizer)
    question = make_mini_questions(EVALUATION, 1)[0]
    tokens, targets, weights, _ = packer.encode(Document(question, "The answer is A.", "ORPHA:1"))
    learned = [target for target in targets if target != IGNORED]
    assert tokenizer.decode(learned) == "The answer is A.<|end|>" and len(tokens) == len(targets)
    assert tokens[len(tokens) - len(learned) :] == learned and targets[-1] == IGNORED
    heavy = [target for target, weight in zip(targets, weights, strict=True) if weight == LETTER_WEIGHT]
    assert tokenizer.decode(heavy).strip() == "A"
    passage = packer.encode(Document(None, "ataxia: joint pain.", "ORPHA:1"))
    assert passage.targets == [*passage.tokens[1:], IGNORED] and set(passage.weights) == {1.0}


def test_only_letters_of_lookups_are_learned(tokenizer):
    packer, text = DocumentPacker(tokenizer), MiniText(load_mini_world(), 4)
    for _ in range(30):
        document = text.draw(LOOKUPS)
        learned = [target for target in packer.encode(document).targets if target != IGNORED]
        assert document.text.endswith(f"{tokenizer.decode(learned[-1:]).strip()}.")
        assert len(learned) < len(packer.encode(document).tokens) / 3
    assert (text.passages, text.lookups, text.vignettes) == (0, 30, 0)


def test_packed_rows_hold_whole_documents(tokenizer):
    batch = DocumentPacker(tokenizer).pack(MiniText(load_mini_world(), 3), 4, 512)
    assert batch.tokens_ST.shape == batch.targets_ST.shape == (4, 512)
    assert (batch.tokens_ST == tokenizer.pad_token_id).float().mean() < 0.3
    learned = batch.targets_ST != IGNORED
    assert torch.equal(batch.targets_ST[:, :-1][learned[:, :-1]], batch.tokens_ST[:, 1:][learned[:, :-1]])


def test_documents_in_a_row_do_not_see_each_other(tokenizer):
    model = make_learner(tokenizer).model
    parts = [DocumentPacker(tokenizer).encode(Document(None, text, "")) for text in ("ataxia, pain.", "pain: Cole.")]
    rows = [torch.tensor([[*parts[0][kind], *parts[1][kind]]]) for kind in range(4)]
    packed = model.model(input_ids=rows[0], position_ids=rows[3], use_cache=False).last_hidden_state[0]
    alone = model.model(input_ids=torch.tensor([parts[1].tokens]), use_cache=False).last_hidden_state[0]
    assert torch.allclose(packed[-len(alone) :], alone, atol=1e-5)


def test_resumed_training_is_the_same_training(tokenizer, tmp_path):
    whole, first, second = (make_learner(tokenizer) for _ in range(3))
    losses = [whole.advance() for _ in range(6)]
    for _ in range(3):
        first.advance()
    first.save(tmp_path / "checkpoint.pt")
    second.load(tmp_path / "checkpoint.pt")
    assert [second.advance() for _ in range(3)] == pytest.approx(losses[3:], rel=1e-6)
    assert (second.step, second.tokens) == (whole.step, whole.tokens)
    assert losses[-1] < losses[0]


def test_sampling_at_low_temperature_is_greedy_generation(tokenizer):
    model = make_learner(tokenizer).model.eval()
    questions = make_mini_questions(EVALUATION, 3)
    replies = sample_replies(model, tokenizer, questions, 2, 1e-4)
    assert all(one == other for one, other in replies)
    prompts = [DocumentPacker(tokenizer).encode(Document(one, "", "")).tokens[:-1] for one in questions]
    for prompt, (reply, _) in zip(prompts, replies, strict=True):
        output = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=80)
        assert tokenizer.decode(output[0, len(prompt) :], skip_special_tokens=True) == reply


def test_accuracy_counts_replies_majorities_and_ties():
    first, second = make_mini_questions(EVALUATION, 2)
    right, wrong = [], []
    for one in (first, second):
        right.append(f"The answer is {one.truth}.")
        wrong.append(f"The answer is {next(letter for letter in one.options if letter != one.truth)}.")
    replies = [[right[0], right[0], right[0], wrong[0]], [right[1], wrong[1], "?", "?"]]
    found = compute_accuracy([first, second], replies)
    assert (found.mean, found.majority, found.invalid) == (0.5, 0.75, 0.25)


@pytest.mark.parametrize(
    ("mean", "majority", "met"), [(0.45, 0.53, True), (0.45, 0.49, False), (0.35, 0.5, False), (0.56, 0.7, False)]
)
def test_goal_needs_range_and_gap(mean, majority, met):
    found = MiniAccuracy(10, 16, mean, majority, mean, mean, majority, majority, 0.0)
    assert MiniGoal(0.40, 0.55, 0.06).is_met(found) is met


@pytest.fixture
def plan(tmp_path):
    sizes = {"check_questions": 4, "confirm_questions": 4, "evaluation_questions": 4, "tokenizer_documents": 100}
    return MiniPlan(tmp_path / "work", MiniGoal(0.0, 1.0, -1.0), TINY, every=0.01, **sizes)


def test_finished_policy_is_a_model_directory_with_its_facts(plan, monkeypatch):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.setattr(make, "VOTES", 2)
    folder = make_mini_policy(plan)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32 and model.config.eos_token_id == tokenizer.eos_token_id
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["steps"] >= TINY.phases[-1].start, "the text of the last phase was never seen"
    assert facts["seed"] == 1 and facts["accuracy"]["questions"] == 4 and len(facts["rare"]) == 80
    card = (folder / "README.md").read_text()
    assert facts["weights_sha256"] in card and "Human Phenotype Ontology" in card
    assert sum(file.stat().st_size for file in folder.iterdir()) < 8e6


def test_goal_not_met_in_time_is_one_line(plan, monkeypatch):
    from dataclasses import replace

    from medssr_dist.errors import InputError

    monkeypatch.setattr(make, "VOTES", 2)
    with pytest.raises(InputError, match="not met after .* s of training; raise --hours"):
        make_mini_policy(replace(plan, goal=MiniGoal(0.9, 1.0), limit=0.02))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--hours", "0"], "--hours 0 must be above 0"),
        (["--threads", "-1"], "--threads -1 must be above 0"),
        (["--low", "0.6"], "--low 0.6 and --high 0.55 must be shares from 0 to 1, low below high"),
        (["--gap", "7"], "--gap 7 is not within 0..1"),
    ],
)
def test_bad_options_are_one_line(options, message, tmp_path, capsys):
    assert main(["--work", str(tmp_path), *options]) == 2
    assert message in capsys.readouterr().err
