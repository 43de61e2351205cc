"""Whether a running server serves the policy, as far as it tells: its list of models against the config."""

from __future__ import annotations

from pathlib import Path

import msgspec

from medssr_dist.config.schema import Policy, Server
from medssr_dist.errors import InputError
from medssr_dist.runtime.models import model_fingerprint


class ModelCard(msgspec.Struct, frozen=True):
    """What GET /models tells of one served model. `root`: directory or id it was loaded from; `parent`: of adapters."""

    id: str
    root: str | None = None
    parent: str | None = None
    max_model_len: int | None = None
    owned_by: str | None = None


def find_policy(cards: list[ModelCard], server: Server, policy: Policy, folder: Path, fingerprint: str) -> str:
    """The name under which a server with these models serves the policy.

    Where a model was loaded from a directory that is here too, its weights are compared; else its name is compared,
    unless `server.model` vouches for it. A server does not tell its dtype: it has to be started with policy.dtype.

    Raises:
        InputError: none of the models is the policy, more than one may be, or it was started with too short a context.
    """
    where = f"voting.servers: {server.base_url}"
    card = _chosen(cards, server.model, where)
    if card.owned_by not in (None, "vllm"):
        raise InputError(f"{where} is a server of {card.owned_by!r}; only vLLM's gives each sample a seed of its own")
    if card.root is not None and (difference := _difference(card.root, server, policy, folder, fingerprint)):
        raise InputError(f"{where} serves {card.id!r} from {card.root!r}, {difference}")
    if card.max_model_len is not None and card.max_model_len < policy.max_model_len:
        raise InputError(
            f"{where} has max_model_len = {card.max_model_len}, policy.max_model_len is {policy.max_model_len}; "
            f"restart it with --max-model-len {policy.max_model_len}, or lower policy.max_model_len"
        )
    return card.id


def _chosen(cards: list[ModelCard], wanted: str, where: str) -> ModelCard:
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


def _difference(root: str, server: Server, policy: Policy, folder: Path, fingerprint: str) -> str:
    """How the model loaded from `root` is seen to be another one than the policy, and what to do; '' if it is not."""
    try:
        if Path(root).is_absolute() and Path(root).is_dir():
            same = model_fingerprint(Path(root)) == fingerprint
            return "" if same else f"which has other weights than policy.model = {policy.model!r}; start it on that"
    except OSError:
        pass  # a directory of another user: only its name can be compared
    names = {Path(policy.model).name.casefold(), folder.name.casefold()}
    if server.model or Path(root).name.casefold() in names:
        return ""
    return (
        f"which is not named as policy.model = {policy.model!r}; if it is the same model, say so by setting "
        "its model in voting.servers"
    )
