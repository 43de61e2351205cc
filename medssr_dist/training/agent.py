"""The reward: OpenRLHF loads this file into each rollout engine (its `agent_func_path`).

Reward = 1 if the answer extracted from the generated text equals the label, else 0 (paper section
3.3). A reward that raises stops the run; OpenRLHF's own reward functions log it and go on.
"""

from __future__ import annotations

import json

from openrlhf.utils.agent import SingleTurnAgentExecutor

from medssr_dist.answers import extract_answer, grade


class AgentExecutor(SingleTurnAgentExecutor):
    """One generation a prompt, graded by the same extractor as vote and evaluation."""

    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=None):
        output = await super().execute(prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images)
        start, end = output["action_ranges"][0]
        text = hf_tokenizer.decode(output["observation_tokens"][start:end], skip_special_tokens=True)
        target = json.loads(label)
        reward = grade(text, target["options"], target["answer"])
        invalid = float(extract_answer(text, target["options"]).letter is None)
        return output | {"reward": reward, "scores": reward, "extra_logs": {"invalid_answer": invalid}}
