"""Layouts: log-probs and gradients equal those of separate sequences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from medssr_dist.training.update.sequence_layout import lay_out_padded, lay_out_shared

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


def make_batch(prompts: list[list[int]], answers: list[tuple[int, list[int]]]):
    """Return token_BT, attention_BT and action_BA, padded on the right; an answer is (index of its prompt, tokens)."""
    longest = max(len(prompts[which]) + len(answer) for which, answer in answers)
    sequences = torch.zeros(len(answers), longest, dtype=torch.long)
    real, acts = torch.zeros_like(sequences), torch.zeros_like(sequences)
    for line, (which, answer) in enumerate(answers):
        whole = prompts[which] + answer
        sequences[line, : len(whole)] = torch.tensor(whole)
        real[line, : len(whole)] = 1
        acts[line, len(prompts[which]) : len(whole)] = 1
    return sequences, real, acts[:, 1:]


def compute_separately(model, sequences, real, acts) -> torch.Tensor:
    """Return the log-probs of all actions, with one row for each sequence."""
    positions = (real.cumsum(-1) - 1).clamp(min=0)
    logits = model(sequences, attention_mask=real, position_ids=positions).logits[:, :-1]
    found = logits.log_softmax(-1).gather(-1, sequences[:, 1:, None]).squeeze(-1)
    return found[acts.bool()]


def compute_with_layout(model, lay_out, given_batch) -> torch.Tensor:
    """Return the log-probs of all actions, with the layout as the model's input."""
    layout = lay_out(*given_batch)
    logits = model(layout.token_SL, attention_mask=layout.attention, position_ids=layout.position_SL).logits
    chosen = logits.flatten(0, 1).index_select(0, layout.row_R)
    return chosen.log_softmax(-1).gather(-1, layout.target_R[:, None]).squeeze(-1)


tokens = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=6)


@settings(deadline=None, max_examples=30)
@given(st.data())
def test_log_probs_equal_those_of_separate_sequences(model, data):
    prompts = data.draw(st.lists(tokens, min_size=1, max_size=3))
    pairs = st.tuples(st.integers(0, len(prompts) - 1), tokens)
    given_batch = make_batch(prompts, data.draw(st.lists(pairs, min_size=1, max_size=6)))
    for lay_out in (lay_out_padded, lay_out_shared):
        torch.testing.assert_close(
            compute_with_layout(model, lay_out, given_batch), compute_separately(model, *given_batch)
        )


def test_gradients_equal_those_of_separate_sequences(model):
    given_batch = make_batch([[1, 2, 3], [4, 5]], [(0, [6, 7]), (1, [8]), (0, [9, 10, 11]), (0, [6, 12])])
    gradients = []
    for found in (compute_separately(model, *given_batch), compute_with_layout(model, lay_out_shared, given_batch)):
        model.zero_grad()
        found.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # norms are in fp32


def test_a_shared_prompt_occurs_once():
    row = lay_out_shared(*make_batch([[1, 2, 3]], [(0, [6, 7]), (0, [8, 9])]))
    assert row.token_SL.tolist() == [[1, 2, 3, 6, 8]]  # the last token of an answer predicts nothing
    assert row.position_SL.tolist() == [[0, 1, 2, 3, 3]]
    assert row.row_R.tolist() == [2, 3, 2, 4] and row.target_R.tolist() == [6, 7, 8, 9]


def test_without_actions_one_token_is_kept():
    sequences, real, acts = make_batch([[1, 2]], [(0, [3])])
    row = lay_out_shared(sequences, real, torch.zeros_like(acts))
    assert row.token_SL.shape == (1, 1) and not len(row.row_R) and not len(row.target_R)
