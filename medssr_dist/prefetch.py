"""`medssr prefetch`: bring all that a run needs from outside onto local disk, so that compute nodes need no network.

1. The policy: the embedded model is converted, a Hugging Face id is downloaded, a directory is checked.
2. The MedCPT encoders, where `knowledge.encoder` is medcpt.
3. The passage index and the passages of every entity: a run then loads neither encoder nor index.
"""

from __future__ import annotations

from pathlib import Path

from medssr_dist.cache import cache_dir
from medssr_dist.config import Config, Knowledge, Policy
from medssr_dist.errors import InputError

# The same weights in other forms; Llama's repository carries 16 GB of them.
_NOT_FETCHED = ["original/*", "onnx/*", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.ot"]


def prefetch(config: Config, dry_run: bool) -> None:
    """Fetch or build everything `config` needs, printing each path and its size in bytes (MB, GB).

    Args:
        dry_run: only say what would be fetched and built.
    Raises:
        InputError: no network, an id that does not exist or is gated, a directory that is no model.
    """
    if dry_run:
        print("prefetch would bring to this machine:", *_planned(config), sep="\n  ")
        return
    _report("policy", _fetch_policy(config.policy))
    if config.synthesis.alpha == 0:
        return
    if config.knowledge.encoder == "medcpt":
        for key in ("medcpt_query", "medcpt_article"):
            _report(f"encoder {key}", _fetch_encoder(key, getattr(config.knowledge, key)))
    _report("passage index", _fetch_passages(config))


def policy_on_disk(policy: Policy) -> Path | None:
    """The policy's directory; None for the embedded model before its conversion.

    Raises:
        InputError: the model is not on this machine, or cannot be used.
    """
    from medssr_dist.runtime.models import EMBEDDED_MODEL, resolve_model

    if policy.model == EMBEDDED_MODEL and not (cache_dir() / "models" / "smollm2-135m" / "config.json").exists():
        return None
    return resolve_model(policy)


def index_on_disk(knowledge: Knowledge) -> Path | None:
    """The directory of the passage index, or None if it is not built yet."""
    folder = _index_dir(knowledge)
    return folder if (folder / "index.json").exists() else None


def _index_dir(knowledge: Knowledge) -> Path:
    from medssr_dist.knowledge.corpus import read_corpus
    from medssr_dist.knowledge.encoders import encoder_name
    from medssr_dist.knowledge.index import index_dir

    return index_dir(read_corpus(knowledge.corpus), encoder_name(knowledge))


def _planned(config: Config) -> list[str]:
    knowledge = config.knowledge
    models = {"policy": config.policy.model}
    if config.synthesis.alpha > 0 and knowledge.encoder == "medcpt":
        models |= {"encoder medcpt_query": knowledge.medcpt_query, "encoder medcpt_article": knowledge.medcpt_article}
    lines = [f"{name}: {model}{_how(model)}" for name, model in models.items()]
    if config.synthesis.alpha > 0:
        state = "already built" if index_on_disk(knowledge) else "to be built"
        lines.append(f"passage index of {knowledge.corpus.path} under {knowledge.encoder}: {state}")
        lines.append(f"passages of {knowledge.entities or 'all'} entities, {knowledge.top_k} each")
    return lines


def _how(model: str) -> str:
    if model.startswith("embedded:"):
        return " (from an installed package, converted once)"
    return " (a directory, checked)" if Path(model).expanduser().is_dir() else " (downloaded from the Hugging Face hub)"


def _fetch_policy(policy: Policy) -> Path:
    from medssr_dist.runtime.models import EMBEDDED_MODEL, resolve_model

    if policy.model != EMBEDDED_MODEL and not Path(policy.model).is_dir():
        _download("policy.model", policy.model)
    return resolve_model(policy)


def _fetch_encoder(key: str, model: str) -> Path:
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return _download(f"knowledge.{key}", model)
    if not (folder / "config.json").exists():
        raise InputError(f"knowledge.{key} = {model!r} has no config.json, so it is no model directory")
    return folder


def _download(key: str, model: str) -> Path:
    """Download a model by its id. Raises InputError naming the id, the reason and the fix."""
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model, ignore_patterns=_NOT_FETCHED))
    except HFValidationError:
        raise InputError(f"{key} = {model!r} is neither a directory nor a Hugging Face id such as owner/name") from None
    except (OSError, HTTPError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise InputError(
            f"{key} = {model!r} cannot be downloaded ({reason}); check the id, `hf auth login` if it is gated, run "
            "where there is internet, or copy the model here and give its directory"
        ) from None


def _fetch_passages(config: Config) -> Path:
    """Retrieve the passages of every entity into the cache beside the index; returns its directory."""
    from tqdm import tqdm

    from medssr_dist.knowledge.retrieval import Retriever, entities

    rare = entities(config.knowledge, config.runtime.random_seed)
    retriever = Retriever(config.knowledge)
    for entity in tqdm(rare, desc="retrieve", unit="entity"):
        retriever.top_k(entity.name)
    print(f"passages: {config.knowledge.top_k} for each of {len(rare):,} entities")
    return _index_dir(config.knowledge)


def _report(name: str, folder: Path) -> None:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name}: {folder} ({readable_size(size)})")


def readable_size(count: float) -> str:
    """Bytes in decimal units. Example: 269060552 -> '269.1 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
