"""What a vote without a model needs: questions, a config, and prompts."""

from __future__ import annotations

from pathlib import Path

from medssr_dist.config.schema import Config
from medssr_dist.data.prompt_renderer import Prompt
from medssr_dist.data.records import Question

POLICY, SAMPLING = "simulated", "drawn"
_LETTERS = 4


def write_questions(path: Path, count: int) -> None:
    """Write `count` questions of about 400 characters to `path`, in the form that the synthesize step writes."""
    filler = "with fatigue, hepatomegaly and a rash that came after a journey " * 4
    options = [f"a diagnosis that is number {number} of those considered" for number in range(_LETTERS)]
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            question = Question.make(f"Patient {number} presents {filler}. Why?", options, source="simulated")
            file.write(question.model_dump_json() + "\n")


def make_simulated_config(**voting) -> Config:
    """Return a config for votes without a model. `voting`: keys of its voting section."""
    return Config.model_validate(
        {
            "policy": {"model": "none"},
            "training": {"stage1": {"enabled": False}, "stage2": {"enabled": False}},
            "synthesis": {
                "accepted": 1,
                "alpha": 1.0,
                "seeds": ["hpo:seeds"],
                "endpoints": [{"base_url": "offline-teacher", "model": "none"}],
            },
            "voting": voting,
        }
    )


class PlainPrompts:
    """Prompts for engines that do not read them: each is one token."""

    stop = ()
    opening = ""

    def render(self, question: Question) -> Prompt:
        return Prompt(question.stem, (0,))
