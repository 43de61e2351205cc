"""Checks of what a run reads: policy, passages, data sets, vocabulary, trackers, endpoints and their keys."""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from yarl import URL

from medssr_dist.commands.doctor.check_result import CheckResult
from medssr_dist.commands.doctor.slurm_settings import list_job_hosts
from medssr_dist.commands.prefetch import (
    count_missing_passages,
    count_trial_tokens,
    name_corpora,
    refuse_incomplete_model,
    refuse_missing_encoders,
)
from medssr_dist.config.schema import Config
from medssr_dist.errors import InputError
from medssr_dist.readers import (
    read_all,
    read_calibration_questions,
    read_validation_questions,
    refuse_evaluation_items,
    refuse_unlabelled,
)
from medssr_dist.run.directory import RunDir
from medssr_dist.runtime.http.proxy import find_proxy
from medssr_dist.runtime.model_faults import refuse_unfit_model
from medssr_dist.runtime.models import find_policy_on_disk, load_tokenizer, make_prompt_renderer
from medssr_dist.runtime.prompt_advice import list_prompt_advice
from medssr_dist.synthesis.client.chat_client import build_api_url
from medssr_dist.training.trackers import check_trackers


def is_synthesis_finished(run_dir: Path) -> bool:
    """Return whether this run has all of its questions. It then needs neither passages nor an endpoint."""
    run = RunDir(run_dir)
    return run.is_finished("synthesize")


def check_model(config: Config, run_dir: Path) -> CheckResult:
    """Check that the policy is on this machine, with all weights and a tokenizer, and that it fits the config."""
    folder = find_policy_on_disk(config.policy)
    if folder is None:
        detail, nodes = f"{config.policy.model}, converted on first use", len(list_job_hosts())
        return CheckResult("pass", detail) if nodes == 1 else CheckResult("warn", detail, "run `medssr prefetch`")
    refuse_incomplete_model("policy.model", config.policy.model, folder, config.policy.trust_remote_code)
    refuse_unfit_model(config, folder)
    return CheckResult("pass", str(folder))


def check_prompt(config: Config, run_dir: Path) -> CheckResult:
    """Check that prompt, model and token limits fit together."""
    label = config.policy.prompt.label
    folder = None
    with suppress(InputError):  # the check of the model reports it
        folder = find_policy_on_disk(config.policy)
    if folder is None:
        return CheckResult("pass", f"{label}; the model is not there yet")
    prompts = make_prompt_renderer(load_tokenizer(folder, config.policy), config.policy)
    advice = list_prompt_advice(config, prompts, folder)
    if not advice:
        return CheckResult("pass", label)
    return CheckResult("warn", "; ".join(each.detail for each in advice), "; ".join(each.fix for each in advice))


def check_knowledge(config: Config, run_dir: Path) -> CheckResult:
    """Check that every entity has passages, or that the encoders that retrieve them are on this machine."""
    if config.synthesis.alpha == 0:
        return CheckResult("pass", "synthesis.alpha is 0: no passages are needed")
    if is_synthesis_finished(run_dir):
        return CheckResult("pass", "the questions are already written")
    counts = count_missing_passages(config)
    if not counts.missing:
        return CheckResult("pass", f"passages of {counts.total:,} entities from {name_corpora(config.knowledge)}")
    refuse_missing_encoders(config.knowledge)
    detail = (
        f"{counts.missing:,} of {counts.total:,} entities have no passages from {name_corpora(config.knowledge)} yet"
    )
    return CheckResult("warn", f"{detail}; the run retrieves them", "run `medssr prefetch`")


def check_tracking(config: Config, run_dir: Path) -> CheckResult:
    """Check that the trackers are installed and have their keys in the environment."""
    check_trackers(config.training)
    return CheckResult("pass", ", ".join(config.training.trackers) or "none")


def check_vocabulary(config: Config, run_dir: Path) -> CheckResult:
    """Check that tiktoken counts tokens without downloading its vocabulary."""
    return CheckResult("pass", f"tiktoken counts offline ({count_trial_tokens()} tokens in a trial)")


def check_data(config: Config, run_dir: Path) -> CheckResult:
    """Check that every data set can be read, has answers where needed, and contains no evaluation item."""
    benchmarks = read_all(config.evaluation.benchmarks, config.runtime.random_seed)
    stage2 = config.training.stage2
    sets = {"seeds": read_all(config.synthesis.seeds, config.runtime.random_seed)}
    sets |= {"supervised": read_all(stage2.data, config.runtime.random_seed)} if stage2.enabled else {}
    for questions in sets.values():
        refuse_evaluation_items(questions, benchmarks)
    refuse_unlabelled([*sets.get("supervised", []), *benchmarks])
    sets |= {"evaluation": benchmarks}
    sets |= {"validation": held_out} if (held_out := read_validation_questions(config)) else {}
    sets |= {"calibration": calibration} if (calibration := read_calibration_questions(config)) else {}
    counts = ", ".join(f"{len(items):,} {name}" for name, items in sets.items())
    if not benchmarks:
        return CheckResult("warn", counts, "name a data set in evaluation.benchmarks, or run without `evaluate`")
    return CheckResult("pass", counts)


def check_endpoints(config: Config, run_dir: Path) -> CheckResult:
    """Check that each endpoint, or the proxy in front of it, accepts connections."""
    if not config.training.uses_pseudo_labels:
        return CheckResult("pass", "no stage uses pseudo-labels: no questions are written")
    if is_synthesis_finished(run_dir):
        return CheckResult("pass", "the questions are already written")
    answers = [_connect(endpoint.base_url) for endpoint in config.synthesis.endpoints]
    failed = [answer.detail for answer in answers if not answer.reached]
    if failed:
        fix = "check synthesis.endpoints, proxies and the network; or run `medssr synthesize` where there is internet"
        return CheckResult("fail", "; ".join(failed), fix)
    return CheckResult("pass", "; ".join(answer.detail for answer in answers))


class _Answer(NamedTuple):
    """Whether something accepts connections at an address, and a description."""

    reached: bool
    detail: str


def _connect(base_url: str) -> _Answer:
    if base_url == "offline-teacher":
        return _Answer(True, "offline-teacher, started by the run")
    url, via = build_api_url(base_url, "/chat/completions"), ""
    if proxy := find_proxy(url):
        via, url = f" (proxy for {url.host})", URL(proxy)
    where = f"{url.host}:{url.port}{via}"
    try:
        socket.create_connection((url.host, url.port), timeout=5).close()
    except OSError as error:
        return _Answer(False, f"{where} cannot be reached ({error})")
    return _Answer(True, f"{where} answers")


def check_api_keys(config: Config, run_dir: Path) -> CheckResult:
    """Check that no API key is empty, and that every https endpoint has one."""
    without = []
    for number, endpoint in enumerate(config.synthesis.endpoints):
        name = f"synthesis.endpoints.{number}.api_key"
        if endpoint.api_key is not None and not endpoint.api_key.get_secret_value():
            return CheckResult("fail", f"{name} is empty", "export the variable that it names, or fill its file")
        if endpoint.api_key is None and urlsplit(endpoint.base_url).scheme == "https":
            without.append(name)
    if without:
        fix = f"set {without[0]} to ${{YOUR_VARIABLE}} or file:PATH"
        return CheckResult("warn", "none configured for an https endpoint", fix)
    return CheckResult("pass", f"as configured, {len(config.synthesis.endpoints)} endpoint(s)")
