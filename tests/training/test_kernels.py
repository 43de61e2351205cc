"""A GRPO step with our kernels and with OpenRLHF's own loss, on 1 and 2 real ZeRO-3 ranks, in bf16 and fp32.

Both are compared with the same step in fp64 by plain torch: the kernels' error is at most twice OpenRLHF's.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from zero_cases import BF16, LEARNING_RATE, VOCABULARY, error, make_batch, run_ranks, save_tiny_llama, take_plain_step

FP32 = BF16 | {"dtype": "float32"}
SETTINGS = {
    "tied-bf16": BF16 | {"tied": True},
    "untied-bf16": BF16 | {"tied": False, "checkpointing": True, "temperature": 0.6},
    "tied-fp32": FP32 | {"tied": True, "checkpointing": True, "temperature": 0.6},
    "untied-fp32": FP32 | {"tied": False},
    "idle": BF16 | {"tied": True, "checkpointing": True, "idle": True},
}
# OpenRLHF packs only with flash-attn, so packed kernels are compared with its padded form.
PACKED = {
    "untied-bf16": SETTINGS["untied-bf16"] | {"packing": True},
    "tied-fp32": SETTINGS["tied-fp32"] | {"packing": True},
}


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    """Results by (setting, path, number of ranks), and in fp64 by (setting, "fp64")."""
    folder = tmp_path_factory.mktemp("ranks")
    models = {tied: str(save_tiny_llama(folder / f"tied_{tied}", tied)) for tied in (True, False)}
    found, job = {}, {}
    for name, setting in SETTINGS.items():
        batch = make_batch(setting["idle"])
        case = setting | {"batch": batch, "model": models[setting["tied"]], "learning_rate": LEARNING_RATE}
        found[name, "fp64"] = take_plain_step(Path(case["model"]), batch, case["temperature"])
        job[name, "kernels"], job[name, "stock"] = case | {"path": "kernels"}, case | {"path": "stock"}
        if name in PACKED:
            job[name, "packed"] = case | PACKED[name] | {"path": "kernels"}
    torch.save(job, folder / "job")
    for world in (1, 2):
        found |= {(*key, world): value for key, value in run_ranks(folder / "job", world).items()}
    return found


BY_KERNELS = [*itertools.product(SETTINGS, ["kernels"]), *itertools.product(PACKED, ["packed"])]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("setting", "form"), BY_KERNELS, ids=map("-".join, BY_KERNELS))
def test_a_step_is_as_exact_as_openrlhfs(results, setting, form, world):
    exact, ours, theirs = (
        results[key] for key in ((setting, "fp64"), (setting, form, world), (setting, "stock", world))
    )
    for what in ("logp", "gradients", "weights"):
        allowed = 2 * error(theirs[what], exact[what]) + 1e-6
        assert error(ours[what], exact[what]) <= allowed, what
    # A single number of OpenRLHF may be exact by chance, so the rounding of the dtype is allowed too.
    rounding = {"bfloat16": 2**-8, "float32": 1e-6}[SETTINGS[setting]["dtype"]]
    assert error(ours["loss"], exact["loss"]) <= max(2 * error(theirs["loss"], exact["loss"]), rounding)
    for name, gradient in exact["gradients"].items():
        allowed = 2 * error(theirs["gradients"][name], gradient) + 1e-6
        assert error(ours["gradients"][name], gradient) <= allowed, name
    assert all(ours["released"])  # the head's weight was not gathered outside its forward
    assert torch.equal(ours["reference_logp"], ours["logp"])  # the same weights, computed by the reference's rank


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("setting", SETTINGS)
def test_metrics_are_means_over_all_tokens_of_the_step(results, setting, world):
    """Also if the ranks have different numbers of tokens, or none."""
    exact, found = results[setting, "fp64"]["terms"], results[setting, "kernels", world]["status"]
    tolerance = 1e-5 if "fp32" in setting else 2e-2
    assert {name: found[name] for name in exact} == pytest.approx(exact, rel=tolerance)
    assert all(torch.tensor(list(map(float, found.values()))).isfinite())
    assert found["clip_ratio"] > 0.2  # clipping had an effect
    theirs = results[setting, "stock", world]["status"]
    assert found["grad_norm"] == pytest.approx(theirs["actor_grad_norm"], rel=tolerance)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_one_and_two_ranks_take_the_same_step(results, dtype):
    one, two = (results[f"tied-{dtype}", "kernels", world] for world in (1, 2))
    tolerance = {"bf16": 3e-2, "fp32": 1e-5}[dtype]
    assert error(two["gradients"], one["gradients"]) <= tolerance


def test_an_unsupported_output_layer_is_refused(tmp_path):
    from transformers import AutoModelForCausalLM

    from medssr_dist.errors import InputError
    from medssr_dist.training.update.lm_head import install_head

    model = AutoModelForCausalLM.from_pretrained(save_tiny_llama(tmp_path, tied=True))
    install_head(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(InputError, match="final_logit_softcapping.*choose a policy.model"):
        install_head(model)
    model.config.final_logit_softcapping = None
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
    with pytest.raises(InputError, match="an output bias"):
        install_head(model)
