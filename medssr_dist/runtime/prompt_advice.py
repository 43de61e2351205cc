"""Where prompt, model and limits do not fit: one line each, with its fix, for preflight, dry run and vote."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from medssr_dist.config.schema import Config
from medssr_dist.data.prompt_renderer import SAMPLE_QUESTION, PromptRenderer
from medssr_dist.data.records import read_record

THINKING_TOKENS = 8192  # an answer after thoughts takes up to this many; ours, from the limits that such models name
REASONING_TOKENS = 256  # a reasoned answer takes at least this many
_THINKING_KWARGS = ("enable_thinking", "thinking")
_OPEN_THOUGHT = re.compile(r"<(?:\w+:)?think(?:ing)?>\s*$")


Thinking = Literal["never", "off", "on"]


class PromptAdvice(NamedTuple):
    """What does not fit, and what to do. Example: PromptAdvice("the model has no chat template", "use another")"""

    detail: str
    fix: str


def list_prompt_advice(config: Config, prompts: PromptRenderer, model: Path) -> list[PromptAdvice]:
    """Return what does not fit; [] where all fits.

    Args:
        prompts: what makes the policy's prompts.
        model: directory of the policy.
    """
    return [
        *_advise_on_kwargs(config, prompts),
        *_advise_on_form(config, prompts, _ends_its_turns(prompts, model)),
        *_advise_on_limits(config, find_thinking(prompts)),
    ]


def find_thinking(prompts: PromptRenderer) -> Thinking:
    """Return whether the model thinks before it answers, as its chat template and its arguments say.

    never: the template knows no thoughts. off: it is told not to think. on: it thinks.
    """
    if not prompts.uses_template:
        return "never"
    text, template = prompts.render_turns(SAMPLE_QUESTION), str(prompts.chat_template)
    if _OPEN_THOUGHT.search(text) or "<|channel|>" in template:
        return "on"
    for name in _THINKING_KWARGS:
        if _takes(template, name):
            without, thinking = (prompts.render_turns(SAMPLE_QUESTION, **{name: value}) for value in (False, True))
            if without != thinking:
                return "on" if text == thinking else "off"
    return "never"


def _takes(template: str, name: str) -> bool:
    return re.search(rf"\b{re.escape(name)}\b", template) is not None


def _advise_on_kwargs(config: Config, prompts: PromptRenderer) -> Iterator[PromptAdvice]:
    for name in config.policy.chat_template_kwargs:
        if not _takes(str(prompts.chat_template), name):
            yield PromptAdvice(
                f"policy.chat_template_kwargs.{name} changes nothing: the model's chat template does not take it",
                "remove it, or correct its name",
            )


def _advise_on_form(config: Config, prompts: PromptRenderer, ends_turns: bool) -> Iterator[PromptAdvice]:
    name = config.policy.prompt.name
    if prompts.form.form == "chat" and not prompts.uses_template:
        yield PromptAdvice(
            f"policy.prompt = {name} is for chat models, but the model has no chat template", "use policy.prompt=base"
        )
    elif prompts.form.form == "chat" and not ends_turns:
        yield PromptAdvice(
            f"policy.prompt = {name} is for chat models, but no stop token of the model ends a turn of its chat "
            "template, so it is a base model, and its answers would not end",
            "use policy.prompt=base",
        )
    elif prompts.form.form == "completion" and ends_turns:
        yield PromptAdvice(
            f"policy.prompt = {name} is for base models, but a stop token of the model ends the turns of its chat "
            "template, so it is a chat model",
            "use policy.prompt=reason",
        )


def _ends_its_turns(prompts: PromptRenderer, model: Path) -> bool:
    """Return whether a token that follows an answer in the chat template is one at which generation stops."""
    return bool(prompts.find_turn_ends() & {prompts.end_token, *_read_stop_ids(model)})


@dataclass(frozen=True)
class _StopTokens:
    """The stop tokens in a generation_config.json or config.json."""

    eos_token_id: int | list[int] | None = None


def _read_stop_ids(model: Path) -> set[int]:
    """Return the stop tokens that the model directory names, as vLLM reads them."""
    for file in (model / "generation_config.json", model / "config.json"):
        found = read_record(_StopTokens, file).eos_token_id if file.exists() else None
        if found is not None:
            return set(found) if isinstance(found, list) else {found}
    return set()


def _advise_on_limits(config: Config, thinking: Thinking) -> Iterator[PromptAdvice]:
    limits = {"voting.max_tokens": config.voting.max_tokens, "evaluation.max_tokens": config.evaluation.max_tokens}
    for name, stage in (("stage1", config.training.stage1), ("stage2", config.training.stage2)):
        if stage.enabled:
            limits[f"training.{name}.max_new_tokens"] = stage.max_new_tokens
    needed = THINKING_TOKENS if thinking == "on" else REASONING_TOKENS
    if thinking != "on" and config.policy.prompt.name not in ("reason", "base"):
        return
    low = ", ".join(f"{name} = {limit}" for name, limit in limits.items() if limit < needed)
    if low and thinking == "on":
        yield PromptAdvice(
            f"the model thinks before it answers, and thoughts that are cut give no answer: {low} is below the "
            f"{needed} tokens that this may take",
            "raise the limit, or set policy.chat_template_kwargs={enable_thinking: false} if its template takes that",
        )
    elif low:
        yield PromptAdvice(
            f"policy.prompt = {config.policy.prompt.name} asks for reasoning, which takes {needed} tokens and more: "
            f"{low}",
            "raise the limit, or use policy.prompt=direct",
        )
