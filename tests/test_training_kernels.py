"""A GRPO step with our kernels and with OpenRLHF's own path: the same on 1 and 2 real ZeRO-3 ranks, in bf16 and fp32.

Both are held against the same step in fp64 by plain torch: the kernels' error is at most twice OpenRLHF's.
"""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import _tiny_tokenizer

SEQUENCES, TOKENS, PROMPT, VOCABULARY = 8, 24, 9, 251
CLIP, KL_COEF, LEARNING_RATE = 0.2, 0.1, 0.1
BF16 = {
    "dtype": "bfloat16", "checkpointing": False, "packing": False, "idle": False, "temperature": 1.0,
    "batching": "openrlhf", "stage": {}, "lora_rank": 0,
}  # fmt: skip
FP32 = BF16 | {"dtype": "float32"}
SETTINGS = {
    "tied-bf16": BF16 | {"tied": True},
    "untied-bf16": BF16 | {"tied": False, "checkpointing": True, "temperature": 0.6},
    "tied-fp32": FP32 | {"tied": True, "checkpointing": True, "temperature": 0.6},
    "untied-fp32": FP32 | {"tied": False},
    "idle": BF16 | {"tied": True, "checkpointing": True, "idle": True},
}
# OpenRLHF packs with flash-attn alone: packed kernels are held against its padded form.
PACKED = {
    "untied-bf16": SETTINGS["untied-bf16"] | {"packing": True},
    "tied-fp32": SETTINGS["tied-fp32"] | {"packing": True},
}


def tiny_llama(folder: Path, tied: bool) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=48, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=tied, initializer_range=0.15,
        pad_token_id=1, eos_token_id=2, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    _tiny_tokenizer().save_pretrained(folder)
    return folder


def make_batch(idle: bool) -> dict[str, torch.Tensor]:
    """Left padding, right padding and neither. `idle`: one rank of two has a micro-batch without any action."""
    rng = torch.Generator().manual_seed(1)
    attention = torch.ones(SEQUENCES, TOKENS, dtype=torch.long)
    attention[1, :3] = attention[2, :5] = 0
    attention[3, -4:] = attention[4, -7:] = 0
    actions = attention.clone()
    actions[:, :PROMPT] = 0
    if idle:
        actions[5:] = 0
    return {
        "sequences": torch.randint(3, VOCABULARY, (SEQUENCES, TOKENS), generator=rng).where(attention == 1, 1),
        "attention_mask": attention,
        "action_mask": actions[:, 1:],
        "advantages": torch.randn(SEQUENCES, 1, generator=rng).expand(-1, TOKENS - 1).clone(),
        "kl_coef": KL_COEF,
    }


def drifts() -> tuple[torch.Tensor, torch.Tensor]:
    """Of the old and of the reference log-probs; ratios of 1, 0.6 and 1.65 are clear of where the clip begins."""
    rng = torch.Generator().manual_seed(2)
    shape = SEQUENCES, TOKENS - 1
    return torch.randint(-1, 2, shape, generator=rng) / 2, torch.randn(shape, generator=rng) / 5


def plain_step(model_folder: Path, batch: dict, temperature: float) -> dict:
    """The step in fp64 by plain torch; fills in the batch's old and reference log-probs."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64, attn_implementation="sdpa")
    sequences, attention, mask = batch["sequences"], batch["attention_mask"], batch["action_mask"]
    positions = (attention.cumsum(1) - 1).masked_fill(attention == 0, 1)
    logits = model(sequences, attention_mask=attention, position_ids=positions).logits[:, :-1] / temperature
    logp = torch.log_softmax(logits, -1).gather(-1, sequences[:, 1:, None]).squeeze(-1) * mask
    old, reference = (((logp.detach() + drift) * mask).float() for drift in drifts())
    batch |= {"action_log_probs": old, "base_action_log_probs": reference}
    ratio, gap = (logp - old).exp(), reference - logp
    advantages = batch["advantages"].double()
    policy = -torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
    loss = ((policy + KL_COEF * (gap.exp() - gap - 1)) * mask).sum() / mask.sum()
    loss.backward()
    weights = dict(model.named_parameters())
    terms = {"policy_loss": policy, "kl": gap.exp() - gap - 1, "entropy": entropy_of(logits)}
    return {
        "logp": logp.detach(),
        "loss": loss.detach(),
        "terms": {name: ((term * mask).sum() / mask.sum()).item() for name, term in terms.items()},
        "gradients": {name: weight.grad for name, weight in weights.items()},
        "weights": {name: (weight - LEARNING_RATE * weight.grad).detach() for name, weight in weights.items()},
    }


def entropy_of(logits: torch.Tensor) -> torch.Tensor:
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def run_ranks(job: Path, world: int) -> dict:
    """Run the job's cases on `world` ranks, a process each; returns their results."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    script = Path(__file__).with_name("zero_ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", script, job, str(rank), str(world), str(port)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    outputs = [rank.communicate(timeout=600)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(output[-3000:] for output in outputs)
    return torch.load(f"{job}.out.{world}")


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    """Of every setting by either path on 1 and 2 ranks, and in fp64; by (setting, path, world)."""
    folder = tmp_path_factory.mktemp("ranks")
    models = {tied: str(tiny_llama(folder / f"tied_{tied}", tied)) for tied in (True, False)}
    found, job = {}, {}
    for name, setting in SETTINGS.items():
        batch = make_batch(setting["idle"])
        case = setting | {"batch": batch, "model": models[setting["tied"]], "learning_rate": LEARNING_RATE}
        found[name, "fp64"] = plain_step(Path(case["model"]), batch, case["temperature"])
        job[name, "kernels"], job[name, "openrlhf"] = case | {"path": "kernels"}, case | {"path": "openrlhf"}
        if name in PACKED:
            job[name, "packed"] = case | PACKED[name] | {"path": "kernels"}
    torch.save(job, folder / "job")
    for world in (1, 2):
        found |= {(*key, world): value for key, value in run_ranks(folder / "job", world).items()}
    return found


def error(found, expected) -> float:
    """Relative error, of a tensor or of a dict of tensors taken as one."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = (torch.cat([each[name].flatten() for name in sorted(each)]) for each in (found, expected))
    return ((found.double() - expected).norm() / expected.norm()).item()


BY_KERNELS = [*itertools.product(SETTINGS, ["kernels"]), *itertools.product(PACKED, ["packed"])]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize(("setting", "form"), BY_KERNELS, ids=map("-".join, BY_KERNELS))
def test_step_is_as_exact_as_openrlhfs(results, setting, form, world):
    exact, ours, theirs = (
        results[key] for key in ((setting, "fp64"), (setting, form, world), (setting, "openrlhf", world))
    )
    for what in ("logp", "gradients", "weights"):
        allowed = 2 * error(theirs[what], exact[what]) + 1e-6
        assert error(ours[what], exact[what]) <= allowed, what
    # One number may be right by chance in theirs: the rounding of the dtype is allowed too.
    rounding = {"bfloat16": 2**-8, "float32": 1e-6}[SETTINGS[setting]["dtype"]]
    assert error(ours["loss"], exact["loss"]) <= max(2 * error(theirs["loss"], exact["loss"]), rounding)
    for name, gradient in exact["gradients"].items():
        allowed = 2 * error(theirs["gradients"][name], gradient) + 1e-6
        assert error(ours["gradients"][name], gradient) <= allowed, name
    assert all(ours["released"])  # the head's weight was not there outside its forward
    assert torch.equal(ours["reference_logp"], ours["logp"])  # the same weights, in a rank of the other class


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("setting", SETTINGS)
def test_metrics_are_means_over_the_whole_step(results, setting, world):
    """Also where the ranks have different numbers of tokens, or none."""
    exact, found = results[setting, "fp64"]["terms"], results[setting, "kernels", world]["status"]
    tolerance = 1e-5 if "fp32" in setting else 2e-2
    assert {name: found[name] for name in exact} == pytest.approx(exact, rel=tolerance)
    assert all(torch.tensor(list(map(float, found.values()))).isfinite())
    assert found["ppo_clip_ratio"] > 0.2  # the clip took part
    theirs = results[setting, "openrlhf", world]["status"]
    assert theirs.keys() == found.keys() - {"entropy"}
    assert found["actor_grad_norm"] == pytest.approx(theirs["actor_grad_norm"], rel=tolerance)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_ranks_agree(results, dtype):
    """One rank or two: the same step."""
    one, two = (results[f"tied-{dtype}", "kernels", world] for world in (1, 2))
    tolerance = {"bf16": 3e-2, "fp32": 1e-5}[dtype]
    assert error(two["gradients"], one["gradients"]) <= tolerance


def test_a_head_that_is_more_than_a_matrix_is_refused(tmp_path):
    from transformers import AutoModelForCausalLM

    from medssr_dist.errors import InputError
    from medssr_dist.training.head import install_head

    model = AutoModelForCausalLM.from_pretrained(tiny_llama(tmp_path, tied=True))
    install_head(model)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.config.final_logit_softcapping = 30.0
    with pytest.raises(InputError, match="final_logit_softcapping.*training.logprob=openrlhf"):
        install_head(model)
    model.config.final_logit_softcapping = None
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(VOCABULARY))
    with pytest.raises(InputError, match="an output bias"):
        install_head(model)
