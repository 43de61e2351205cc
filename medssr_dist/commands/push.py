"""`medssr push`: upload the questions or the trained model of a run to the Hugging Face Hub, with their card.

Only what the plan lists leaves the machine: one data file or the files of one exported model, and the card. Votes,
replies, logs, settings and other files of the run stay. `--dry-run` prints the plan and the card, and sends nothing.
The token comes from $HF_TOKEN or a file of mode 0600; the hub's address from $HF_ENDPOINT, if it is set.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medssr_dist.commands.export import export_run
from medssr_dist.config.variables import read_secret_file
from medssr_dist.data.cards import CARD
from medssr_dist.data.jsonl import read_text
from medssr_dist.errors import InputError
from medssr_dist.evaluation.scores import read_scores
from medssr_dist.run.directory import RunDir
from medssr_dist.run.paths import STAGES
from medssr_dist.run.recorded_config import read_recorded_config
from medssr_dist.secret_registry import holds_secret, register_secret, scrub_message, take_variable
from medssr_dist.sources.hub_sets import is_offline
from medssr_dist.synthesis.synthesis_summary import read_synthesis_summary

if TYPE_CHECKING:
    from huggingface_hub import HfApi

RepoKind = Literal["dataset", "model"]
TOKEN_VARIABLE = "HF_TOKEN"
# The files of a model. Anything else that lies in its folder is not uploaded.
_MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "adapter_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class PushPlan:
    """What would be uploaded where.

    Example: PushPlan(repo="me/medssr-questions", kind="dataset", private=True, files={"train.parquet": path},
    card="---\\nlicense: other\\n...", left_out=("notes.txt",))

    Attributes:
        files: name in the repository -> file; without the card.
        left_out: files of the model's folder that are not uploaded.
    """

    repo: str
    kind: RepoKind
    private: bool
    files: dict[str, Path]
    card: str
    left_out: tuple[str, ...] = ()


def push_run(
    run_dir: Path,
    kind: RepoKind,
    repo: str,
    *,
    private: bool,
    labels: str = "kept",
    stage: str | None = None,
    token_file: str | None = None,
    dry_run: bool = False,
) -> None:
    """Upload the questions (`kind` dataset) or the trained model of a run, and print where they are.

    Args:
        repo: "owner/name" on the hub; created if it is absent.
        private: create the repository private, and refuse one that is public.
        labels: kept, all or none; see `export_run`.
        stage: whose model; None for the last stage that has finished.
        token_file: file of mode 0600 with the token; None for $HF_TOKEN.
        dry_run: print what would be uploaded, and send nothing.

    Raises:
        InputError: the run lacks what is to be uploaded, the token is missing, or the hub refuses.
    """
    _check_name(repo)
    run = RunDir(run_dir)
    with _make_plan(run, kind, repo, private, labels, stage) as plan:
        _refuse_secrets(plan)
        _print_plan(plan)
        if dry_run:
            print(f"\n{CARD}:\n\n{plan.card}")
            print("dry run: nothing was sent")
            return
        _upload(plan, _read_token(token_file))


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo!r} is no name of a repository ({error}); write OWNER/NAME") from None
    if "/" not in repo:
        raise InputError(f"{repo!r} names no owner; write OWNER/NAME")


@contextmanager
def _make_plan(
    run: RunDir, kind: RepoKind, repo: str, private: bool, labels: str, stage: str | None
) -> Iterator[PushPlan]:
    """Yield the plan; files made for it exist within the block."""
    if not run.manifest_file.exists():
        raise InputError(f"{run.root} is no run directory: it has no manifest.json; name a run, e.g. runs/demo")
    if kind == "model":
        yield _plan_model(run, repo, private, stage)
        return
    with tempfile.TemporaryDirectory(prefix="medssr-push-") as name:
        yield _plan_dataset(run, repo, private, labels, Path(name) / "exported")


def _plan_dataset(run: RunDir, repo: str, private: bool, labels: str, folder: Path) -> PushPlan:
    from medssr_dist.commands.hub_cards import build_dataset_card

    export_run(run.root, folder, "parquet", labels)
    models = read_synthesis_summary(run.synthesis.summary).models
    card = build_dataset_card(read_text(folder / CARD), [*models.asked, *models.answered])
    files = {file.name: file for file in sorted(folder.iterdir()) if file.name != CARD}
    return PushPlan(repo, "dataset", private, files, card)


def _plan_model(run: RunDir, repo: str, private: bool, stage: str | None) -> PushPlan:
    from medssr_dist.commands.hub_cards import build_model_card

    finished = [name for name in STAGES if run.stage(name).hf.is_dir()]
    chosen = stage or (finished[-1] if finished else "")
    if chosen not in finished:
        what = f"no trained model of {chosen}" if chosen else "no trained model"
        raise InputError(f"{run.root} has {what} (training/stageN/hf); finish `medssr train`, or name another --stage")
    folder = run.stage(chosen).hf
    present = sorted(file for file in folder.rglob("*") if file.is_file())
    names = {str(file.relative_to(folder)): file for file in present}
    files = {name: file for name, file in names.items() if any(fnmatch(name, form) for form in _MODEL_FILES)}
    if CARD not in names or not any(name.endswith(".safetensors") for name in files):
        raise InputError(f"{folder} is no whole model: it lacks its weights or {CARD}; run `medssr train` again")
    scores = read_scores(run.evaluation.scores) if run.evaluation.scores.exists() else None
    card = build_model_card(read_text(folder / CARD), repo, scores, chosen, read_recorded_config(run.root))
    left_out = tuple(name for name in names if name not in files and name != CARD)
    return PushPlan(repo, "model", private, files, card, left_out)


def _refuse_secrets(plan: PushPlan) -> None:
    """Raise InputError if the card, or a small JSON file of a model, holds something that looks like a key."""
    texts = {CARD: plan.card}
    texts |= {name: read_text(file) for name, file in plan.files.items() if name.endswith("config.json")}
    for name, text in texts.items():
        if holds_secret(text):
            raise InputError(f"{name} holds a key or a token and is not uploaded; remove it from {plan.repo}'s source")


def _print_plan(plan: PushPlan) -> None:
    visibility = "private" if plan.private else "public, if it is created"
    print(f"{plan.kind} {plan.repo} ({visibility}):")
    for name, file in plan.files.items():
        print(f"  {name:<40}{file.stat().st_size:>16,} bytes")
    print(f"  {CARD:<40}{len(plan.card.encode()):>16,} bytes")
    if plan.left_out:
        print(f"  left out: {', '.join(plan.left_out)}")


def _read_token(file: str | None) -> str:
    token = read_secret_file(file, "--token-file") if file else take_variable(TOKEN_VARIABLE)
    if not token:
        raise InputError(f"no token for the hub; export {TOKEN_VARIABLE}=..., or give --token-file FILE, of mode 0600")
    register_secret(token)
    return token


def _upload(plan: PushPlan, token: str) -> None:
    """Send one commit with all files. Raises InputError in the hub's words if it refuses or cannot be reached."""
    if is_offline():
        raise InputError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
    import httpx
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, token=token)
    operations = [CommitOperationAdd(name, file) for name, file in plan.files.items()]
    operations.append(CommitOperationAdd(CARD, plan.card.encode()))
    try:
        _prepare_repo(api, plan)
        commit = api.create_commit(
            plan.repo, operations, commit_message=f"Upload the {plan.kind} of a MedSSR run", repo_type=plan.kind
        )
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        reason = scrub_message(" ".join(str(error).split()))[:300].rstrip(".")
        raise InputError(
            f"{api.endpoint} did not take {plan.repo}: {reason}; check the name, and that the token may write there"
        ) from None
    print(f"uploaded: {commit.commit_url}")


def _prepare_repo(api: HfApi, plan: PushPlan) -> None:
    """Create the repository. Raises InputError if it is public and --private was given."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        info = api.repo_info(plan.repo, repo_type=plan.kind)
    except RepositoryNotFoundError:
        api.create_repo(plan.repo, repo_type=plan.kind, private=plan.private)
        return
    if plan.private and not info.private:
        raise InputError(f"{plan.repo} exists and is public; name another, or make it private on the hub")
