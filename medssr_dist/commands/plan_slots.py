"""Rows of the dry run about the machines: GPUs of each part, idle GPUs, memory, checkpoints."""

from __future__ import annotations

from medssr_dist.commands.plan_rows import PlanRow
from medssr_dist.commands.prefetch import format_size
from medssr_dist.config.schema import Config
from medssr_dist.config.training import Stage
from medssr_dist.estimates.memory import estimate_memory, estimate_one_checkpoint, find_parameters
from medssr_dist.runtime.cluster import count_slots, count_slots_at_once
from medssr_dist.runtime.device import on_gpu
from medssr_dist.training.save_interval import choose_save_steps


def plan_slots(config: Config) -> list[PlanRow]:
    """Return a row for each part of the run with its GPUs, or its processes on CPU, and one for all at once."""
    kind = "GPUs" if on_gpu() else "CPU process slots"
    needed = [PlanRow(name, f"{count} {kind}") for name, count in count_slots(config).items() if count]
    at_once = PlanRow("at once", f"{count_slots_at_once(config)} {kind} (runtime.mode={config.runtime.mode})")
    idle = describe_idle(config) if on_gpu() else ""
    return [*needed, at_once, *([PlanRow("idle", idle)] if idle else [])]


def describe_idle(config: Config) -> str:
    """Describe the GPUs that a step of the run leaves idle, in one line; "" if every step uses all of them."""
    all_gpus, training = count_slots_at_once(config), config.training
    used = count_slots(config)
    voting = used.pop("voting engines")
    if config.runtime.mode == "stream" or not (training.stage1.enabled or training.stage2.enabled):
        return ""
    waiting = {"the vote": all_gpus - voting, "training": all_gpus - sum(used.values())}
    return ", ".join(f"{count} GPUs during {step}" for step, count in waiting.items() if count)


def plan_memory(config: Config) -> list[PlanRow]:
    """Return a row for each estimate of memory; one row where the model's size is not known."""
    parameters = find_parameters(config.policy)
    if parameters is None:
        return [PlanRow("memory", "not estimated: the policy is not on this machine")]
    demands = estimate_memory(config, parameters)
    texts = [f"{each.what}: about {format_size(each.needed)} of {format_size(each.available)}" for each in demands]
    over = [each.what for each in demands if each.needed > each.available]
    texts += [f"warning: too little for {what}" for what in over]
    return [PlanRow("memory" if not place else "", text) for place, text in enumerate(texts)]


def describe_checkpoints(config: Config, stage: Stage) -> str:
    """Describe how often a stage writes a checkpoint, and how large it is."""
    parameters = find_parameters(config.policy)
    if parameters is None:
        every = f"every {stage.save_steps} steps" if stage.save_steps else "as often as their size allows"
        return f"checkpoints: {every}"
    size = estimate_one_checkpoint(config, parameters)
    return f"checkpoints: every {stage.save_steps or choose_save_steps(size)} steps, about {format_size(size)} each"
