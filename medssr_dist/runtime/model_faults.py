"""Faults of a model that would end a run late, found in its files in seconds: by preflight, dry run and every start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.config.schema import Config
from medssr_dist.data.jsonl import read_json
from medssr_dist.data.prompt_renderer import SAMPLE_QUESTION
from medssr_dist.errors import InputError
from medssr_dist.runtime.failures import describe_damage
from medssr_dist.runtime.model_files import ModelFacts, read_model_facts
from medssr_dist.runtime.models import load_tokenizer, make_prompt_renderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NO_FLOAT16 = ("gemma2", "gemma3", "gemma3_text", "glm4")  # vLLM refuses them, because their values are too large


def refuse_unfit_model(config: Config, folder: Path) -> None:
    """Check the model in `folder` against the config.

    Raises:
        InputError: the first of the faults that would end the vote, training or evaluation.
    """
    for fault in _list_faults(config, folder):
        raise InputError(f"policy.model = {config.policy.model!r}: {fault}")


def _list_faults(config: Config, folder: Path) -> Iterator[str]:
    """Yield each fault with its fix."""
    yield from _find_unreadable_config(config, folder)
    facts = read_model_facts(folder)
    yield from _find_wrong_kind(facts)
    yield from _find_missing_files(facts)
    yield from _find_long_context(config, facts)
    yield from _find_uneven_parts(config, facts)
    yield from _find_wrong_dtype(config, facts)
    yield from _find_missing_rows(config, facts, load_tokenizer(folder, config.policy))
    if config.training.stage1.enabled or config.training.stage2.enabled:
        yield from _find_untrainable(facts)


def _find_unreadable_config(config: Config, folder: Path) -> Iterator[str]:
    """Find values in the two config files that transformers refuses, such as a number in quotes."""
    from transformers import AutoConfig, GenerationConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    whole = read_json(folder / "config.json")
    is_known = isinstance(whole, dict) and whole.get("model_type") in CONFIG_MAPPING_NAMES
    readers: list[tuple[str, Callable[[], object]]] = []
    if is_known:  # a kind of model that is not known is told by `_find_wrong_kind`
        trust = config.policy.trust_remote_code
        readers.append(("config.json", lambda: AutoConfig.from_pretrained(folder, trust_remote_code=trust)))
    if (folder / "generation_config.json").exists():
        readers.append(("generation_config.json", lambda: GenerationConfig.from_pretrained(folder)))
    for name, read in readers:
        try:
            read()
        except Exception as error:  # of any kind: transformers passes on what its readers raise
            if damage := describe_damage(error):
                yield f"transformers refuses its {name} ({damage}); correct it, or copy the model again"


def _find_missing_files(facts: ModelFacts) -> Iterator[str]:
    if facts.missing_files:
        yield (
            f"it lacks {len(facts.missing_files)} of its files of weights, such as {facts.missing_files[0]}; copy or "
            "download the model again"
        )


def _find_wrong_kind(facts: ModelFacts) -> Iterator[str]:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if not facts.has_code and facts.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        yield (
            f"model_type = {facts.model_type!r} in its config.json is no language model that transformers knows; use "
            "a model that continues text, such as Qwen3 or Llama"
        )


def _find_long_context(config: Config, facts: ModelFacts) -> Iterator[str]:
    length = config.policy.max_model_len
    if facts.positions is not None and length > facts.positions:
        yield (
            f"policy.max_model_len = {length}, but its config.json names {facts.positions} positions; set "
            f"policy.max_model_len={facts.positions} or less, and the limits of answers below it"
        )


def _find_uneven_parts(config: Config, facts: ModelFacts) -> Iterator[str]:
    sizes = {"voting": config.voting.tensor_parallel_size, "training": config.training.tensor_parallel_size}
    for section, size in sizes.items():
        if not _splits_evenly(size, facts):
            fitting = max(each for each in range(1, size) if _splits_evenly(each, facts))
            inner = "".join(f" and inner size of {each:,}" for each in facts.inner_sizes)
            yield (
                f"its {facts.heads} attention heads ({facts.kv_heads} of keys and values){inner} cannot be split over "
                f"{section}.tensor_parallel_size = {size} GPUs; set {section}.tensor_parallel_size={fitting}"
            )


def _splits_evenly(size: int, facts: ModelFacts) -> bool:
    """Return whether each GPU gets equal parts of heads and MLP; heads of keys and values may be repeated."""
    heads, kv_heads = facts.heads or size, facts.kv_heads or size
    is_even = heads % size == 0 and all(inner % size == 0 for inner in facts.inner_sizes)
    return is_even and (kv_heads % size == 0 or size % kv_heads == 0)


def _find_wrong_dtype(config: Config, facts: ModelFacts) -> Iterator[str]:
    if config.policy.dtype == "float16" and facts.model_type in _NO_FLOAT16:
        yield f"policy.dtype = float16 is too narrow for {facts.model_type}; set policy.dtype=bfloat16"


def _find_missing_rows(config: Config, facts: ModelFacts, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Find tokens that prompts, answers or padding may hold and that have no row in the embedding."""
    if tokenizer.eos_token_id is None:
        yield "its tokenizer has no end token; set eos_token in its tokenizer_config.json"
        return
    if facts.rows is None:
        return
    prompt = make_prompt_renderer(tokenizer, config.policy).render(SAMPLE_QUESTION).ids
    # A special token stands in prompts only if the template puts it there: the text of a question gives none.
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    needed = {*tokenizer.get_vocab().values()} - special | {*prompt, tokenizer.eos_token_id, tokenizer.pad_token_id}
    missing = sorted(number for number in needed if number >= facts.rows)
    if missing:
        name = tokenizer.convert_ids_to_tokens(missing[0])
        yield (
            f"its embedding has {facts.rows:,} rows, but its tokenizer gives {len(missing):,} tokens beyond them, such "
            f"as {name!r} with id {missing[0]}; resize the embedding (resize_token_embeddings) and save the model, or "
            "use the tokenizer that it was trained with"
        )


def _find_untrainable(facts: ModelFacts) -> Iterator[str]:
    if facts.quantized:
        yield f"its weights are quantized ({facts.quantized}) and cannot be trained; use the model with plain weights"
    if facts.logit_changes:
        yield (
            f"it has {', '.join(facts.logit_changes)} at its output, which the training kernels do not support; use a "
            "model whose logits are its hidden states times a matrix, such as Qwen3 or Llama"
        )
