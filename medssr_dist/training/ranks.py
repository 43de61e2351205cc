"""The ZeRO-3 ranks of the policy and of the reference: OpenRLHF's Ray actors with our network, update and weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medssr_dist.run.paths import CheckpointPaths
from medssr_dist.training.backend.openrlhf import Actor, Experience, PolicyActor, ReferenceActor, get_tokenizer
from medssr_dist.training.backend.optimizer_state import complete_optimizer_state
from medssr_dist.training.backend.strategy import Strategy
from medssr_dist.training.finite import find_bad_weights
from medssr_dist.training.stall_watch import Heartbeat, HeartbeatBoard
from medssr_dist.training.update.actor import load_actor
from medssr_dist.training.update.rank_update import RankUpdate
from medssr_dist.training.weights.checkpoints import StoredFile
from medssr_dist.training.weights.generation_config import copy_generation_config, keep_token_ids_only
from medssr_dist.training.weights.lora import save_merged
from medssr_dist.training.weights.rank_state import count_shard_bytes, get_rng_states, restore_rng_states, verify_files
from medssr_dist.training.weights.state_offload import StateOffload
from medssr_dist.training.weights.teacher import Teacher

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from medssr_dist.training.weights.sync import SyncSettings, WeightSync


class ReportingRank:
    """A rank that sends heartbeats after `report_to` was called."""

    component = "training rank"
    _heartbeat: Heartbeat | None = None

    def report_to(self, board: HeartbeatBoard) -> None:
        """Send heartbeats to this board from now on."""
        self._heartbeat = Heartbeat(board, f"{self.component} {self._rank}")

    def beat(self, doing: str) -> None:
        """Report progress, and what the rank is doing."""
        if self._heartbeat:
            self._heartbeat.beat(doing)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._reporting("log-probs", super().forward)(*args, **kwargs)

    def _reporting(self, doing: str, function: Callable) -> Callable:
        return self._heartbeat.during(doing, function) if self._heartbeat else function


class PolicyRank(ReportingRank, PolicyActor):
    """One ZeRO-3 rank of the policy."""

    _weights: WeightSync | None = None
    _teacher: Teacher | None = None

    def init_model_from_pretrained(self, strategy: Strategy, folder: str, optimizer_steps: int) -> None:
        """Load the model in `folder` and, if there is one, the checkpoint to resume from.

        Args:
            optimizer_steps: length of the learning-rate schedule, in optimizer steps.
        """
        args = strategy.args
        self._setup_distributed(strategy)
        actor, self._source = self.load_network(strategy, folder), Path(folder)
        keep_token_ids_only(actor.model)
        self.tokenizer = get_tokenizer(folder, actor.model, "left", strategy)
        if args.actor.gradient_checkpointing_enable:
            actor.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs={"use_reentrant": args.actor.gradient_checkpointing_reentrant}
            )
        self.actor, optimizer, scheduler = strategy.prepare((actor, strategy.make_optimizer_settings(optimizer_steps)))
        self.checkpoint_states = self._load_checkpoint()
        self._state = StateOffload(self.actor.model)
        self.updater = self.make_update(strategy, optimizer, scheduler)
        if strategy.teacher_decay is not None:
            average = self.checkpoint_states.get("teacher", {}) if self.checkpoint_states else None
            self._teacher = Teacher(self.actor.model.module, strategy.teacher_decay, average)
        self._updates: list[list[Experience]] = []

    def load_network(self, strategy: Strategy, folder: str) -> Actor:
        """Load this rank's shards of the model in `folder`."""
        return load_actor(strategy, folder, strategy.get_ds_train_config(), strategy.args.ds.lora.rank)

    def make_update(self, strategy: Strategy, optimizer: Any, scheduler: Any) -> RankUpdate:
        """Make the object that trains the network."""
        return RankUpdate(strategy, self.actor, optimizer, scheduler)

    def _load_checkpoint(self) -> dict[str, Any]:
        folder = CheckpointPaths(Path(self.strategy.args.ckpt.path)).ranks
        if not folder.exists():
            return {}
        _, states = self.strategy.load_ckpt(self.actor.model, str(folder))
        complete_optimizer_state(self.actor.model.basic_optimizer)
        if "rng" in states:
            restore_rng_states(states["rng"])
        return states

    def load_update(self, updates: list[list[Experience]]) -> None:
        """Store the micro-batches of a rollout: one list for each optimizer step, equally many on every rank."""
        self._updates = updates

    def update(self) -> dict[str, float]:
        """Train on the stored micro-batches; return the metrics of RankUpdate.run."""
        torch.cuda.empty_cache()
        found = self._reporting("update", self.updater.run)(self._updates, lambda: self.beat("update"))
        self._updates = []
        if self._teacher:
            self._teacher.follow()
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
        return found

    def offload_states(self) -> None:
        """Give the GPU to the rollout engine on it: what only an update needs is moved to the host."""
        self._reporting("offload", self._state.move_away)()

    def reload_states(self) -> None:
        """Take the GPU back before an update."""
        self._reporting("reload", self._state.bring_back)()

    def save_model(self) -> None:
        """Write the whole model as a Hugging Face checkpoint, with adapters merged."""
        if not self.strategy.config.training.lora_rank:
            super().save_model()
            return
        model = self.strategy._unwrap_model(self.actor)
        save_merged(model, self.tokenizer, Path(self.strategy.args.ckpt.output_dir), self.strategy.is_rank_0())

    def export(self, folder: str) -> None:
        """Write the whole policy as a Hugging Face checkpoint into `folder`; all ranks take part."""
        self.strategy.args.ckpt.output_dir = folder
        self.save_model()
        if self.strategy.is_rank_0():
            copy_generation_config(self._source, Path(folder))

    def get_checkpoint_states(self) -> dict[str, Any]:
        """Return the loop's state of the loaded checkpoint; {} if none was loaded."""
        return self.checkpoint_states.get("trainer", {})

    def find_bad_weights(self) -> dict[str, float]:
        """Run finite.find_bad_weights on this rank's shards."""
        return find_bad_weights(self.actor.model.module)

    def count_checkpoint_bytes(self) -> int:
        """Return the size of this rank's part of a checkpoint, in bytes."""
        return count_shard_bytes(self.actor.model.module)

    def write_checkpoint(self, folder: Path, tag: str, state: dict[str, Any]) -> dict[str, StoredFile]:
        """Write this rank's part of a checkpoint below `folder`/`tag` and verify it; return it by file name."""
        states = {"trainer": state, "rng": get_rng_states()}
        if self._teacher:
            states["teacher"] = self._teacher.average
        self.actor.model.save_checkpoint(str(folder), tag=tag, client_state=states, save_latest=False)
        return verify_files(folder / tag, self._rank)

    def connect_engines(self, engines: dict[str, ActorHandle], settings: SyncSettings) -> None:
        """Run WeightSync.connect; all ranks take part."""
        from medssr_dist.training.weights.sync import WeightSync

        self._weights = self._weights or WeightSync(self.actor.model.module, settings)
        self._reporting("weight sync", self._weights.connect)(engines)

    def send_weights(self, version: int, compare_all: bool) -> None:
        """Run WeightSync.send; all ranks take part."""
        self._reporting("weight sync", self._weights.send)(version, compare_all)

    def send_teacher(self, version: int, compare_all: bool) -> None:
        """Run WeightSync.send with the teacher's weights; all ranks take part."""
        with self._teacher.in_place():
            self.send_weights(version, compare_all)


class ReferenceRank(ReportingRank, ReferenceActor):
    """One ZeRO-3 rank of the reference, which computes log-probs in the same way as the policy."""

    component = "reference rank"

    def init_model_from_pretrained(self, strategy: Strategy, folder: str) -> None:
        """Load the model in `folder`, without an optimizer."""
        self._setup_distributed(strategy)
        offload = strategy.args.ref.offload
        model = load_actor(strategy, folder, strategy.get_ds_eval_config(offload=offload))
        model._offload = offload  # DeepSpeed's strategy reads it
        self.model = strategy.prepare(model)
        self.model.eval()
