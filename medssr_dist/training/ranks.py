"""All that we use of OpenRLHF, in a form that can be subclassed and placed by us.

OpenRLHF wraps its classes with `@ray.remote`; the plain class is the base of Ray's wrapper.
Importing this module applies the CPU platform first, in every Ray worker: import OpenRLHF from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from medssr_dist.config.training import Training
from medssr_dist.training.backend import cpu_patches
from medssr_dist.training.backend.openrlhf import PlainPPOTrainer, plain_class
from medssr_dist.training.stall_watch import Beats, Board
from medssr_dist.training.weights.rank_state import read_back, restore_rng, rng_state, shard_bytes

cpu_patches.apply()
from openrlhf.trainer.ppo_trainer import BasePPOTrainer  # noqa: E402
from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator  # noqa: E402
from openrlhf.trainer.ray import launcher, ppo_actor  # noqa: E402
from openrlhf.trainer.ray.launcher import RayActorGroup  # noqa: E402
from openrlhf.trainer.ray.vllm_engine import RolloutRayActor  # noqa: E402
from openrlhf.utils import utils  # noqa: E402
from openrlhf.utils.logging_utils import init_logger  # noqa: E402

from medssr_dist.training.backend.strategy import Strategy, torch_dtype  # noqa: E402
from medssr_dist.training.finite import bad_weights  # noqa: E402
from medssr_dist.training.weights.lora import save_merged  # noqa: E402

if TYPE_CHECKING:
    from medssr_dist.training.weights.sync import SyncSettings, WeightSync

__all__ = [
    "BasePPOTrainer",
    "PlainPPOTrainer",
    "PolicyRank",
    "RayActorGroup",
    "ReferenceRank",
    "RolloutRayActor",
    "SamplesGenerator",
    "init_logger",
]


@contextmanager
def _built_from(module: ModuleType, **classes: Callable) -> Iterator[None]:
    """Within, what `module` builds by these names is of these classes."""
    own = {name: getattr(module, name) for name in classes}
    vars(module).update(classes)
    try:
        yield
    finally:
        vars(module).update(own)


class Watched:
    """A rank that tells a board what it does, once it has been given one."""

    _name = "training rank"
    _beats: Beats | None = None

    def watch(self, board: Board) -> None:
        self._beats = Beats(board, f"{self._name} {self._rank}")

    def forward(self, *args, **kwargs):
        return self._told("log-probs", super().forward)(*args, **kwargs)

    def _told(self, doing: str, function: Callable) -> Callable:
        return self._beats.during(doing, function) if self._beats else function


def _parts(training: Training) -> dict[str, Callable]:
    """What a rank's model and trainer are made of, by OpenRLHF's names for it."""
    from medssr_dist.training.update.actor import actor_class, trainer_class

    actor = {"Actor": actor_class(training)} if training.logprob == "kernels" else {}
    return actor | {"ActorPPOTrainer": trainer_class(training)}


class PolicyRank(Watched, plain_class(ppo_actor.PolicyModelActor)):
    """One ZeRO-3 rank of the policy: OpenRLHF's, with the loss and the loop that the config chooses.

    Ours too: the weight sync, and what is written of a rank and taken up again.
    """

    _weights: WeightSync | None = None

    def init_model_from_pretrained(self, strategy: Strategy, *args, **kwargs):
        parts = _parts(strategy.config.training)
        with _built_from(ppo_actor, **parts), _built_from(utils, convert_to_torch_dtype=torch_dtype):
            super().init_model_from_pretrained(strategy, *args, **kwargs)
        if "rng" in self.checkpoint_states:
            restore_rng(self.checkpoint_states["rng"])

    def take(self, updates: list) -> None:
        """See PlannedUpdate.take."""
        self.trainer.take(updates)

    def save_model(self):
        """Write the whole model as a Hugging Face checkpoint; adapters merged."""
        if not self.strategy.config.training.lora_rank:
            return super().save_model()
        model = self.strategy._unwrap_model(self.actor)
        return save_merged(model, self.tokenizer, Path(self.strategy.args.ckpt.output_dir), self.strategy.is_rank_0())

    def get_checkpoint_states(self) -> dict:
        """The trainer's state in the checkpoint that was taken up; {} where there was none."""
        return self.checkpoint_states.get("trainer", {})

    def bad_weights(self) -> dict[str, float]:
        """See finite.bad_weights; of this rank's shards alone."""
        return bad_weights(self.actor.model.module)

    def checkpoint_bytes(self) -> int:
        """What this rank's part of a checkpoint takes."""
        return shard_bytes(self.actor.model.module)

    def write_checkpoint(self, folder: Path, tag: str, state: dict) -> dict[str, int]:
        """Write this rank's part below `folder`/`tag` and read it back; name -> bytes of its files."""
        states = {"trainer": state, "rng": rng_state()}
        self.actor.model.save_checkpoint(str(folder), tag=tag, client_state=states, save_latest=False)
        return read_back(folder / tag, self._rank)

    def export(self, folder: str) -> None:
        """Write the whole policy as a Hugging Face checkpoint; all ranks take part."""
        self.strategy.args.ckpt.output_dir = folder
        self.save_model()

    def fit(self, *args, **kwargs):
        step = self.trainer.training_step
        self.trainer.training_step = self._told("update", step)
        try:
            return self._told("update", super().fit)(*args, **kwargs)
        finally:
            self.trainer.training_step = step

    def connect_engines(self, engines: dict, settings: SyncSettings) -> None:
        """WeightSync.connect, on every rank."""
        from medssr_dist.training.weights.sync import WeightSync

        self._weights = self._weights or WeightSync(self.actor.model.module, settings)
        self._told("weight sync", self._weights.connect)(engines)

    def send_weights(self, version: int) -> None:
        """WeightSync.send, on every rank."""
        self._told("weight sync", self._weights.send)(version)


class ReferenceRank(Watched, plain_class(launcher.ReferenceModelActor)):
    """One ZeRO-3 rank of the reference policy, whose log-probs are computed as the policy's are."""

    _name = "reference rank"

    def init_model_from_pretrained(self, strategy: Strategy, *args, **kwargs):
        actor = {name: part for name, part in _parts(strategy.config.training).items() if name == "Actor"}
        with _built_from(launcher, **actor), _built_from(utils, convert_to_torch_dtype=torch_dtype):
            super().init_model_from_pretrained(strategy, *args, **kwargs)
