"""Whether a server serves the policy, and the parsing of its stream of answers."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from far_server import POLICY, ask
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.config.schema import Policy
from medssr_dist.config.voting import Server
from medssr_dist.errors import InputError
from medssr_dist.inference.server_model import ModelCard, find_policy
from medssr_dist.inference.server_stream import StreamChunk, StreamedSamples, UnusableServer
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.http.event_stream import read_events

# --- the list of models --------------------------------------------------------------------------------


def find(*cards: dict, name: str = "", policy: Policy = POLICY, folder: Path = Path("/models/policy"), print_="f00d"):
    server = Server(base_url="http://node7:8000/v1", model=name)
    return find_policy([ModelCard(**card) for card in cards], server, policy, folder, print_)


@pytest.mark.parametrize(
    ("cards", "name", "words"),
    [
        ([], "", "serves nothing; name the one"),
        ([{"id": "a"}, {"id": "b"}], "", "serves 'a', 'b'; name the one that is the policy"),
        ([{"id": "a"}, {"id": "b"}], "c", "serves 'a', 'b', not 'c'"),
        ([{"id": "a"}, {"id": "tuned", "parent": "a"}], "tuned", "is an adapter of 'a'"),
        ([{"id": "policy", "owned_by": "sglang"}], "", "is a server of 'sglang'"),
        ([{"id": "x", "root": "Qwen/Qwen3-8B"}], "", "serves 'x' from 'Qwen/Qwen3-8B', which is not named as policy"),
        ([{"id": "policy", "max_model_len": 63}], "", "max_model_len = 63.*restart it with --max-model-len 64"),
    ],
)
def test_a_server_of_another_model_is_refused(cards, name, words):
    with pytest.raises(InputError, match=f"voting.servers: http://node7:8000/v1.*{words}"):
        find(*cards, name=name)


def test_the_policy_is_found():
    assert find({"id": "anything"}) == "anything"  # a server that reports nothing but a name
    assert find({"id": "x", "root": "/elsewhere/Policy", "max_model_len": 128, "owned_by": "vllm"}) == "x"
    assert find({"id": "x", "root": "/model"}, name="x") == "x"  # the user confirms it
    assert find({"id": "x", "root": "m/policy"}, {"id": "y", "root": "m/policy"}) == "x"  # two names of one model
    assert find({"id": "x", "root": "m/policy"}, {"id": "y", "root": "adapter", "parent": "x"}) == "x"
    assert find({"id": "x", "root": "m/policy"}, {"id": "y", "root": "z"}, name="x") == "x"


def test_a_readable_directory_is_compared_by_its_weights(tmp_path):
    mine, copy, other = (tmp_path / name / "policy" for name in ("mine", "copy", "other"))
    for folder, weights in ((mine, b"1"), (copy, b"1"), (other, b"2")):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(weights)
    fields = {"policy": Policy(model=str(mine)), "folder": mine, "print_": fingerprint_model(mine), "name": "x"}
    assert find({"id": "x", "root": str(copy)}, **fields) == "x"
    with pytest.raises(InputError, match="which has other weights than policy.model"):
        find({"id": "x", "root": str(other)}, **fields)


# --- the stream as bytes -------------------------------------------------------------------------------


class Pieces:
    """A stream that arrives in the given pieces."""

    def __init__(self, pieces: list[bytes]):
        self._pieces = pieces

    async def iter_any(self):
        for piece in self._pieces:
            yield piece


@given(st.data())
async def test_samples_are_whole_wherever_the_stream_is_cut(data):
    texts = data.draw(st.lists(st.lists(st.text(max_size=4), min_size=1, max_size=4), min_size=1, max_size=4))
    order = data.draw(st.permutations([index for index, pieces in enumerate(texts) for _ in pieces]))
    stream, said = b"", [0] * len(texts)
    for index in order:
        said[index] += 1
        ends = "stop" if said[index] == len(texts[index]) else None
        text = texts[index][said[index] - 1]
        chunk = {"choices": [{"index": index, "text": text, "finish_reason": ends}]}
        chunk["usage"] = {"completion_tokens": 2 * said[index]}
        stream += (
            b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + data.draw(st.sampled_from([b"\n", b"\r\n"]))
        )
        stream += b"\n"
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    streamed, samples = StreamedSamples(ask(n=len(texts), seed=10), 8), []
    async for line in read_events(Pieces(pieces).iter_any()):
        if sample := streamed.add(msgspec.json.decode(line, type=StreamChunk)):
            samples.append(sample)
    assert {sample.seed - 10: sample.text for sample in samples} == {i: "".join(t) for i, t in enumerate(texts)}
    assert (streamed.missing, streamed.tokens) == (0, 2 * len(order))


def stream_logprobs(*events: dict):
    streamed = StreamedSamples(ask(n=1, seed=3, logprobs=True), 8)
    found = [streamed.add(msgspec.convert(event, StreamChunk)) for event in events]
    return found[-1]


def event(text: str, tokens: int, logprobs: list[float] | None, reason: str | None = None) -> dict:
    choice = {"index": 0, "text": text, "finish_reason": reason}
    choice |= {"logprobs": {"token_logprobs": logprobs}} if logprobs is not None else {}
    return {"choices": [choice], "usage": {"completion_tokens": tokens}}


def test_the_mean_logprob_is_over_all_chunks():
    sample = stream_logprobs(event("The answer", 2, [-1.0, -2.0]), event(" is (A)", 4, [-3.0, -2.0], "stop"))
    assert (sample.logprob, sample.tokens, sample.answer) == (-2.0, 4, "A")


def test_a_server_without_logprobs_is_refused():
    with pytest.raises(UnusableServer, match="returns 0 log-probs for 4 tokens"):
        stream_logprobs(event("The answer is (A)", 4, None, "stop"))
