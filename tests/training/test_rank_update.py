"""Our update on 1 and 2 real ZeRO-3 ranks against fp64 or OpenRLHF: micro-batches, algorithms, adapters.

OpenRLHF's loss runs in our update (`StockLossRank`), so both are compared for each setting. test_kernels.py compares
OpenRLHF's own update with ours.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from zero_cases import BF16, LEARNING_RATE, error, make_batch, run_ranks, save_tiny_llama, take_plain_step

from medssr_dist.kernels import linear_logprob

# Micro-batches of 1 to 4 sequences; three on one rank, or two on each of two ranks. IDLE has an empty one.
UNEVEN = {"1": [[[0, 1, 2], [3], [4, 5, 6, 7]]], "2": [[[0], [1, 2, 3]]]}
IDLE = {"1": [[[0, 1, 2, 3], [], [4, 5, 6, 7]]], "2": [[[0, 1, 2, 3], []]]}
TWICE = {"1": [[[0, 1], [2, 3]], [[4, 5, 6, 7]]], "2": [[[0, 1]], [[2], [3]]]}
OURS = BF16 | {"dtype": "float32", "tied": True, "updates": UNEVEN}
CASES = {
    "uneven": OURS,
    "untied": OURS | {"tied": False, "checkpointing": True, "temperature": 0.6},
    "idle": OURS | {"updates": IDLE},
    "on-policy": OURS | {"on_policy": True},
}
# Settings of the algorithm, with two updates, so that the second one is off-policy.
ALGORITHMS = {
    "sequence_mean": {"aggregation": "sequence_mean"},
    "gspo": {"ratio": "sequence", "aggregation": "sequence_mean", "clip_low": 0.05, "clip_high": 0.05},
    "dual_clip": {"dual_clip": 1.2, "clip_high": 0.3},
    "k2": {"kl_estimator": "k2"},
    "k1_unbiased": {"kl_estimator": "k1", "kl_unbiased": True},
    "entropy": {"entropy_coef": 0.05},
    "kl_in_reward": {"kl_in": "reward"},
    "importance_mask": {"importance": "token", "importance_low": 0.7, "importance_high": 1.4},
    "importance_clip": {"importance": "token", "importance_mode": "clip", "importance_high": 1.4},
    "importance_sequence": {"importance": "sequence", "importance_low": 0.99, "importance_high": 1.4},
    "importance_tv": {"importance": "token", "importance_gate": "tv", "importance_low": 0, "importance_high": 0.01},
    "importance_gspo": {"ratio": "sequence", "aggregation": "sequence_mean", "importance": "sequence"},
}
ON_POLICY = ("sequence_mean", "gspo", "k1_unbiased", "importance_mask", "importance_sequence")
LORA = OURS | {"lora_rank": 4, "updates": TWICE}


def add_rollout_logprobs(batch: dict) -> dict:
    """Return the batch with log-probs of a rollout engine that differ a little from the policy's."""
    drift = torch.randn(batch["action_mask"].shape, generator=torch.Generator().manual_seed(3)) / 5
    return batch | {"rollout_log_probs": (batch["exact_logp"].float() + drift) * batch["action_mask"]}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    """Results by (case, path, number of ranks), and in fp64 by (case, "fp64")."""
    folder = tmp_path_factory.mktemp("update")
    models = {tied: str(save_tiny_llama(folder / f"tied_{tied}", tied)) for tied in (True, False)}
    found, job = {"models": models}, {}

    def add(name: str, case: dict, on_policy: bool = False) -> None:
        batch = make_batch(idle=False)
        exact = take_plain_step(Path(models[case["tied"]]), batch, case["temperature"], on_policy)
        batch = add_rollout_logprobs(batch | {"exact_logp": exact["logp"]})
        found[name, "fp64"] = exact
        whole = case | {"batch": batch, "model": models[case["tied"]], "learning_rate": LEARNING_RATE}
        for path in ("kernels", "stock loss"):
            job[name, path] = whole | {"path": path}

    for name, case in CASES.items():
        add(name, case, case.get("on_policy", False))
    for name, stage in ALGORITHMS.items():
        add(name, OURS | {"updates": TWICE, "stage": stage})
    for name in ON_POLICY:
        add(f"{name}-on-policy", OURS | {"stage": ALGORITHMS[name]}, on_policy=True)
    add("lora", LORA)
    del job["lora", "stock loss"]
    torch.save(job, folder / "job")
    for world in (1, 2):
        found |= {(*key, world): value for key, value in run_ranks(folder / "job", world).items()}
    return found


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("path", ["kernels", "stock loss"])
@pytest.mark.parametrize("case", CASES)
def test_all_micro_batches_give_the_same_step(results, case, path, world):
    exact, found = results[case, "fp64"], results[case, path, world]
    for what in ("loss", "gradients", "weights"):
        assert error(found[what], exact[what]) <= 1e-5, what
    assert found["steps"] == 1
    terms = exact["terms"] | {"loss": exact["loss"].item()}
    terms = {name: value for name, value in terms.items() if path == "kernels" or name != "entropy"}
    assert {name: found["status"][name] for name in terms} == pytest.approx(terms, rel=1e-5)
    assert found["status"]["tokens_per_s_per_gpu"] > 0


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("case", [*ALGORITHMS, *(f"{name}-on-policy" for name in ON_POLICY)])
def test_every_algorithm_agrees_with_openrlhf(results, case, world):
    ours, theirs = results[case, "kernels", world], results[case, "stock loss", world]
    assert ours["steps"] == theirs["steps"] == (1 if case.endswith("on-policy") else 2)
    for what in ("gradients", "weights"):
        assert error(ours[what], theirs[what]) <= 2e-5, what
    plain = results["uneven", "kernels", world]["gradients"]
    assert error(ours["gradients"], plain) > 1e-3  # the setting had an effect
    shared = ("policy_loss", "old_kl", "grad_norm")
    assert {name: ours["status"][name] for name in shared} == pytest.approx(
        {name: theirs["status"][name] for name in shared}, rel=1e-4, abs=1e-6
    )


def test_only_adapters_are_trained_and_saved_merged(results):
    from transformers import AutoModelForCausalLM

    for world in (1, 2):
        found = results["lora", "kernels", world]
        assert len(found["gradients"]) == 2 * 7 * 2 and all(".lora_" in name for name in found["gradients"])
        assert error(found["logp_after"], found["logp"].double()) > 1e-3
    model = AutoModelForCausalLM.from_pretrained(Path(results["models"][True]) / "stage" / "hf.partial")
    batch = make_batch(idle=False)
    sequences, attention = batch["sequences"], batch["attention_mask"]
    positions = (attention.cumsum(1) - 1).masked_fill(attention == 0, 1)
    with torch.no_grad():
        hidden = model.model(sequences, attention_mask=attention, position_ids=positions).last_hidden_state[:, :-1]
        logp = linear_logprob(hidden.flatten(0, 1), model.lm_head.weight, sequences[:, 1:].flatten())
    logp = logp.view(batch["action_mask"].shape) * batch["action_mask"]
    assert error(logp, found["logp_after"].double()) <= 1e-5
