"""Held-out validation through the engines: seeds, order, what counts as right, and what a restart repeats."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
from config_builder import make_config
from stream_parts import make_prompts

from medssr_dist.data.records import Question
from medssr_dist.errors import InputError
from medssr_dist.training.rollout.groups import Group, GroupRequest, Sample
from medssr_dist.training.rollout.validator import Validator, make_validation_plan
from medssr_dist.training.stage_job import StageJob
from medssr_dist.training.validation_log import append_validation, read_validations


class Engines:
    """Answers question n right in its first n samples, and returns the groups in a random order.

    The reward, which may be a user's own, is not what validation counts.
    """

    def __init__(self, order: int = 0):
        self.asked: list[GroupRequest] = []
        self._open: list[GroupRequest] = []
        self._rng = random.Random(order)

    def submit(self, request: GroupRequest) -> None:
        self.asked.append(request)
        self._open.append(request)

    def next_group(self) -> Group:
        request = self._open.pop(self._rng.randrange(len(self._open)))
        count = request.sampling.n
        letters = ["B" if i < request.number else None if i == count - 1 else "A" for i in range(count)]
        samples = [Sample([7], None, 0.5, letter is None, False, 0, letter) for letter in letters]
        return Group(request.number, request.prompt, request.prompt_ids, request.label, samples)


def make_job(tmp_path: Path, questions: int = 4, first_long: int = 99) -> StageJob:
    """A stage of 8 steps with held-out questions; the prompts from number `first_long` on are too long."""
    config = make_config(
        training={"validate": {"data": ["x"], "every": 3}},
        evaluation={"temperature": 0.5, "top_k": 7, "max_tokens": 30},
    )
    stems = [f"Question {n}" + " word" * (5000 if n >= first_long else 1) for n in range(questions)]
    held_out = tuple(Question.make(stem, ["yes", "no"], source="held", truth="B") for stem in stems)
    return StageJob("stage1", config, config.training.stage1, tmp_path, tmp_path, tmp_path, "", 8, None, None, held_out)


def make_validator(job: StageJob, engines: Engines) -> Validator:
    plan = make_validation_plan(job, make_prompts())
    file = job.paths.validation
    return Validator(plan, engines, read_validations(file), lambda result: append_validation(file, result))


def test_the_result_does_not_depend_on_the_speed_of_engines(tmp_path):
    job = make_job(tmp_path)
    found = [make_validator(job, Engines(order)) for order in range(5)]
    results = [dataclasses.replace(validator._ask(3), seconds=0.0) for validator in found]
    assert results == [results[0]] * 5
    assert (results[0].right, results[0].accuracy, results[0].invalid) == ([0, 1, 2, 3], 6 / 16, 1 / 4)


def test_it_samples_as_evaluation_does_with_own_seeds(tmp_path):
    engines = Engines()
    make_validator(make_job(tmp_path), engines).measure(3)
    sampling = engines.asked[0].sampling
    assert (sampling.n, sampling.temperature, sampling.top_k, sampling.max_tokens) == (4, 0.5, 7, 30)
    rollouts = dataclasses.replace(sampling, series="")
    training = {dataclasses.replace(request, sampling=rollouts).seed for request in engines.asked}
    assert len({request.seed for request in engines.asked} | training) == 8


def test_every_validation_has_the_same_seeds(tmp_path):
    engines = Engines()
    validator = make_validator(make_job(tmp_path), engines)
    validator.measure(3)
    validator.measure(6)
    seeds = [request.seed for request in engines.asked]
    assert seeds[:4] == seeds[4:]


def test_it_is_due_every_n_steps_and_after_the_last(tmp_path):
    validator = make_validator(make_job(tmp_path), Engines())
    assert [step for step in range(9) if validator.measure_if_due(step)] == [0, 3, 6, 8]


def test_a_known_result_is_not_measured_again(tmp_path):
    job, engines = make_job(tmp_path), Engines()
    before = make_validator(job, engines).measure(3)
    resumed = make_validator(job, engines)
    assert resumed.measure(3) == before and len(engines.asked) == 4
    assert [result.step for result in read_validations(job.paths.validation)] == [3]


def test_too_long_prompts_are_left_out_and_counted(tmp_path, caplog):
    assert len(make_validation_plan(make_job(tmp_path, first_long=1), make_prompts()).prompts) == 1
    assert "leaves out 3 of 4 questions" in caplog.text
    with pytest.raises(InputError, match=r"all 4 prompts are longer .* raise policy.max_model_len"):
        make_validation_plan(make_job(tmp_path, first_long=0), make_prompts())
