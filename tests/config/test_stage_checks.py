"""Validation and guard in the config: defaults, what is refused, and which key an error names."""

from __future__ import annotations

import pytest
from config_builder import write_config

from medssr_dist.config.load import dump_config, load_config
from medssr_dist.errors import InputError

OFF = {
    f"training.guard.{limit}=0"
    for limit in (
        *("agreement_fall", "vote_entropy_floor", "letter_entropy_fall"),
        *("length_ratio", "truncation_rise", "validation_fall"),
    )
}
DATA = "training.validate.data=[held_out.jsonl]"


@pytest.fixture
def load(tmp_path):
    file = write_config(tmp_path / "config.yaml")
    return lambda *overrides: load_config(file, list(overrides))


def test_both_are_off_by_default(load):
    training = load().training
    assert (training.validation, training.guard) == (None, None)
    assert dump_config(load())["training"]["validate"] is None  # the key of the config file


def test_a_dumped_config_is_a_config(load):
    config = load(DATA, "training.guard={action: warn}")
    assert type(config).model_validate(dump_config(config) | {"synthesis": config.synthesis}) == config


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (OFF, ["training.guard", "no signal to watch", "agreement_fall", "leave training.guard out"]),
        (OFF - {"training.guard.validation_fall=0"}, ["no signal to watch", "set training.validate"]),
        ({"training.guard.length_ratio=0.5"}, ["length_ratio = 0.5 must be above 1"]),
        ({"training.guard.action=end"}, ["training.guard.action = 'end'"]),
        ({"training.guard.windw=4"}, ["'training.guard.windw'", "did you mean 'training.guard.window'"]),
        ({"training.validate.data=[]"}, ["training.validate", "data is empty"]),
        ({"training.validate={every: 5}"}, ["training.validate.data is missing"]),
        ({DATA, "training.validate.evry=4"}, ["'training.validate.evry'", "did you mean 'training.validate.every'"]),
        ({"training.validat={}"}, ["'training.validat'", "did you mean 'training.validate'"]),
        ({DATA, "evaluation.temperature=0", "evaluation.generations=1"}, ["training.validate.generations=1"]),
    ],
)
def test_bad_values_are_named(load, overrides, words):
    with pytest.raises(InputError) as caught:
        load(*sorted(overrides))
    assert all(word in str(caught.value) for word in words), caught.value


def test_validation_alone_is_a_signal(load):
    assert load(DATA, *(OFF - {"training.guard.validation_fall=0"})).training.guard.validation_fall == 0.01
