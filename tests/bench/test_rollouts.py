"""The benchmark of rollouts: simulated over-draw, figures of a stage, and the precision of labels by step."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial

from config_builder import make_config
from step_rows import append_steps, make_metrics
from stored_votes import write_labels
from stream_parts import label, make_prompts, question

from medssr_dist.bench.rollouts.label_precision import read_revotes
from medssr_dist.bench.rollouts.meter_cost import MeterCost, format_meter
from medssr_dist.bench.rollouts.over_draw_rounds import FOUR_NODES, compare_draws
from medssr_dist.bench.rollouts.run import format_draws, format_revotes, format_stages
from medssr_dist.bench.rollouts.stage_runs import read_figures
from medssr_dist.inference.requests import CompletedRequest, Completion
from medssr_dist.run.directory import RunDir
from medssr_dist.training.rollout.examples import PromptLoader, make_labeled_example
from medssr_dist.training.rollout.revoter import Revoter
from medssr_dist.voting.online_vote import vote_online

SMALL = replace(FOUR_NODES, prompts=16, samples=2, length_mean=40.0, length_deviation=25.0, longest=120, steps=8)


def test_over_draw_takes_fewer_rounds_for_the_same_prompts():
    figures = compare_draws(SMALL)
    assert figures.speedup > 1.5
    assert abs(figures.one_by_one.prompts_drawn - figures.over_draw.prompts_drawn) < 2
    assert figures.one_by_one.groups_carried == 0 < figures.over_draw.groups_carried
    assert f"{figures.speedup:.2f}" in format_draws([figures])
    json.dumps(asdict(figures))


def test_without_flat_groups_there_is_nothing_to_gain():
    figures = compare_draws(replace(SMALL, flat=0.0))
    assert figures.speedup == 1 and figures.over_draw.groups_carried == 0


def test_the_figures_of_a_stage_are_sums_over_its_steps(tmp_path):
    run = RunDir(tmp_path)
    (tmp_path / "config.resolved.json").write_text('{"training": {"stage1": {"samples_per_prompt": 8}}}')
    run.stage("stage1").folder.mkdir(parents=True)
    row = {"samples": 16.0, "seconds": 3.0, "prompts_drawn": 3, "reward": 0.5}
    append_steps(run.stage("stage1").metrics, make_metrics(1, **row, tokens_drawn=7), make_metrics(2, **row))
    figures = read_figures(run)
    assert (figures.steps, figures.tokens_drawn, figures.drawn_per_trained, figures.seconds) == (2, 7, 1.5, 6.0)
    assert "1.50" in format_stages({"votes": figures})


def test_the_share_of_the_meter_is_what_both_parts_take_longer():
    cost = MeterCost(7000, 10.5, 10.0, 0.55, 0.5, rollout_ratio=1.05, loss_ratio=1.1, step_seconds=55.0)
    assert round(cost.share, 6) == 0.01  # 0.5 s and 0.05 s of 55 s
    assert "1.050" in format_meter(cost) and "1.0%" in format_meter(cost)


class AlwaysB:
    """Engines whose every vote is B."""

    def __init__(self):
        self._requests = []

    def submit(self, request) -> None:
        self._requests.append(request)

    def next_completed(self) -> CompletedRequest:
        request = self._requests.pop()
        texts = [
            Completion.from_text(request, request.seed + i, "The answer is B.", 4, False) for i in range(request.n)
        ]
        return CompletedRequest(request.key, texts)


def test_the_precision_of_both_votes_is_of_the_same_questions(tmp_path, monkeypatch):
    monkeypatch.setattr("medssr_dist.bench.rollouts.label_precision.find_hpo_truth", lambda asked: "B")
    run, config = RunDir(tmp_path), make_config(voting={"samples": 4, "threshold": 0.5, "online": {"every": 2}})
    labels = [label(question(number)) for number in range(3)]
    write_labels(run.voting.folder, labels)
    examples = [make_labeled_example(each) for each in labels]
    loader = PromptLoader(lambda start: enumerate(examples[start:], start + 1), make_prompts(), 10**6)
    stage = run.stage("stage1")
    revoter = Revoter(partial(vote_online, config), 2, 9, True, "base", stage, loader, make_prompts(), AlwaysB())
    revoter.vote_if_due(2, drawn=1)
    (found,) = read_revotes(run)
    assert (found.step, found.questions, found.votes, found.full_votes) == (2, 2, 6, 8)
    assert (found.offline.share, found.online.share) == (0, 1)
    assert found.flips == found.traced == 2
    assert "0.75" in format_revotes([found])
