"""The policy's prompts as token ids: made here alone, for vote, rollout and evaluation, engines and servers alike.

A chat prompt is rendered by the model's chat template and then tokenized without further special tokens, as
`apply_chat_template(tokenize=True)` does: a template that prints the start token gives it once. Without a template the
ids start with what the tokenizer itself puts in front of a text, so that the start token is there once too.

The text of a question is data. Where it spells a control token (`<|im_end|>`, `<think>`, `[INST]`), the spelling is cut
after its first character, and the two parts are tokenized one after the other: the model reads the same characters, but
no control token. All other questions get exactly the ids of the ordinary way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from medssr_dist.data.prompt_forms import PromptForm, list_letters, list_options, load_prompt_form
from medssr_dist.data.records import Question, hash_content
from medssr_dist.data.thoughts import find_opening
from medssr_dist.errors import InputError

# Today's date in the prompt of a template that prints one: the same on each day of a run, and for every user.
TEMPLATE_DATE = datetime(2024, 7, 26)
# What the instruction of `direct` was hashed as before there were several prompts: older votes and answers stay valid.
_DIRECT_INSTRUCTION = "Choose the best option and reply with: The answer is (letter)."
# Added tokens that are not special but steer a model all the same, such as <think>; others are ordinary text.
_MARKUP = re.compile(r"[<\[{|｜].*[>\]}|｜]", re.DOTALL)
_ANCHOR = "\n"
SAMPLE_QUESTION = Question.make("Which organ makes insulin?", ["the pancreas", "the spleen"], source="sample")
# Arguments of the template that this module sets itself.
RESERVED_KWARGS = frozenset({"conversation", "messages", "tools", "documents", "chat_template", "strftime_now"}) | {
    *("add_generation_prompt", "continue_final_message", "tokenize", "padding", "truncation", "max_length"),
    *("return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs"),
}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt as text, for readers, and as token ids, for engines and trainer.

    Example: Prompt("<|im_start|>user\\nWhich ...", (1, 4093, 198, 14826))
    """

    text: str
    ids: tuple[int, ...]


class PromptRenderer:
    """Makes the prompts of a policy.

    Args:
        tokenizer: the policy's Hugging Face tokenizer.
        form: the wording (`policy.prompt`).
        system_prompt: text of the system turn, in place of the form's own; "" = the form's.
        template_kwargs: further arguments of the chat template, such as {"enable_thinking": False}.

    Attributes:
        stop: strings that end an answer.
        end_token: id of the tokenizer's end token.
        chat_template: of the model; None if it has none.
        uses_template: whether the prompts are rendered with it.

    Raises:
        InputError: the chat template refuses or drops the system turn or the user turn, or fails.
    """

    def __init__(
        self,
        tokenizer: Any,
        form: PromptForm,
        system_prompt: str = "",
        template_kwargs: Mapping[str, Any] | None = None,
    ):
        self._tokenizer, self.form = tokenizer, form
        self._system, self._kwargs = system_prompt or form.system, dict(template_kwargs or {})
        self.stop, self.end_token = form.stop, tokenizer.eos_token_id
        self.chat_template = tokenizer.get_chat_template() if tokenizer.chat_template else None
        self.uses_template = form.form == "chat" and self.chat_template is not None
        added = tokenizer.added_tokens_decoder
        unknown = tokenizer.unk_token_id  # stands for characters that the tokenizer does not know, not for control
        special = {token.content for id, token in added.items() if token.special and id != unknown}
        markup = {token.content for token in added.values() if not token.special and _MARKUP.fullmatch(token.content)}
        self._control_ids = {id for id, token in added.items() if token.content in special | markup}
        self._mark_control, self._mark_special = _build_marker(special | markup), _build_marker(special)
        self._control_of_form = self._list_control(self._render(SAMPLE_QUESTION).ids)
        self._refuse_lost_turns()

    @cached_property
    def identity(self) -> str:
        """What tells this way of prompting from others, for the hashes of votes and answers, beside `chat_template`.

        It covers the wording, the system turn, the template's arguments, the tokens in front and the template's date.
        """
        parts: dict[str, Any] = {}
        if self._system:
            parts["system"] = self._system
        if self.uses_template and self._kwargs:
            parts["template_kwargs"] = self._kwargs
        if self._prefix_ids:
            parts["prefix_ids"] = self._prefix_ids
        if self.uses_template and "strftime_now" in str(self.chat_template):
            parts["date"] = TEMPLATE_DATE.isoformat()
        if not parts and self.form == load_prompt_form("direct"):
            return _DIRECT_INSTRUCTION
        return hash_content(parts | {"form": self.form.hash})

    @cached_property
    def opening(self) -> str:
        """The mark with which all prompts open the reply's thoughts (`data.thoughts`); "" where they do not."""
        return find_opening(self._render(SAMPLE_QUESTION).text)

    def render(self, question: Question) -> Prompt:
        """Return the prompt of a question, ready for generation.

        Raises:
            InputError: control tokens would come out of the question's text all the same.
        """
        prompt = self._render(question)
        if self._list_control(prompt.ids) != self._control_of_form:
            raise InputError(
                f"question {question.id} ({question.stem[:60]!r}) has text that this tokenizer reads as control "
                "tokens; remove the question"
            )
        return prompt

    def _render(self, question: Question) -> Prompt:
        fields = [question.stem, list_options(question), list_letters(question)]
        mark = _choose_mark("".join(fields))
        content = self.form.fill(*(self._mark_control(field, mark) for field in fields))
        pieces = self._render_turns(content).split(mark)
        return Prompt("".join(pieces), (*self._prefix(pieces[0]), *self._encode(pieces)))

    def extend(self, prompt: Prompt, reply: str, continuation: str) -> Prompt:
        """Return `prompt` with a reply of the model behind it and a text with which the reply shall go on.

        The reply is what an engine has returned, without special tokens: where it spells one, the spelling is data.
        Marks such as </think> that are no special tokens are what the model wrote. `continuation` is ours and may hold
        control tokens.
        """
        mark = _choose_mark(reply)
        pieces = (self._mark_special(reply, mark) + continuation).split(mark)
        return Prompt(prompt.text + reply + continuation, (*prompt.ids, *self._encode(["", *pieces])))

    def ask_further(self, request: str) -> str:
        """Return the text that ends a reply of the model and asks `request` in a further turn, for `extend`.

        It is "" where the prompt has no turns, or the template knows one exchange only.
        """
        if not self.uses_template:
            return ""
        reply = _choose_mark(request)
        turns = [{"role": role, "content": text} for role, text in (("assistant", reply), ("user", request))]
        try:
            return self._render_turns("?", further=turns).partition(reply)[2]
        except InputError:
            return ""

    def find_turn_ends(self) -> set[int]:
        """Return the control tokens that the chat template puts behind an answer; none without a template."""
        if self.chat_template is None:
            return set()
        answer = "The answer is A"
        turns = [
            {"role": "user", "content": self.form.fill_in(SAMPLE_QUESTION)},
            {"role": "assistant", "content": answer},
        ]
        text = str(self._tokenizer.apply_chat_template(turns, tokenize=False, strftime_now=TEMPLATE_DATE.strftime))
        return set(self._list_control(self._tokenize(text.rpartition(answer)[2])))

    def render_turns(self, question: Question, **template_kwargs: Any) -> str:
        """Return the prompt's text with these arguments of the template in place of the configured ones."""
        return self._render_turns(self.form.fill_in(question), template_kwargs)

    def _render_turns(
        self, content: str, changed_kwargs: Mapping[str, Any] | None = None, further: Sequence[dict[str, str]] = ()
    ) -> str:
        if not self.uses_template:
            parts = [self._system, content] if self._system else [content]
            return "\n\n".join(parts) + ("\n" if self.form.form == "chat" else "")
        turns = [{"role": "system", "content": self._system}] if self._system else []
        turns += [{"role": "user", "content": content}, *further]
        kwargs = {"strftime_now": TEMPLATE_DATE.strftime} | self._kwargs | dict(changed_kwargs or {})
        try:
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **kwargs))
        except Exception as error:  # a template is a program: it raises whatever it likes
            raise InputError(self._explain(error)) from None

    def _explain(self, error: Exception) -> str:
        reason = " ".join(str(error).split()) or type(error).__name__
        if self._system:
            return (
                f"the model's chat template refuses the prompt ({reason}); if it knows no system turn, set "
                f"policy.system_prompt='' and use a policy.prompt without `system` (now {self.form.name})"
            )
        return f"the model's chat template fails ({reason}); correct policy.chat_template_kwargs, or use another model"

    def _refuse_lost_turns(self) -> None:
        """Refuse a template that drops a turn without a word."""
        if not self.uses_template:
            return
        text = self.render_turns(SAMPLE_QUESTION)
        if self._system and self._system.strip() not in text:
            raise InputError(
                "the model's chat template drops the system turn; set policy.system_prompt='' and use a policy.prompt "
                f"without `system` (now {self.form.name})"
            )
        if self.form.fill_in(SAMPLE_QUESTION).strip() not in text:
            raise InputError("the model's chat template drops or changes the user turn; use another model")

    @cached_property
    def _prefix_ids(self) -> list[int]:
        """The ids that the tokenizer puts in front of a text of its own, where no template does it."""
        if self.uses_template:
            return []
        plain = self._tokenize("x")
        ids = list(self._tokenizer("x")["input_ids"])
        start = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), 0)
        return ids[:start]

    def _prefix(self, text: str) -> list[int]:
        """Return the ids in front of `text`: none where the text spells them itself."""
        size = len(self._prefix_ids)
        return [] if size and self._tokenize(text)[:size] == self._prefix_ids else self._prefix_ids

    def _list_control(self, ids: Sequence[int]) -> list[int]:
        return [id for id in ids if id in self._control_ids]

    def _encode(self, pieces: list[str]) -> list[int]:
        """Tokenize pieces of one text, so that no token reaches over two of them."""
        first, *others = pieces
        return self._tokenize(first) + [id for piece in others for id in self._tokenize_inside(piece)]

    def _tokenize_inside(self, text: str) -> list[int]:
        """Tokenize text that stands inside a longer one: some tokenizers put a space in front of each text."""
        anchor = self._tokenize(_ANCHOR)
        ids = self._tokenize(_ANCHOR + text)
        return ids[len(anchor) :] if ids[: len(anchor)] == anchor else self._tokenize(text)

    def _tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []


def _choose_mark(text: str) -> str:
    """Return a character of the private use area that the text does not have."""
    return next(mark for mark in map(chr, range(0xE000, 0xF8FF)) if mark not in text)


def _build_marker(tokens: set[str]) -> Callable[[str, str], str]:
    """Return a function (text, mark) -> text with the mark after the first character of each token spelled in it."""
    if not tokens:
        return lambda text, mark: text
    # The look-ahead also finds tokens that overlap.
    pattern = re.compile("(?=" + "|".join(map(re.escape, sorted(tokens))) + ").", re.DOTALL)
    return lambda text, mark: pattern.sub(lambda first: first.group() + mark, text)
