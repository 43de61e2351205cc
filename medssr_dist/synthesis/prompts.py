"""The synthesis prompt: two seed questions and, if knowledge is injected, a rare disease with its passages.

The text is a template: `question_prompt.yaml`, or the user's own file (`synthesis.prompt_file`). Seeds and passages
have bracketed headings on separate lines, and every inserted text is joined into one line, so that no seed or passage
can be mistaken for a heading. The true answer of a seed is never part of the prompt: the new question is labelled by a
vote, not by the labels of the seeds.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from medssr_dist.config.synthesis import Synthesis
from medssr_dist.data.records import LETTERS, Question, hash_content
from medssr_dist.data.yaml_text import read_yaml
from medssr_dist.errors import InputError

if TYPE_CHECKING:
    from medssr_dist.knowledge.passages import Passage

SEED_HEADING = "[Seed question {number}]"
ENTITY_HEADING = "[Entity]"
PASSAGE_HEADING = "[Passage {number}]"
PASSAGE_CHARS = 2400  # 90% of GARD/GHR passages are shorter; more text costs more than it helps
DEFAULT_PROMPT = Path(__file__).with_name("question_prompt.yaml")
_PLACEHOLDERS = {"system": (), "common": ("seeds",), "rare": ("seeds", "entity", "passages")}  # turn -> required
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")
_RENDERED = 16384  # cache of rendered seeds and passages: each is used in many prompts
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True)
class QuestionPrompt:
    """The template of the synthesis prompt.

    Attributes:
        system: the system turn; "" for none.
        common: the user turn of a question without injected knowledge, with {seeds}.
        rare: the user turn of a question about a rare disease, with {seeds}, {entity} and {passages}.

    Example: QuestionPrompt("You write questions.", "{seeds} Write one.", "{seeds} {passages} Ask about {entity}.")
    """

    system: str
    common: str
    rare: str

    @property
    def hash(self) -> str:
        """The hash of the whole text; it is recorded with the run."""
        return hash_content(astuple(self))


def load_question_prompt(file: str | Path | None = None) -> QuestionPrompt:
    """Read a template; None = the one that comes with the package.

    Raises:
        InputError: the file is not such a template, or a placeholder is unknown or missing; the message names it.
    """
    path = Path(file or DEFAULT_PROMPT)
    turns = read_yaml(path)
    if not isinstance(turns, dict):
        raise InputError(f"{path} is no prompt: it needs the keys {', '.join(_PLACEHOLDERS)}; copy {DEFAULT_PROMPT}")
    if unknown := [str(key) for key in turns if key not in _PLACEHOLDERS]:
        raise InputError(f"{path}: unknown key {unknown[0]!r}; the keys of a prompt are {', '.join(_PLACEHOLDERS)}")
    return QuestionPrompt(**{turn: _check_turn(path, turn, turns.get(turn, "")) for turn in _PLACEHOLDERS})


def _check_turn(path: Path, turn: str, text: Any) -> str:
    """Return the text of one turn. Raises InputError unless it has exactly the placeholders of that turn."""
    if not isinstance(text, str) or (turn != "system" and not text.strip()):
        raise InputError(f"{path}: {turn} must be a text; copy the form of {DEFAULT_PROMPT}")
    found, required = set(_PLACEHOLDER.findall(text)), _PLACEHOLDERS[turn]
    known = ", ".join(f"{{{name}}}" for name in required) or "none"
    for name in sorted(found.difference(required)):
        raise InputError(f"{path}: {turn} has the unknown placeholder {{{name}}}; {turn} may contain: {known}")
    for name in required:
        if name not in found:
            raise InputError(f"{path}: {turn} lacks the placeholder {{{name}}}; {turn} must contain: {known}")
    return text.strip()


_load_default = lru_cache(maxsize=1)(load_question_prompt)


def build_messages(
    seeds: tuple[Question, Question],
    entity: str | None,
    passages: list[Passage],
    prompt: QuestionPrompt | None = None,
) -> list[dict[str, str]]:
    """Return chat messages that ask for one new question (paper section 3.1).

    Args:
        seeds: the two seed questions of the draw.
        entity: rare disease to ask about; None for a question without injected knowledge.
        passages: retrieved for `entity`; ignored if `entity` is None.
        prompt: None = the one that comes with the package.
    """
    prompt = prompt or _load_default()
    values = {"seeds": join_blocks(SEED_HEADING, [render_question(seed) for seed in seeds])}
    if entity is not None:
        values["entity"] = make_one_line(entity)
        values["passages"] = join_blocks(
            PASSAGE_HEADING, [_render_passage(each.title, each.content) for each in passages]
        )
    user = _PLACEHOLDER.sub(lambda match: values[match[1]], prompt.common if entity is None else prompt.rare)
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": user}]


def join_blocks(heading: str, bodies: list[str]) -> str:
    """Return the bodies below their numbered headings; "" for no body."""
    return "\n\n".join(f"{heading.format(number=number)}\n{body}" for number, body in enumerate(bodies, start=1))


def hash_request(messages: list[dict[str, str]], synthesis: Synthesis) -> str:
    """Return a hash of everything the reply depends on: messages, models, sampling, JSON schema; not address or key."""
    schema = any(endpoint.json_schema for endpoint in synthesis.endpoints)
    return hash_messages(messages, [synthesis.models, synthesis.temperature, synthesis.max_tokens, schema])


def hash_messages(messages: list[dict[str, str]], settings: list[Any]) -> str:
    """Return a hash of messages and of the settings that they are sent with."""
    return hashlib.sha256(_encode([messages, *settings])).hexdigest()[:16]


def render_question(seed: Question) -> str:
    """Return stem and lettered options, each on one line, without the answer."""
    return _render_options(seed.stem, tuple(seed.options.values()))


@lru_cache(maxsize=_RENDERED)
def _render_options(stem: str, options: tuple[str, ...]) -> str:
    lettered = [f"{letter}. {make_one_line(text)}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([make_one_line(stem), *lettered])


def make_one_line(text: str) -> str:
    """Return `text` on one line; a lone surrogate, which cannot be written as UTF-8, is replaced."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


@lru_cache(maxsize=_RENDERED)
def _render_passage(title: str, content: str) -> str:
    content = make_one_line(content)
    if len(content) > PASSAGE_CHARS:
        content = content[:PASSAGE_CHARS].rsplit(" ", 1)[0] + " ..."
    return f"{make_one_line(title)}\n{content}"
