"""What is checked while a stage trains: accuracy on held-out questions, and signs that self-labelled training fails."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from medssr_dist.config.base import Section, Source

_SIGNALS = (
    *("agreement_fall", "vote_entropy_floor", "letter_entropy_fall"),
    *("length_ratio", "truncation_rise", "validation_fall"),
)


class Validate(Section):
    """Held-out validation: the policy answers human-annotated questions during training."""

    data: list[Source] = Field(
        description="human-annotated questions with answers; none of them may be a training question, a seed or a "
        "benchmark item"
    )
    every: int = Field(
        10,
        ge=1,
        description="validate after every N steps; also before the first, and after the last of a stage that is not "
        "ended early",
    )
    generations: int = Field(
        4,
        ge=1,
        description="answers per question, sampled as evaluation does: its temperature, top_p, top_k and max_tokens",
    )
    patience: int = Field(
        0, ge=0, description="end the stage after N validations in a row that are no better than the best; 0 = off"
    )

    @model_validator(mode="after")
    def _refuse_no_data(self) -> Validate:
        if not self.data:
            raise ValueError("data is empty; name a data set, or leave training.validate out")
        return self


class Guard(Section):
    """The collapse guard of stage 1. Training on one's own labels helps at first and harms later (arXiv 2603.08660).

    A signal is the mean of a metric over the last `window` steps, compared with an earlier mean over `window` steps. It
    must also differ by five standard errors, which come from the variation between steps. All limits are ours.
    """

    action: Literal["stop", "warn"] = Field(
        "stop",
        description="stop: end stage 1, publish its best policy and go on to stage 2; warn: only say so and record it",
    )
    window: int = Field(8, ge=2, description="steps in a mean; the first comparison is after 2 x window steps")
    agreement_fall: float = Field(
        0.15,
        ge=0,
        lt=1,
        description="how far the share of questions whose majority is the label may fall below its highest mean; 0 = "
        "off. The labels are the base policy's own majorities, so that nothing in the method makes it fall",
    )
    vote_entropy_floor: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="lowest entropy of the answers to one question, as a share of its first mean; 0 = off. Below it "
        "nearly all groups are unanimous, and there is nothing left to learn",
    )
    letter_entropy_fall: float = Field(
        0.15,
        ge=0,
        lt=1,
        description="how far the entropy of the letters of all answers may fall below its first mean; 0 = off. 0.15 is "
        "about what it costs if one of four letters takes 55%",
    )
    length_ratio: float = Field(
        3.0,
        ge=0,
        description="the mean length may become this many times longer or shorter than at first; 0 = off. Sound "
        "training often doubles it",
    )
    truncation_rise: float = Field(
        0.2, ge=0, lt=1, description="how far the share of truncated answers may rise above its first mean; 0 = off"
    )
    validation_fall: float = Field(
        0.01,
        ge=0,
        lt=1,
        description="how far the accuracy of training.validate may fall below its best in two validations in a row, if "
        "that is also two standard errors or more of the difference by question; 0 = off",
    )

    @model_validator(mode="after")
    def _refuse_unfit(self) -> Guard:
        if not self.signals:
            raise ValueError(
                f"it has no signal to watch, all limits are 0; set one of {', '.join(_SIGNALS)}, or leave "
                "training.guard out"
            )
        if 0 < self.length_ratio <= 1:
            raise ValueError(f"length_ratio = {self.length_ratio:g} must be above 1; 0 = off")
        return self

    @property
    def signals(self) -> list[str]:
        """Keys of the limits that are on."""
        return [name for name in _SIGNALS if getattr(self, name)]

    @property
    def watches_rollouts(self) -> bool:
        """Whether it watches anything besides the validation."""
        return self.signals != ["validation_fall"]
