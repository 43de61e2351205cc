"""Training of the mini policy: next-token loss, and checkpoints from which a killed run is resumed."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional

from medssr_dist.mini_policy.mini_text import LOOKUPS, PLAIN, VARIED, MiniText, TextMix, TextState
from medssr_dist.mini_policy.packing import IGNORED, Batch, DocumentPacker

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@dataclass(frozen=True)
class Phase:
    """The text from the step `start` on. Example: Phase(1000, PLAIN)"""

    start: int
    mix: TextMix


PHASES = (Phase(0, LOOKUPS), Phase(1000, PLAIN), Phase(2017, VARIED))


@dataclass(frozen=True)
class MiniShape:
    """Size of the model and of its training.

    Attributes:
        positions: longest sequence, tokens.
        rows, row_tokens: of a batch, in which documents are packed.
        matrix_rate: learning rate of Muon, for the matrices of the layers. With 0.02, or where documents of one row see
            each other, a policy did not learn in 1,000 steps to find the letter of a name.
        other_rate: learning rate of AdamW, for embeddings and norms.
        phases: of the text. Later ones have wrong replies, so that the policy knows more than a single reply shows.
    """

    vocabulary: int = 2048
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    intermediate: int = 352
    positions: int = 512
    rows: int = 12
    row_tokens: int = 256
    matrix_rate: float = 0.006
    other_rate: float = 3e-3
    warmup_steps: int = 50
    phases: tuple[Phase, ...] = PHASES

    def choose_mix(self, step: int) -> TextMix:
        """Return what the text of a step is drawn from."""
        return next(phase.mix for phase in reversed(self.phases) if step >= phase.start)


def make_model(shape: MiniShape, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Make a Llama with random weights; embeddings are tied."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def compute_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Return the weighted mean cross-entropy; the head runs only where a target is."""
    output = model.model(input_ids=batch.tokens_ST, position_ids=batch.places_ST, use_cache=False)
    hidden_STH = output.last_hidden_state
    wanted_ST = batch.targets_ST != IGNORED
    losses_N = functional.cross_entropy(
        model.lm_head(hidden_STH[wanted_ST]), batch.targets_ST[wanted_ST], reduction="none"
    )
    weights_N = batch.weights_ST[wanted_ST]
    return (losses_N * weights_N).sum() / weights_N.sum()


class Learner:
    """Model, optimizers and text, advanced step by step and saved together."""

    def __init__(self, shape: MiniShape, tokenizer: PreTrainedTokenizerFast, text: MiniText, random_seed: int):
        torch.manual_seed(random_seed)
        self.shape, self.tokenizer, self.text, self.seed = shape, tokenizer, text, random_seed
        self._packer = DocumentPacker(tokenizer)
        self.model = make_model(shape, tokenizer)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        named = list(self.model.named_parameters())
        matrices = [weight for name, weight in named if weight.ndim == 2 and "embed" not in name]
        others = [weight for name, weight in named if weight.ndim != 2 or "embed" in name]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(matrices, shape.matrix_rate, weight_decay=0.01),
            torch.optim.AdamW(others, shape.other_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
        ]
        self._rates = [shape.matrix_rate, shape.other_rate]

    def advance(self) -> float:
        """Train one step; returns its loss."""
        batch = self._packer.pack(self.text, self.shape.rows, self.shape.row_tokens, self.shape.choose_mix(self.step))
        self.model.train()
        loss = compute_loss(self.model, batch)
        loss.backward()
        for optimizer, rate in zip(self._optimizers, self._rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * min(1.0, (self.step + 1) / self.shape.warmup_steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += batch.tokens_ST.numel()
        return float(loss.detach())

    def save(self, file: Path) -> None:
        """Write everything that a resumed run needs; a killed save leaves the older file."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "text": self.text.get_state(),
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "shape": asdict(self.shape),
        }
        partial = file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, file)

    def load(self, file: Path) -> None:
        """Continue from `file`, which `save` has written."""
        with torch.serialization.safe_globals([TextState]):
            state: dict[str, Any] = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.text.set_state(state["text"])
        self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
