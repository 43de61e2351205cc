"""What ended a training stage, as an error with the setting that helps; what is no known fault stays as it is."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from medssr_dist.errors import InputError, Stopped, TrainingFailed
from medssr_dist.runtime.cluster import find_cause, shorten_cause
from medssr_dist.training.engine_failures import EngineLostError, SyncError
from medssr_dist.training.stage_job import StageJob

if TYPE_CHECKING:
    from ray.exceptions import RayError

_FULL_DISK_BYTES, _FULL_DISK_SHARE = 2**28, 0.1  # with less free space than both, the disk counts as full
_RESUMES = "the same command then resumes from the last complete checkpoint"


def explain_stage_error(error: RayError, job: StageJob) -> Exception:
    """Return the error to raise for a failed stage: its own Stopped, TrainingFailed or InputError, if it raised one.

    If memory or disk is full, it is an InputError; if a process of it was killed or has crashed, or engines have failed
    for good, a TrainingFailed; otherwise the error itself. torch and DeepSpeed report a full disk in several ways, so
    the disk itself is checked.
    """
    import ray

    cause = find_cause(error)
    if isinstance(cause, Stopped):
        return Stopped(f"{job.name} {cause}")
    if isinstance(cause, (TrainingFailed, InputError)):
        return cause
    if isinstance(cause, ray.exceptions.OutOfMemoryError):
        return InputError(
            "the machine ran out of memory while training, and Ray ended a worker; end other programs, set "
            f"runtime.mode=sequential, or {_advise_on_memory(job, host=True)}; {_RESUMES}"
        )
    if _is_out_of_memory(cause):
        return InputError(f"{job.name} ran out of memory; {_advise_on_memory(job)}; {_RESUMES}")
    disk = shutil.disk_usage(job.folder)
    if disk.free < min(_FULL_DISK_BYTES, _FULL_DISK_SHARE * disk.total):
        return InputError(
            f"training ended with {disk.free / 2**20:.0f} MiB free in {job.folder}: the disk is full; free some space; "
            f"{_RESUMES}"
        )
    if isinstance(cause, (ray.exceptions.RayActorError, ray.exceptions.WorkerCrashedError)):
        reason = shorten_cause(cause, 200)
        return TrainingFailed(f"a process of {job.name} was killed or has crashed; {_RESUMES} ({reason})")
    if isinstance(cause, (SyncError, EngineLostError)):
        return TrainingFailed(f"{job.name}: {shorten_cause(cause, 300)}; {_RESUMES}")
    return error


def _is_out_of_memory(cause: BaseException) -> bool:
    import torch

    return isinstance(cause, torch.OutOfMemoryError) or "can't allocate memory" in str(cause)


def _advise_on_memory(job: StageJob, host: bool = False) -> str:
    """Return the settings that lower the need of memory; all of them may change in a run that has begun.

    Args:
        host: whether the memory of the machine is full, not that of a GPU.
    """
    training, stage, name = job.config.training, job.stage, f"training.{job.name}"
    least_size = stage.samples_per_prompt if training.share_prompts else 1
    least_tokens = job.config.policy.max_model_len
    ways = []
    if stage.micro_batch_tokens > least_tokens:
        ways.append(f"lower {name}.micro_batch_tokens = {stage.micro_batch_tokens} (to {least_tokens} at least)")
    if not stage.micro_batch_tokens and stage.micro_batch_size > least_size:
        ways.append(f"lower {name}.micro_batch_size = {stage.micro_batch_size} (to {least_size} at least)")
    if not training.gradient_checkpointing:
        ways.append("set training.gradient_checkpointing=true")
    if not training.offload_optimizer and not host:
        ways.append("set training.offload_optimizer=true")
    if not training.offload_reference and not host and stage.kl_coef > 0:
        ways.append("set training.offload_reference=true")
    return " or ".join([*ways, "train on more ranks (training.nodes, training.ranks_per_node)"])
