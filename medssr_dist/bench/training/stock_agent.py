"""The reward for OpenRLHF's own sample generator, which loads this file into each engine (`agent_func_path`).

An error in the reward ends the run. OpenRLHF's own reward functions log it and continue.
"""

from __future__ import annotations

from openrlhf.utils.agent import SingleTurnAgentExecutor

from medssr_dist.training.rollout.reward import score


class AgentExecutor(SingleTurnAgentExecutor):
    """One generation for each prompt, graded by the extractor and grader of vote and evaluation."""

    async def execute(self, prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images=None):
        output = await super().execute(prompt, label, sampling_params, max_length, hf_tokenizer, llm_engine, images)
        start, end = output["action_ranges"][0]
        text = hf_tokenizer.decode(output["observation_tokens"][start:end], skip_special_tokens=True)
        reward, letter = score(text, label)
        return output | {"reward": reward, "scores": reward, "extra_logs": {"invalid_answer": float(letter is None)}}
