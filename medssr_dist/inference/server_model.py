"""Whether a running server serves the policy: its list of models is compared with the config."""

from __future__ import annotations

from pathlib import Path

import msgspec

from medssr_dist.config.schema import Policy
from medssr_dist.config.voting import Server
from medssr_dist.errors import InputError
from medssr_dist.runtime.fingerprints import has_fingerprint


class ModelCard(msgspec.Struct, frozen=True):
    """One served model, as GET /models reports it.

    Example: ModelCard(id="qwen", root="/models/Qwen3-8B", max_model_len=32768, owned_by="vllm")

    Attributes:
        root: the directory or hub id that it was loaded from.
        parent: of an adapter, the model that it belongs to.
    """

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None
    owned_by: str | None = None


def find_policy(cards: list[ModelCard], server: Server, policy: Policy, folder: Path, fingerprint: str) -> str:
    """Return the name under which a server with these models serves the policy.

    Where a model was loaded from a directory that this machine can read, its weights are compared. Elsewhere its name
    is compared, unless the user has named the model in `server.model`. A server does not report its dtype: it has to
    be started with policy.dtype.

    Args:
        folder: the policy's directory on this machine.
        fingerprint: of that directory (`fingerprint_model`).

    Raises:
        InputError: none of the models is the policy, several may be, or the context length is too short.
    """
    where = f"voting.servers: {server.base_url}"
    card = _choose_card(cards, server.model, where)
    if card.owned_by not in (None, "vllm"):
        raise InputError(f"{where} is a server of {card.owned_by!r}; only vLLM's gives each sample a seed of its own")
    if card.root is not None and (difference := _describe_difference(card.root, server, policy, folder, fingerprint)):
        raise InputError(f"{where} serves {card.id!r} from {card.root!r}, {difference}")
    if card.max_model_len is not None and card.max_model_len < policy.max_model_len:
        raise InputError(
            f"{where} has max_model_len = {card.max_model_len}, policy.max_model_len is {policy.max_model_len}; "
            f"restart it with --max-model-len {policy.max_model_len}, or lower policy.max_model_len"
        )
    return card.id


def _choose_card(cards: list[ModelCard], wanted: str, where: str) -> ModelCard:
    names = ", ".join(repr(card.id) for card in cards) or "nothing"
    if wanted:
        card = next((card for card in cards if card.id == wanted), None)
        if card is None:
            raise InputError(f"{where} serves {names}, not {wanted!r}; correct its model in voting.servers")
        if card.parent:
            raise InputError(
                f"{where}: {wanted!r} is an adapter of {card.parent!r}, not the policy; name a whole model"
            )
        return card
    whole = [card for card in cards if not card.parent]
    if len({card.root or card.id for card in whole}) != 1:
        raise InputError(f"{where} serves {names}; name the one that is the policy as model in voting.servers")
    return whole[0]


def _describe_difference(root: str, server: Server, policy: Policy, folder: Path, fingerprint: str) -> str:
    """Return how the model loaded from `root` differs from the policy and what to do; "" if no difference is seen."""
    try:
        if Path(root).is_absolute() and Path(root).is_dir():
            same = has_fingerprint(Path(root), fingerprint)
            return "" if same else f"which has other weights than policy.model = {policy.model!r}; start it on that"
    except OSError:
        pass  # another user's directory: only its name can be compared
    names = {Path(policy.model).name.casefold(), folder.name.casefold()}
    if server.model or Path(root).name.casefold() in names:
        return ""
    return (
        f"which is not named as policy.model = {policy.model!r}; if it is the same model, confirm it by setting "
        "its model in voting.servers"
    )
