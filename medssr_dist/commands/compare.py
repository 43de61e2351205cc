"""`medssr compare RUN_A RUN_B`: which settings two runs differ in, and their scores question by question.

Only questions that both runs have answered are compared, and of each the same number of generations. Both runs must
have drawn their answers with the same sampling settings. The differences are paired, as in scores.json.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from medssr_dist.data.records import read_record
from medssr_dist.errors import InputError
from medssr_dist.evaluation.question_letters import FinalLetters, QuestionLetters, read_question_letters
from medssr_dist.evaluation.score_rows import align_table, format_accuracy, format_difference
from medssr_dist.evaluation.scores import (
    MACRO,
    OTHERS,
    RARE,
    Accuracy,
    ProtocolName,
    ProtocolScores,
    Scores,
    read_scores,
)
from medssr_dist.evaluation.scoring import compare_rows, score_rows
from medssr_dist.run.directory import flatten_settings
from medssr_dist.run.paths import RunPaths

_SAMPLING = ("temperature", "top_p", "top_k", "max_tokens")
_FIRST, _SECOND = "A", "B"


class EvaluatedRun(NamedTuple):
    """What is compared of a run. `settings`: its config by dotted key."""

    root: Path
    settings: dict[str, Any]
    scores: Scores
    letters: list[QuestionLetters]


class PolicyPair(NamedTuple):
    """A policy of each run. Example: PolicyPair("stage2", "stage1")."""

    first: str
    second: str


def compare_runs(first: Path, second: Path) -> None:
    """Print the settings in which two runs differ, and the scores of their policies with paired differences.

    Raises:
        InputError: it is the same run twice, a run has no evaluation, or the two have other sampling settings,
            benchmarks or right answers.
    """
    if first.resolve() == second.resolve():
        raise InputError(f"{first} and {second} are the same run; give two runs")
    runs = [_read_run(first), _read_run(second)]
    _refuse_other_sampling(*runs)
    shared = _match_questions(*runs)
    for name, run in zip((_FIRST, _SECOND), runs, strict=True):
        print(f"{name}: {run.root}, {len(run.letters):,} questions, {run.scores.protocol.generations} generations")
    _print_settings(*runs)
    generations = min(run.scores.protocol.generations for run in runs)
    sampling = ", ".join(f"{name} {getattr(runs[0].scores.protocol, name)}" for name in _SAMPLING)
    print(f"compared: {len(shared):,} questions that both have answered, {generations} generations; {sampling}")
    for pair in _list_pairs(*(list(run.scores.policies) for run in runs)):
        rows = [_join(one, other, pair, generations) for one, other in shared]
        for protocol in dict.fromkeys(run.scores.protocol.headline for run in runs):
            print(f"\n{pair.first} of {_FIRST} and {pair.second} of {_SECOND}, protocol {protocol}, percent:")
            print("\n".join(align_table(_list_cells(rows, protocol))))


def _read_run(root: Path) -> EvaluatedRun:
    run = RunPaths(root)
    if not run.config_file.exists():
        raise InputError(f"{root} is no run directory: it has no {run.config_file.name}; check the path")
    if not run.evaluation.scores.exists():
        raise InputError(f"{root} has no scores; run `medssr evaluate` for it first")
    scores = read_scores(run.evaluation.scores)
    if not scores.policies:
        raise InputError(f"{run.evaluation.scores} has no policy; {_evaluate_again(run.evaluation.scores)}")
    if not run.evaluation.letters.exists():
        raise InputError(
            f"{root} was evaluated by an older version, without {run.evaluation.letters.name}; run `medssr evaluate` "
            "for it again, which uses its stored answers"
        )
    letters = read_question_letters(run.evaluation.letters)
    _refuse_lost_letters(run.evaluation.letters, letters, scores)
    return EvaluatedRun(root, flatten_settings(read_record(dict[str, Any], run.config_file)), scores, letters)


def _refuse_lost_letters(file: Path, letters: list[QuestionLetters], scores: Scores) -> None:
    """Raise InputError if `file` lacks letters that the scores were computed from."""
    fix = _evaluate_again(file)
    counts = Counter(row.benchmark for row in letters)
    for name, facts in scores.benchmarks.items():
        if counts[name] != facts.questions:
            raise InputError(f"{file} has {counts[name]:,} of {facts.questions:,} questions of {name}; {fix}")
    for row in letters:
        for policy, scored in scores.policies.items():
            for protocol in scored.protocols:
                given = row.policies.get(policy, {}).get(protocol)
                if given is None or len(given.letters) != scores.protocol.generations:
                    raise InputError(
                        f"{file}: question {row.question_id} of {row.benchmark} lacks letters of {policy}, protocol "
                        f"{protocol}; {fix}"
                    )


def _evaluate_again(file: Path) -> str:
    return f"delete {file} and run `medssr evaluate` for the run again, which uses its stored answers"


def _refuse_other_sampling(first: EvaluatedRun, second: EvaluatedRun) -> None:
    for name in _SAMPLING:
        one, other = (getattr(run.scores.protocol, name) for run in (first, second))
        if one != other:
            raise InputError(
                f"the answers of {first.root} and {second.root} were not drawn alike: evaluation.{name} is {one} and "
                f"{other}; evaluate one of them again with the other's value"
            )


def _match_questions(first: EvaluatedRun, second: EvaluatedRun) -> list[tuple[QuestionLetters, QuestionLetters]]:
    """Return the rows of the questions that both runs have answered; copies of a question are matched one by one."""
    others = dict(zip(_number_copies(second.letters), second.letters, strict=True))
    keys = _number_copies(first.letters)
    shared = [(row, others[key]) for key, row in zip(keys, first.letters, strict=True) if key in others]
    if not shared:
        names = [", ".join(run.scores.benchmarks) for run in (first, second)]
        raise InputError(
            f"{first.root} ({names[0]}) and {second.root} ({names[1]}) share no question of any benchmark; evaluate "
            "both on the same evaluation.benchmarks"
        )
    for one, other in shared:
        if one.truth != other.truth:
            raise InputError(
                f"question {one.question_id} of {one.benchmark} has the answer {one.truth} in {first.root} and "
                f"{other.truth} in {second.root}; evaluate both on the same file"
            )
    return shared


def _number_copies(rows: list[QuestionLetters]) -> list[tuple[str, str, int]]:
    """Return (benchmark, question id, number of earlier copies) of each row."""
    seen: Counter[tuple[str, str]] = Counter()
    keys = []
    for row in rows:
        keys.append((row.benchmark, row.question_id, seen[row.benchmark, row.question_id]))
        seen[row.benchmark, row.question_id] += 1
    return keys


def _print_settings(first: EvaluatedRun, second: EvaluatedRun) -> None:
    changed = [
        (key, _show(first.settings, key), _show(second.settings, key))
        for key in sorted(first.settings.keys() | second.settings.keys())
        if first.settings.get(key) != second.settings.get(key)
    ]
    print(f"settings: {len(changed)} differ")
    for key, one, other in changed:
        print(f"  {key}: {one} -> {other}")


def _show(settings: dict[str, Any], key: str) -> str:
    return json.dumps(settings[key], ensure_ascii=False) if key in settings else "(not there)"


def _list_pairs(first: list[str], second: list[str]) -> list[PolicyPair]:
    """Return the policies that both have, and the last policy of each where these have other names."""
    pairs = [PolicyPair(name, name) for name in first if name in second]
    last = PolicyPair(first[-1], second[-1])
    return pairs if last in pairs else [*pairs, last]


def _join(one: QuestionLetters, other: QuestionLetters, pair: PolicyPair, generations: int) -> QuestionLetters:
    """Return the question with the policy of each run under the run's name."""
    policies = {_FIRST: one.policies[pair.first], _SECOND: other.policies[pair.second]}
    cut = {
        name: {protocol: FinalLetters(letters=given.letters[:generations]) for protocol, given in by_protocol.items()}
        for name, by_protocol in policies.items()
    }
    return one.model_copy(update={"policies": cut})


def _list_cells(rows: Sequence[QuestionLetters], protocol: ProtocolName) -> list[list[str]]:
    scores = [score_rows(rows, name, protocol, lambda part: 0) for name in (_FIRST, _SECOND)]
    table = [["benchmark", "questions", _FIRST, _SECOND, f"{_SECOND} - {_FIRST}"]]
    for found in compare_rows(rows, (_FIRST, _SECOND), protocol):
        cells = [format_accuracy(_find_score(each, found.on)) for each in scores]
        table.append([found.on, f"{found.questions:,}", *cells, format_difference(found)])
    return table


def _find_score(scores: ProtocolScores, on: str) -> Accuracy:
    if on == MACRO:
        return scores.macro
    named = {RARE: scores.rare, OTHERS: scores.others}.get(on)
    return named or scores.benchmarks[on]
