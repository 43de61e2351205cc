"""`medssr evaluate MODEL... --data X`: score any models on any benchmarks, with paired differences.

A model is a directory, a LoRA adapter, a Hugging Face id, or what a running vLLM server has. Its answers are stored in
the run directory, and none is asked for twice: the same command with one more model asks that model alone.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from medssr_dist.commands.plan_rows import PlanRow, print_rows
from medssr_dist.commands.prefetch import fetch_policy
from medssr_dist.config.schema import Config
from medssr_dist.errors import InputError
from medssr_dist.estimates.memory import refuse_too_little_for_engines
from medssr_dist.evaluation.benchmarks import log_facts, read_benchmarks
from medssr_dist.evaluation.score_report import render_table
from medssr_dist.evaluation.scores import read_scores
from medssr_dist.readers import count_facts
from medssr_dist.run.session import open_session
from medssr_dist.runtime.device import describe_device
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.merged_adapter import is_adapter, read_base_name
from medssr_dist.runtime.model_faults import refuse_unfit_model
from medssr_dist.runtime.models import find_policy_on_disk, load_tokenizer, make_prompt_renderer, resolve_model
from medssr_dist.runtime.prompt_advice import THINKING_TOKENS, list_prompt_advice
from medssr_dist.sources.hub_sets import is_offline
from medssr_dist.steps.evaluation_step import EvaluatedPolicy, score_policies
from medssr_dist.steps.step_inputs import hash_questions

_log = logging.getLogger(__name__)


def evaluate_models(config: Config, models: Sequence[str], run_dir: Path) -> None:
    """Evaluate `models` on the benchmarks of `config`, and print the table of scores and paired differences.

    Args:
        config: its policy is the first model; prompt, lengths and dtype are those of all models. With
            `voting.servers`, the servers answer.

    Raises:
        InputError: a model or a benchmark cannot be found or used.
        Stopped: by a signal; the same call continues.
    """
    names = name_models(models)
    if config.voting.servers and len(models) > 1:
        raise InputError(f"a server answers for one model, but {len(models)} are given; evaluate them one by one")
    benchmarks = read_benchmarks(config.evaluation, config.runtime.random_seed)
    log_facts(benchmarks)
    policies = {name: _find_policy(config, model) for name, model in zip(names, models, strict=True)}
    for policy in policies.values():
        _check(policy)
    with open_session(config, run_dir, before_ray=refuse_too_little_for_engines) as session:
        inputs = {f"policy {name}": fingerprint_model(policy.folder) for name, policy in policies.items()}
        inputs |= {f"benchmark {name}": hash_questions(questions) for name, questions in benchmarks.items()}
        session.run_step("evaluate", inputs, lambda: score_policies(session, benchmarks, policies))
        paths = session.run.evaluation
    print(render_table(read_scores(paths.scores)), end="")
    print(f"\nfiles: {paths.scores}, {paths.table}, {paths.plot}, {paths.letters}, {paths.answers}")


def plan_evaluation_of_models(config: Config, models: Sequence[str]) -> None:
    """Print what `evaluate_models` would do; nothing is started, downloaded or written.

    Raises:
        InputError: a model or a benchmark cannot be found or used.
    """
    names = name_models(models)
    benchmarks = read_benchmarks(config.evaluation, config.runtime.random_seed)
    count, generations = sum(map(len, benchmarks.values())), config.evaluation.generations
    print("dry run of evaluate; nothing is started")
    print_rows("slots", [PlanRow("device", describe_device())])
    print_rows("models", [PlanRow(name, _locate(config, model)) for name, model in zip(names, models, strict=True)])
    print_rows("benchmarks", [PlanRow(name, count_facts(each).describe()) for name, each in benchmarks.items()])
    total = f"{count:,} questions x {generations} x {len(models)} models = {count * generations * len(models):,}"
    print_rows("answers", [PlanRow("", f"{total}, and a second pass for those without an answer")])
    most = count * generations * len(models) * config.evaluation.max_tokens
    print_rows("wall time", [PlanRow("evaluate", f"unknown, not measured: at most {most:,} tokens")])


def name_models(models: Sequence[str]) -> list[str]:
    """Return a short name for each model: the last part of its path, or the whole where two would be the same.

    Raises:
        InputError: a model is named twice.
    """
    if twice := [model for model in models if models.count(model) > 1]:
        raise InputError(f"{twice[0]!r} is named twice; name each model once")
    short = [Path(model.removeprefix("embedded:")).name or model for model in models]
    return [model if short.count(name) > 1 else name for name, model in zip(short, models, strict=True)]


def _check(policy: EvaluatedPolicy) -> None:
    """Refuse a model that the config does not fit, and warn where its prompt does not fit.

    What a server can do is its own matter, but the prompt is made here for it too.
    """
    config = policy.config
    if not policy.with_servers:
        refuse_unfit_model(config, policy.folder)
    limits = config.voting.model_copy(update={"max_tokens": THINKING_TOKENS})  # there is no vote whose limit matters
    prompts = make_prompt_renderer(load_tokenizer(policy.folder, config.policy), config.policy)
    for each in list_prompt_advice(config.model_copy(update={"voting": limits}), prompts, policy.folder):
        _log.warning("%s: %s; %s", config.policy.model, each.detail, each.fix)


def _locate(config: Config, model: str) -> str:
    """Return where a model is, or that it will be downloaded; checks it if it is there."""
    policy = config.policy.model_copy(update={"model": model})
    own = config.model_copy(update={"policy": policy})
    try:
        folder = find_policy_on_disk(policy)
    except InputError:
        if not _can_be_fetched(model):
            raise
        return f"{model}, to be downloaded"
    if folder is None:
        return f"{model}, to be converted"
    _check(EvaluatedPolicy(folder, own, with_servers=bool(config.voting.servers)))
    return str(folder)


def _can_be_fetched(model: str) -> bool:
    return not Path(model).exists() and model.count("/") == 1 and not is_offline()


def _find_policy(config: Config, model: str) -> EvaluatedPolicy:
    """Return a model with its directory; a Hugging Face id that is not in the local cache is downloaded."""
    policy = config.policy.model_copy(update={"model": model})
    own = config.model_copy(update={"policy": policy})
    folder = Path(model)
    if is_adapter(folder):
        _fetch_if_absent(config, read_base_name(folder))
    return EvaluatedPolicy(_fetch_if_absent(config, model), own, with_servers=bool(config.voting.servers))


def _fetch_if_absent(config: Config, model: str) -> Path:
    policy = config.policy.model_copy(update={"model": model})
    try:
        return resolve_model(policy)
    except InputError:
        if not _can_be_fetched(model):
            raise
    _log.info("%s is downloaded", model)
    return fetch_policy(policy)
