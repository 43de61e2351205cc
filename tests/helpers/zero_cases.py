"""A batch, a model, a GRPO step in fp64 by plain torch, and real ZeRO-3 ranks that take the same step."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import torch
from tiny_policy import tiny_tokenizer

SEQUENCES, TOKENS, PROMPT, VOCABULARY = 8, 24, 9, 251
CLIP, KL_COEF, LEARNING_RATE = 0.2, 0.1, 0.1
# A case without its batch, model and learning rate. `updates`: number of ranks -> updates (see PolicyRank.load_update).
BF16 = {
    "dtype": "bfloat16",
    "checkpointing": False,
    "packing": False,
    "idle": False,
    "temperature": 1.0,
    "stage": {},
    "lora_rank": 0,
    "updates": {},
}


def save_tiny_llama(folder: Path, tied: bool) -> Path:
    """Write a two-layer Llama with random weights and a tokenizer into `folder`; return it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        initializer_range=0.15,
        pad_token_id=1,
        eos_token_id=2,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).bfloat16().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def make_batch(idle: bool) -> dict[str, torch.Tensor]:
    """Make a batch of sequences with left padding, right padding and none.

    Args:
        idle: one of two ranks has a micro-batch without actions.
    """
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


def make_drifts() -> tuple[torch.Tensor, torch.Tensor]:
    """Return differences of the old and the reference log-probs; the ratios 1, 0.6 and 1.65 are far from the clip."""
    rng = torch.Generator().manual_seed(2)
    shape = SEQUENCES, TOKENS - 1
    return torch.randint(-1, 2, shape, generator=rng) / 2, torch.randn(shape, generator=rng) / 5


def take_plain_step(model_folder: Path, batch: dict, temperature: float, on_policy: bool = False) -> dict:
    """Take a step in fp64 with plain torch; set the batch's reference and, unless `on_policy`, its old log-probs."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float64, attn_implementation="sdpa")
    sequences, attention, mask = batch["sequences"], batch["attention_mask"], batch["action_mask"]
    positions = (attention.cumsum(1) - 1).masked_fill(attention == 0, 1)
    logits = model(sequences, attention_mask=attention, position_ids=positions).logits[:, :-1] / temperature
    logp = torch.log_softmax(logits, -1).gather(-1, sequences[:, 1:, None]).squeeze(-1) * mask
    old, reference = (((logp.detach() + drift) * mask).float() for drift in make_drifts())
    batch |= {"action_log_probs": None if on_policy else old, "base_action_log_probs": reference}
    old = logp.detach() if on_policy else old
    ratio, gap = (logp - old).exp(), reference - logp
    advantages = batch["advantages"].double()
    policy = -torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
    loss = ((policy + KL_COEF * (gap.exp() - gap - 1)) * mask).sum() / mask.sum()
    loss.backward()
    weights = dict(model.named_parameters())
    terms = {"policy_loss": policy, "kl": gap.exp() - gap - 1, "entropy": compute_entropy(logits)}
    return {
        "logp": logp.detach(),
        "loss": loss.detach(),
        "terms": {name: ((term * mask).sum() / mask.sum()).item() for name, term in terms.items()},
        "gradients": {name: weight.grad for name, weight in weights.items()},
        "weights": {name: (weight - LEARNING_RATE * weight.grad).detach() for name, weight in weights.items()},
    }


def compute_entropy(logits: torch.Tensor) -> torch.Tensor:
    log_p = torch.log_softmax(logits, -1)
    return -(log_p.exp() * log_p).sum(-1)


def run_ranks(job: Path, world: int) -> dict:
    """Run the job's cases on `world` ranks, each in a process (zero_ranks.py); return their results."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    script = Path(__file__).with_name("zero_ranks.py")
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", script, job, str(rank), str(world), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    outputs = [rank.communicate(timeout=600)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * world, "\n".join(output[-3000:] for output in outputs)
    return torch.load(f"{job}.out.{world}")


def error(found, expected) -> float:
    """Return the relative error of a tensor, or of a dict of tensors as one vector."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        found, expected = (torch.cat([each[name].flatten() for name in sorted(each)]) for each in (found, expected))
    return ((found.double() - expected).norm() / expected.norm()).item()
