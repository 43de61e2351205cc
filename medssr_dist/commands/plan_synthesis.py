"""`--dry-run` of synthesis: demand, endpoints, cost, rare diseases, and the first prompts as a run would send them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from medssr_dist.commands.plan_rows import PlanRow, describe_sources
from medssr_dist.commands.prefetch import find_indexes, name_corpora
from medssr_dist.config.price_table import describe_cost
from medssr_dist.config.schema import Config
from medssr_dist.config.synthesis import Knowledge, Synthesis
from medssr_dist.data.jsonl import write_atomic
from medssr_dist.data.records import Question
from medssr_dist.estimates.rates import read_rates
from medssr_dist.estimates.workload import expect_questions
from medssr_dist.readers import read_all, refuse_evaluation_items
from medssr_dist.run.directory import RunDir, find_commit

if TYPE_CHECKING:
    from medssr_dist.knowledge.entities import Entity
    from medssr_dist.knowledge.passages import Passage

_SAMPLED_PASSAGES = 200  # of each corpus, where there is no index


def plan_synthesis(config: Config, run: RunDir, folder: Path, model: Path) -> list[PlanRow]:
    """Return the plan of `synthesize`, which does not use `model`; write its first prompts to `folder`/prompts.txt.

    Raises:
        InputError: the data or the entities cannot be read, or an evaluation item is among the seeds.
    """
    synthesis, random_seed = config.synthesis, config.runtime.random_seed
    seeds = read_all(synthesis.seeds, random_seed)
    refuse_evaluation_items(seeds, read_all(config.evaluation.benchmarks, random_seed))
    rare = _list_entities(config) if synthesis.alpha > 0 else []
    rendered = _render_prompts(config, seeds, rare, folder)
    count = rendered.with_entity
    share = f"{count:,} of the first {synthesis.accepted:,} ({count / synthesis.accepted:.3f})"
    return [
        PlanRow("questions", f"{_describe_demand(config, run)}, {synthesis.most_candidates:,} requests at most"),
        *[PlanRow("endpoint", f"{endpoint.base_url} ({endpoint.model})") for endpoint in synthesis.endpoints],
        *[PlanRow("judge", f"{each.base_url} ({each.model})") for each in synthesis.judge_endpoints],
        PlanRow("cost", _describe_cost(synthesis, rendered.mean_tokens)),
        PlanRow("rare", f"alpha {synthesis.alpha:g}: {share} requests get one of {len(rare):,} entities"),
        *describe_sources("seeds", synthesis.seeds, config),
        *_warn_of_few_seeds(len(seeds), expect_questions(config)),
        PlanRow("index", rendered.index_state),
    ]


def _warn_of_few_seeds(seeds: int, questions: int) -> list[PlanRow]:
    """Return a warning if each pair of seeds is used more than once, on average."""
    pairs = seeds * (seeds - 1) // 2
    if not pairs or questions <= pairs:
        return []
    used = f"each pair is used {questions / pairs:,.1f} times, each seed {2 * questions / seeds:,.0f} times"
    return [
        PlanRow("", f"warning: {seeds:,} seeds make {pairs:,} pairs for {questions:,} questions: {used}; add seeds")
    ]


def _describe_demand(config: Config, run: RunDir) -> str:
    """Describe how many questions are wanted, for `voting.kept` by the measured or assumed share of kept labels."""
    kept, synthesis = config.voting.kept, config.synthesis
    if not kept:
        return f"{synthesis.accepted:,} accepted wanted"
    rates = read_rates(run.root)
    if rates and rates.vote and rates.vote.kept_share:
        questions = expect_questions(config, rates.vote.kept_share)
        return f"about {questions:,} accepted for {kept:,} kept labels ({100 * rates.vote.kept_share:.0f}% kept so far)"
    share = f"{100 * kept / max(kept, synthesis.accepted):.0f}% kept, assumed from synthesis.accepted"
    return f"about {expect_questions(config):,} accepted for {kept:,} kept labels ({share})"


def _list_entities(config: Config) -> list[Entity]:
    """Return the entities of the run, without those that are known to have no passage."""
    from medssr_dist.knowledge.entities import draw_run_entities
    from medssr_dist.knowledge.retrieval import Retriever

    drawn = draw_run_entities(config).entities
    return Retriever(config.knowledge).keep_covered(drawn) if find_indexes(config.knowledge) else list(drawn)


def _describe_cost(synthesis: Synthesis, prompt_tokens: float) -> str:
    """Describe the most tokens of one request and of N requests, and the cost of N requests, as far as it is known."""
    count, most = synthesis.accepted, prompt_tokens + synthesis.max_tokens
    cost = describe_cost(synthesis, synthesis.models, count * prompt_tokens, count * synthesis.max_tokens)
    text = f"about {prompt_tokens:,.0f} prompt tokens and at most {synthesis.max_tokens:,} reply tokens per request: "
    text += f"{count * most:,.0f} tokens for {count:,} requests, cost {cost}"
    if judge := synthesis.judge:
        verdict = describe_cost(synthesis, synthesis.judge_models, 0, count * judge.max_tokens)
        text += (
            f"; and a verdict of at most {judge.max_tokens:,} tokens on each question that passes the checks, "
            f"cost {verdict} without its prompts"
        )
    return text


class _RenderedPrompts(NamedTuple):
    """Facts about the rendered prompts.

    Attributes:
        with_entity: number of the first N requests that get an entity.
        mean_tokens: mean length of the rendered prompts.
        index_state: state of the passage index, in words.
    """

    with_entity: int
    mean_tokens: float
    index_state: str


def _render_prompts(config: Config, seeds: list[Question], rare: list[Entity], folder: Path) -> _RenderedPrompts:
    """Write the first prompt with an entity and the first one without to `folder`/prompts.txt."""
    from medssr_dist.synthesis.client.budget import TokenCounter
    from medssr_dist.synthesis.request_plan import Draws, RequestPlan
    from medssr_dist.synthesis.synthesize import check_inputs

    check_inputs(config, seeds, rare)
    synthesis = config.synthesis
    draws = Draws(
        config.runtime.random_seed, synthesis.alpha, seeds, rare, synthesis.seed_pairs, synthesis.entity_choice
    )
    has_entity = [draws.draw(index).entity is not None for index in range(synthesis.accepted)]
    indexes = find_indexes(config.knowledge) if any(has_entity) else []
    read_passages = _read_found_passages(config.knowledge, rare) if indexes else _read_samples(config.knowledge)
    plan = RequestPlan(config, seeds, rare, read_passages, find_commit())
    shown = [has_entity.index(kind) for kind in (True, False) if kind in has_entity]
    prompts = {index: plan.build_request(index).messages for index in sorted(shown)}
    parts = [_render_messages(index, messages) for index, messages in prompts.items()]
    write_atomic(folder / "prompts.txt", "\n\n".join(parts) + "\n")
    count_tokens = TokenCounter()
    shares = {True: sum(has_entity) / len(has_entity), False: 1 - sum(has_entity) / len(has_entity)}
    tokens = sum(shares[has_entity[index]] * count_tokens(list(messages)) for index, messages in prompts.items())
    state = _describe_indexes(config.knowledge, indexes) if any(has_entity) else "not needed"
    return _RenderedPrompts(sum(has_entity), tokens, state)


def _render_messages(index: int, messages: list[dict[str, str]]) -> str:
    return "\n".join([f"===== request {index} =====", *(f"--- {m['role']} ---\n{m['content']}" for m in messages)])


def _read_found_passages(knowledge: Knowledge, rare: list[Entity]) -> Callable[[str], list[Passage]]:
    """Return a function from the name of an entity to its passages, which are retrieved if they are not recorded."""
    from medssr_dist.knowledge.retrieval import Retriever

    retriever, by_name = Retriever(knowledge), {entity.name: entity for entity in rare}

    def read(name: str) -> list[Passage]:
        retriever.prepare([by_name[name]])
        return retriever.retrieve(name)

    return read


def _read_samples(knowledge: Knowledge) -> Callable[[str], list[Passage]]:
    """Return a function that gives passages of usual length in place of those of an index that is not built yet.

    They are evenly spaced among the first passages of all corpora by length, so that the tokens of the prompt are
    estimated.
    """
    from medssr_dist.knowledge.corpus import sample_passages

    @cache
    def choose() -> list[Passage]:
        found = sorted(sample_passages(knowledge, _SAMPLED_PASSAGES), key=lambda passage: len(passage.text))
        places = ((2 * place + 1) * len(found) // (2 * knowledge.top_k) for place in range(knowledge.top_k))
        return [found[place] for place in places] if found else []

    def read(name: str) -> list[Passage]:
        return [replace(passage, title=f"(in place of a passage about {name}) {passage.title}") for passage in choose()]

    return read


def _describe_indexes(knowledge: Knowledge, folders: list[Path]) -> str:
    if folders:
        return f"{', '.join(map(str, folders))} (built)"
    state = "not built; the run builds it. The prompts here have other passages of these corpora, for their length"
    return f"{name_corpora(knowledge)} under {knowledge.encoder}: {state}"
