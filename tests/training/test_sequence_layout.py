"""Layouts: log-probs are those of the sequences apart."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from medssr_dist.training.update.sequence_layout import padded, shared

VOCABULARY = 31


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config).double()


def batch(prompts: list[list[int]], answers: list[tuple[int, list[int]]]):
    """Sequences, attention mask and action mask, padded on the right."""
    longest = max(len(prompts[which]) + len(answer) for which, answer in answers)
    sequences = torch.zeros(len(answers), longest, dtype=torch.long)
    real, acts = torch.zeros_like(sequences), torch.zeros_like(sequences)
    for line, (which, answer) in enumerate(answers):
        whole = prompts[which] + answer
        sequences[line, : len(whole)] = torch.tensor(whole)
        real[line, : len(whole)] = 1
        acts[line, len(prompts[which]) : len(whole)] = 1
    return sequences, real, acts[:, 1:]


def apart(model, sequences, real, acts) -> torch.Tensor:
    """Log-probs of all actions, sequence by sequence."""
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    logits = model(sequences, attention_mask=real, position_ids=positions).logits[:, :-1]
    found = logits.log_softmax(-1).gather(-1, sequences[:, 1:, None]).squeeze(-1)
    return found[acts.bool()]


def laid_out(model, lay_out, given_batch) -> torch.Tensor:
    layout = lay_out(*given_batch)
    logits = model(layout.tokens, attention_mask=layout.attention, position_ids=layout.positions).logits
    chosen = logits.flatten(0, 1).index_select(0, layout.rows)
    return chosen.log_softmax(-1).gather(-1, layout.target[:, None]).squeeze(-1)


tokens = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=6)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_log_probs_are_those_of_the_sequences_apart(model, data):
    prompts = data.draw(st.lists(tokens, min_size=1, max_size=3))
    pairs = st.tuples(st.integers(0, len(prompts) - 1), tokens)
    given_batch = batch(prompts, data.draw(st.lists(pairs, min_size=1, max_size=6)))
    for lay_out in (padded, shared):
        torch.testing.assert_close(laid_out(model, lay_out, given_batch), apart(model, *given_batch))


def test_gradients_are_those_of_the_sequences_apart(model):
    given_batch = batch([[1, 2, 3], [4, 5]], [(0, [6, 7]), (1, [8]), (0, [9, 10, 11]), (0, [6, 12])])
    gradients = []
    for found in (apart(model, *given_batch), laid_out(model, shared, given_batch)):
        model.zero_grad()
        found.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # norms are in fp32


def test_a_prompt_is_there_once():
    row = shared(*batch([[1, 2, 3]], [(0, [6, 7]), (0, [8, 9])]))
    assert row.tokens.tolist() == [[1, 2, 3, 6, 8]]  # nothing is predicted after an answer's last token
    assert row.positions.tolist() == [[0, 1, 2, 3, 3]]
    assert row.rows.tolist() == [2, 3, 2, 4] and row.target.tolist() == [6, 7, 8, 9]


def test_without_actions_a_token_is_left():
    sequences, real, acts = batch([[1, 2]], [(0, [3])])
    row = shared(sequences, real, torch.zeros_like(acts))
    assert row.tokens.shape == (1, 1) and not len(row.rows) and not len(row.target)
