"""`medssr prefetch`: download or build everything that a run needs, so that compute nodes need no internet.

1. The policy and its tokenizer: the embedded model is converted, a Hugging Face id is downloaded, a directory is
   checked.
2. The MedCPT encoders, if `knowledge.encoder` is medcpt, and the reranker, if one is configured.
3. The offsets, vectors and index of the corpus, and the passages of every entity. With them, synthesis loads neither
   encoder nor index, and needs neither torch nor FAISS.
4. Data sets on the Hugging Face hub, and the question files whose origin the config knows, such as those of the set
   `paper` (commands/data_files.py). Other data sets, and the vocabulary of tiktoken, are checked only. They are files
   and an installed package.

A run with HF_HUB_OFFLINE=1 and the same MEDSSR_CACHE and HF_HOME then finds everything on disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from medssr_dist.commands.data_files import describe_sets, fetch_absent, list_absent, name_origin
from medssr_dist.config.schema import Config, Policy
from medssr_dist.config.synthesis import Knowledge
from medssr_dist.data.records import read_record
from medssr_dist.errors import InputError
from medssr_dist.readers import name_source
from medssr_dist.runtime.cache import make_cache_dir
from medssr_dist.sources.hub_sets import find_hub_place, is_cached

# Files with the same weights in other formats; in the repositories of Llama they take 16 GB.
_NOT_FETCHED = ["original/*", "onnx/*", "*.pth", "*.gguf", "*.h5", "*.msgpack", "*.ot"]


def prefetch(config: Config, dry_run: bool) -> None:
    """Download or build everything that `config` needs. Print each path and its size.

    Args:
        dry_run: only print what would be downloaded and built.

    Raises:
        InputError: there is no network, a model id does not exist or is gated, or a directory is not a model.
    """
    if dry_run:
        print("prefetch would download or build:", *_plan_downloads(config), sep="\n  ")
        return
    fetched = fetch_absent(config)
    print(*(f"data set {line}" for line in fetched.lines), sep="\n", end="\n" if fetched.lines else "")
    _print_size("policy", fetch_policy(config.policy))
    if config.synthesis.alpha > 0:
        for key, model in _models(config.knowledge).items():
            _print_size(f"model {key}", _fetch_model(key, model))
        for folder in _fetch_passages(config):
            _print_size("passage index", folder)
    if fetched.absent:
        raise InputError(
            f"{len(fetched.absent)} data sets are absent and cannot be downloaded: {', '.join(fetched.absent)}; "
            "run `medssr prefetch` where there is internet, or copy their files to the paths above"
        )
    print(*(f"data set {line}" for line in describe_sets(config)), sep="\n")
    print(f"tiktoken: {count_trial_tokens()} tokens counted offline")
    _print_environment()


def find_indexes(knowledge: Knowledge) -> list[Path]:
    """Return the folders of the passage indexes, one for each corpus; [] if one of them is not built yet."""
    from medssr_dist.knowledge.index import FACTS_FILE, locate_form
    from medssr_dist.knowledge.retrieval import Retriever

    folders = Retriever(knowledge).list_index_folders()
    return folders if all((locate_form(folder, knowledge) / FACTS_FILE).exists() for folder in folders) else []


def name_corpora(knowledge: Knowledge) -> str:
    """Return the names of the corpora, with commas."""
    return ", ".join(corpus.name for corpus in knowledge.corpora)


@dataclass(frozen=True)
class _WeightIndex:
    """The index of a model's weight files: weight -> file."""

    weight_map: dict[str, str]


def refuse_incomplete_model(key: str, model: str, folder: Path, trust_remote_code: bool = False) -> None:
    """Check that the model in `folder` has all of its weights and a tokenizer that loads without a network.

    Args:
        key: the config key of the model, for the error message.
        model: the value of that key.

    Raises:
        InputError: weights are missing, or the tokenizer does not load.
    """
    from transformers import AutoTokenizer

    indexes = [*folder.glob("*.safetensors.index.json"), *folder.glob("*.bin.index.json")]
    named = {name for index in indexes for name in read_record(_WeightIndex, index).weight_map.values()}
    found = {file.name for kind in ("*.safetensors", "*.bin") for file in folder.glob(kind) if file.stat().st_size}
    fix = "run `medssr prefetch` again where there is internet, or copy the model again"
    if missing := sorted(named - found) or ([] if found else ["any weights"]):
        raise InputError(f"{key} = {model!r}: {folder} lacks {', '.join(missing[:3])}; {fix}")
    try:
        AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise InputError(f"{key} = {model!r}: {folder} has no tokenizer that loads ({reason}); {fix}") from None


def refuse_missing_encoders(knowledge: Knowledge) -> None:
    """Raise InputError if an encoder or the reranker is not on this machine."""
    from transformers import AutoConfig

    from medssr_dist.knowledge.encoders import load_pretrained, read_encoder_dimension

    read_encoder_dimension(knowledge)
    for model in _models(knowledge).values():
        load_pretrained(AutoConfig, model)


class EntityCounts(NamedTuple):
    """Number of entities without passages on disk, and of all entities. Example: EntityCounts(missing=3, total=20)."""

    missing: int
    total: int


def count_missing_passages(config: Config) -> EntityCounts:
    """Return how many of the entities of `config` have no passages on disk yet."""
    from medssr_dist.knowledge.entities import draw_run_entities
    from medssr_dist.knowledge.retrieval import Retriever

    entities = draw_run_entities(config).entities
    unknown = Retriever(config.knowledge).list_missing(entities) if find_indexes(config.knowledge) else entities
    return EntityCounts(len(unknown), len(entities))


def count_trial_tokens() -> int:
    """Return the tokens of a short text. This shows that the vocabulary of tiktoken loads from an installed package."""
    from medssr_dist.synthesis.client.budget import TokenCounter

    return TokenCounter()([{"content": "A rare disease."}])


def _models(knowledge: Knowledge) -> dict[str, str]:
    """Return the models that retrieval needs to download, by their key in the config section `knowledge`."""
    encoders = ("medcpt_query", "medcpt_article") if knowledge.encoder == "medcpt" else ()
    found = {key: getattr(knowledge, key) for key in (*encoders, "reranker")}
    return {key: model for key, model in found.items() if model}


def _plan_downloads(config: Config) -> list[str]:
    knowledge = config.knowledge
    models = {"policy": config.policy.model}
    if config.synthesis.alpha > 0:
        models |= {f"model {key}": model for key, model in _models(knowledge).items()}
    lines = [f"{name}: {model}{_describe_source(model)}" for name, model in models.items()]
    lines += [
        f"data set {name_source(source)}: {source.path} is absent, from {name_origin(source)}"
        for source in list_absent(config)
    ]
    if config.synthesis.alpha > 0:
        places = {corpus.path: find_hub_place(corpus, corpus.revision) for corpus in knowledge.corpora}
        absent = [path for path, place in places.items() if place and not is_cached(place)]
        if absent:
            return [
                *lines,
                *(f"corpus {path}: from the Hugging Face hub, then its index and passages" for path in absent),
            ]
        state = "already built" if find_indexes(knowledge) else "to be built"
        lines.append(
            f"passage index ({knowledge.index}) of {name_corpora(knowledge)} under {knowledge.encoder}: {state}"
        )
        lines.append(f"passages of {knowledge.entities or 'all'} entities, {knowledge.top_k} each")
    return lines


def _describe_source(model: str) -> str:
    if model.startswith("embedded:"):
        return " (from an installed package, converted once)"
    return " (a directory, checked)" if Path(model).expanduser().is_dir() else " (downloaded from the Hugging Face hub)"


def fetch_policy(policy: Policy) -> Path:
    """Return the directory of the policy, which is downloaded or converted if need be.

    Raises:
        InputError: it cannot be downloaded, or is not complete.
    """
    from medssr_dist.runtime.models import resolve_model

    if not policy.model.startswith("embedded:") and not Path(policy.model).is_dir():
        _download("policy.model", policy.model, policy.revision)
    folder = resolve_model(policy)
    refuse_incomplete_model("policy.model", policy.model, folder, policy.trust_remote_code)
    return folder


def _fetch_model(key: str, model: str) -> Path:
    folder = Path(model).expanduser()
    if not folder.is_dir():
        folder = _download(f"knowledge.{key}", model)
    if not (folder / "config.json").exists():
        raise InputError(f"knowledge.{key} = {model!r} has no config.json, so it is not a model directory")
    refuse_incomplete_model(f"knowledge.{key}", model, folder)
    return folder


def _download(key: str, model: str, revision: str = "") -> Path:
    """Download a model by its id, or raise InputError with the id, the reason and the fix."""
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(model, revision=revision or None, ignore_patterns=_NOT_FETCHED))
    except HFValidationError:
        raise InputError(f"{key} = {model!r} is neither a directory nor a Hugging Face id such as owner/name") from None
    except (OSError, HTTPError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        at = f" at revision {revision!r}" if revision else ""
        raise InputError(
            f"{key} = {model!r}{at} cannot be downloaded ({reason}); check the id, `hf auth login` if it is gated, run "
            "where there is internet, or copy the model here and give its directory"
        ) from None


def _fetch_passages(config: Config) -> list[Path]:
    """Retrieve the passages of every entity into the cache. Return the folders of the indexes."""
    from medssr_dist.knowledge.entities import draw_run_entities
    from medssr_dist.knowledge.retrieval import Retriever

    rare, retriever = draw_run_entities(config).entities, Retriever(config.knowledge)
    retriever.prepare(rare)
    counts = retriever.count(rare)
    print(f"passages: {config.knowledge.top_k} for each of {counts.entities - counts.without:,} entities")
    return retriever.list_index_folders()


def _print_environment() -> None:
    from huggingface_hub.constants import HF_HOME

    print(f"offline: on compute nodes HF_HUB_OFFLINE=1 MEDSSR_CACHE={make_cache_dir()} HF_HOME={HF_HOME}")


def _print_size(name: str, folder: Path) -> None:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{name}: {folder} ({format_size(size)})")


def format_size(count: float) -> str:
    """Return a number of bytes in decimal units. Example: 269060552 -> '269.1 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
