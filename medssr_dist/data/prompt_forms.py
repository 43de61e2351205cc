"""The wording of the policy's prompt: presets and users' files, read and checked when the config is loaded.

A prompt is a YAML file with the text of the user turn and, if wanted, of the system turn. The presets are such files
too (`data/prompts/`), so that a copy of one is the start of an own prompt. `prompt_renderer.py` makes token ids of it.
"""

from __future__ import annotations

import string
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medssr_dist.data.records import Question, hash_content
from medssr_dist.data.yaml_text import read_yaml
from medssr_dist.errors import InputError

_FOLDER = Path(__file__).with_name("prompts")
PRESETS = tuple(sorted(file.stem for file in _FOLDER.glob("*.yaml")))
_REQUIRED = ("question", "options")
_PLACEHOLDERS = (*_REQUIRED, "letters")


class PromptForm(BaseModel):
    """The wording of a prompt, with {question}, {options} and, if wanted, {letters} in the user turn.

    Example: PromptForm(name="direct", user="{question}\\n{options}\\n\\nReply with: The answer is (letter).")

    Raises:
        ValueError: a placeholder is unknown or missing, or a completion has a system turn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, description="name in reports")
    version: int = Field(1, ge=1, description="raised whenever the wording changes")
    form: Literal["chat", "completion"] = Field(
        "chat", description="chat: turns in the model's chat template; completion: the text alone, for base models"
    )
    system: str = Field("", description="system turn; '' = none")
    user: str = Field(description="user turn, or the text to continue; {{ and }} stand for braces")
    stop: tuple[str, ...] = Field((), description="strings that end an answer; they are not part of it")

    @model_validator(mode="after")
    def _refuse_unfit(self) -> PromptForm:
        found = _list_placeholders(self.user)
        if unknown := sorted(set(found) - set(_PLACEHOLDERS)):
            raise ValueError(
                f"user has the unknown placeholder {{{unknown[0]}}}; those known are "
                f"{', '.join(f'{{{name}}}' for name in _PLACEHOLDERS)}, and a brace itself is written twice"
            )
        for name in _REQUIRED:
            if found.count(name) != 1:
                raise ValueError(f"user has {{{name}}} {found.count(name)} times; it must be there once")
        if self.form == "completion" and self.system:
            raise ValueError("form is completion, which has no turns; move the text of system into user")
        if not all(self.stop):
            raise ValueError("stop has an empty string, which would end every answer at once; remove it")
        return self

    @cached_property
    def hash(self) -> str:
        """Hash of the whole wording, its name and version included."""
        return hash_content(self.model_dump(mode="json"))

    @property
    def label(self) -> str:
        """Name, version and hash in one text. Example: "reason 1 (0f3a9c1d2b4e5f60)"."""
        return f"{self.name} {self.version} ({self.hash})"

    def fill(self, question: str, options: str, letters: str) -> str:
        """Return the user turn with these texts in place of the placeholders."""
        return self.user.format(question=question, options=options, letters=letters)

    def fill_in(self, question: Question) -> str:
        """Return the user turn for a question."""
        return self.fill(question.stem, list_options(question), list_letters(question))


def list_options(question: Question) -> str:
    """Return the options with their letters, one a line."""
    return "\n".join(f"{letter}. {text}" for letter, text in question.options.items())


def list_letters(question: Question) -> str:
    """Return the letters of the options. Example: "A, B, C or D"."""
    *first, last = question.options
    return f"{', '.join(first)} or {last}"


def _list_placeholders(text: str) -> list[str]:
    try:
        fields = [field[1:] for field in string.Formatter().parse(text) if field[1] is not None]
    except ValueError as error:
        raise ValueError(f"user has a brace that opens or closes no placeholder ({error}); write it twice") from None
    return [f"{name}!{how or ''}:{spec}" if how or spec else str(name) for name, spec, how in fields]


def load_prompt_form(name: str) -> PromptForm:
    """Return the preset of this name, or the prompt in the YAML file of this path.

    Raises:
        InputError: there is neither, or the file cannot be read, is not valid YAML or holds no valid prompt.
    """
    file = _FOLDER / f"{name}.yaml" if name in PRESETS else Path(name).expanduser()
    if not file.is_file():
        raise InputError(
            f"policy.prompt = {name!r} is neither a preset ({', '.join(PRESETS)}) nor a file; correct it, or copy "
            f"{_FOLDER / 'reason.yaml'} to start a prompt of your own"
        )
    tree = read_yaml(file)
    if not isinstance(tree, dict):
        raise InputError(
            f"{file} holds no prompt; it needs the key user, with {{question}} and {{options}} in its text"
        )
    return parse_prompt_form({"name": file.stem} | tree, str(file))


def parse_prompt_form(tree: dict[str, Any], where: str) -> PromptForm:
    """Check a prompt that was read from `where`. Raises InputError, which names the place, the key and the fix."""
    if unknown := sorted(map(str, tree.keys() - PromptForm.model_fields.keys())):
        raise InputError(f"{where}: unknown key {unknown[0]!r}; a prompt has {', '.join(PromptForm.model_fields)}")
    try:
        return PromptForm.model_validate(tree)
    except ValueError as error:
        raise InputError(f"{where}: {_explain(error)}") from None


def _explain(error: ValueError) -> str:
    """Return what pydantic found, in one line."""
    items = error.errors() if hasattr(error, "errors") else []
    parts = [".".join(map(str, item["loc"])) + " " + item["msg"].removeprefix("Value error, ") for item in items]
    return "; ".join(part.strip() for part in parts) or str(error)
