"""The GRPO loop on stand-ins for sampler, ranks and engines: order of the phases, metrics, resume and stop."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import ray
import torch
from step_rows import make_metrics

from medssr_dist.config.training import Stage
from medssr_dist.errors import Diverged, Stopped
from medssr_dist.training.after_step import LoopState
from medssr_dist.training.backend.openrlhf import Experience
from medssr_dist.training.loop import LoopParts, run_grpo
from medssr_dist.training.rollout.sampler import StepSamples

UPDATE = dict.fromkeys(("loss", "policy_loss", "kl", "entropy", "clip_ratio", "old_kl"), 0.5)
UPDATE |= {"grad_norm": 0.25, "learning_rate": 1e-6, "tokens_per_s_per_gpu": 9.0}


def make_sample(reward: float) -> Experience:
    return Experience(
        rewards=torch.tensor([reward]),
        response_length=torch.tensor([3]),
        truncated=torch.tensor([False]),
        labels=[json.dumps({"answer": "A"})],
        info={"invalid_answer": torch.tensor([0.0])},
    )


class StandIn:
    """Plays all parts of the loop and records its calls; there are samples for `steps` steps."""

    waited_s = 0.0
    ended_by = ""

    def __init__(self, steps: int, resumed: LoopState | None = None):
        self.calls: list[str] = []
        self.finished: list[tuple] = []
        self.returned, self._steps, self._resumed = 0, steps, resumed or LoopState()
        self.stop_after, self.end_after, self.is_bad = 0, 0, False
        self.far_at: set[int] = set()

    # the sampler
    def next_step(self) -> StepSamples | None:
        if self.returned == self._steps:
            return None
        self.returned += 1
        self.calls.append("sample")
        return StepSamples([make_sample(reward) for reward in (1.0, 0.0, 1.0, 1.0)], drawn=3)

    def state_dict(self) -> dict:
        return {"batches": {"given": self.returned}, "prompts": {"place": 3 * self.returned}}

    def load_state_dict(self, state: dict) -> None:
        self.returned = state["batches"]["given"]

    def end(self) -> None:
        self.calls.append("end")

    # the experience maker
    def plan(self, samples, advantage_N, step) -> SimpleNamespace:
        self.advantage_N = advantage_N
        return SimpleNamespace(shares=[])

    def add_log_probs(self, work) -> None:
        self.calls.append("log-probs")

    def subtract_kl(self, work) -> None:
        return None

    # the ranks
    def async_run_method_batch(self, method_name: str, **arguments) -> list:
        self.calls.append(method_name)
        return []

    def async_run_method(self, method_name: str) -> list:
        self.calls.append(method_name)
        return [UPDATE]

    # the engines
    def begin_training(self) -> None:
        self.calls.append("train")

    def sync_weights(self, compare_all: bool = False) -> None:
        self.calls.append("sync and compare all" if compare_all else "sync")

    # what follows a step
    def resume(self) -> LoopState:
        return self._resumed

    def check_stop(self) -> None:
        pass

    def keep_start(self) -> None:
        self.calls.append("keep start")

    def check_finite(self, step, update) -> None:
        if self.is_bad:
            raise Diverged("loss is nan")

    def check_rollouts(self, step, metrics) -> bool:
        return step in self.far_at

    def finish_step(self, metrics, state) -> None:
        self.calls.append("finish")
        self.finished.append((metrics, state))
        if self.stop_after == state.step:
            raise Stopped("as requested")
        if self.end_after == state.step:
            self.ended_by = "guard"

    def save_and_stop(self, reason: Stopped) -> Stopped:
        self.calls.append("save")
        return reason

    # the log of samples
    def keep(self, samples, step) -> None:
        pass


@pytest.fixture(autouse=True)
def without_ray(monkeypatch):
    monkeypatch.setattr(ray, "get", lambda found: found)


def run(part: StandIn, validator: StandInValidator | None = None) -> None:
    run_grpo(LoopParts(Stage(samples_per_prompt=2), part, part, part, part, part, part, validator))


class StandInValidator:
    """Validates after every second step; the accuracy is a tenth of the step."""

    def __init__(self, calls: list[str]):
        self._calls = calls

    def measure_if_due(self, step: int) -> SimpleNamespace | None:
        return self.measure(step) if step % 2 == 0 else None

    def measure(self, step: int) -> SimpleNamespace:
        self._calls.append(f"validate {step}")
        return SimpleNamespace(accuracy=step / 10)


def test_a_step_samples_updates_syncs_and_finishes():
    part = StandIn(steps=2)
    run(part)
    steps = ["sample", "train", "log-probs", "load_update", "update", "sync", "finish"] * 2
    assert part.calls == ["keep start", *steps]
    torch.testing.assert_close(part.advantage_N, torch.tensor([0.7071, -0.7071, 0, 0]), atol=1e-4, rtol=0)
    metrics, state = part.finished[-1]
    assert state == LoopState(2, 6, {"batches": {"given": 2}, "prompts": {"place": 6}})
    assert (metrics.step, metrics.prompts, metrics.samples, metrics.tokens) == (2, 6, 4, 12)
    assert (metrics.reward, metrics.zero_variance, metrics.loss, metrics.grad_norm) == (0.75, 0.5, 0.5, 0.25)
    phases = metrics.seconds_generate + metrics.seconds_experience + metrics.seconds_update + metrics.seconds_sync
    assert metrics.seconds == pytest.approx(phases)


def test_a_mismatch_makes_the_sync_of_its_step_compare_all():
    part = StandIn(steps=3)
    part.far_at = {2}
    run(part)
    assert [call for call in part.calls if "sync" in call] == ["sync", "sync and compare all", "sync"]


def test_a_resumed_loop_first_sends_weights_to_the_engines():
    part = StandIn(steps=3, resumed=LoopState(2, 6, {"batches": {"given": 2}, "prompts": {"place": 6}}))
    run(part)
    assert part.calls == ["sync", "sample", "train", "log-probs", "load_update", "update", "sync", "finish"]
    assert part.finished[0][1].step == 3 and part.finished[0][1].prompts == 9


def test_a_stopped_loop_saves_its_finished_steps():
    part = StandIn(steps=9)
    part.stop_after = 2
    with pytest.raises(Stopped, match="as requested"):
        run(part)
    assert part.calls[-2:] == ["finish", "save"] and len(part.finished) == 2


def test_validation_follows_the_sync_and_the_last_step():
    part = StandIn(steps=3)
    run(part, StandInValidator(part.calls))
    steps = ["sample", "train", "log-probs", "load_update", "update", "sync"]
    assert part.calls[:2] == ["validate 0", "keep start"]
    assert part.calls[2:] == [*steps, "finish", *steps, "validate 2", "finish", *steps, "finish", "validate 3"]
    assert [metrics.validation_accuracy for metrics, _ in part.finished] == [None, 0.2, None]
    validated = part.finished[1][0]
    assert validated.seconds_validate is not None and part.finished[0][0].seconds_validate is None


def test_a_stage_that_ends_early_draws_no_more_samples():
    part = StandIn(steps=9)
    part.end_after = 2
    run(part, StandInValidator(part.calls))
    assert len(part.finished) == 2 and part.calls[-2:] == ["finish", "end"]


def test_a_resumed_stage_that_had_ended_takes_no_step():
    part = StandIn(steps=9, resumed=LoopState(2, 6, {"batches": {"given": 2}, "prompts": {"place": 6}}))
    part.ended_by = "guard"
    run(part, StandInValidator(part.calls))
    assert part.calls == ["sync", "end"]


def test_weights_of_a_bad_update_reach_no_engine():
    part = StandIn(steps=1)
    part.is_bad = True
    with pytest.raises(Diverged):
        run(part)
    assert part.calls[-1] == "update" and part.finished == []


def test_loop_state_survives_a_checkpoint():
    state = LoopState(2, 6, {"batches": {"given": 2}, "prompts": {"place": 6}})
    assert LoopState.from_dict(state.as_dict()) == state
    assert LoopState.from_dict({}) == LoopState()


def test_metrics_survive_their_file():
    metrics = make_metrics(3, reward=0.25, policy_lag=1, mfu=None)
    assert type(metrics).from_row(json.loads(json.dumps(metrics.as_row()))) == metrics
