"""The method, top to bottom: synthesize -> vote -> train (stage 1, stage 2) -> evaluate.

Each step reads what the step before left in the run directory, does nothing when it is finished,
and goes on where it was when it is not; so the same command starts, resumes and re-reads a run.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from medssr_dist.config import Config
from medssr_dist.errors import InputError, Stopped
from medssr_dist.evaluation.benchmarks import read_benchmarks
from medssr_dist.jsonl import read_json, read_jsonl, write_json
from medssr_dist.memory import refuse_too_little_memory
from medssr_dist.readers import human_labelled, read_all, read_questions, refuse_evaluation_items, source_name
from medssr_dist.records import Question, content_hash, parse_record
from medssr_dist.run_dir import RunDir, commit, open_run
from medssr_dist.step_clock import step_clock
from medssr_dist.stream import kept_labels
from medssr_dist.summary import build_summary, render_summary

STEPS = ("synthesize", "vote", "train", "evaluate")


@dataclass(frozen=True)
class Session:
    """An open run: its config, its directory, whether it was asked to stop, and Ray when first needed."""

    config: Config
    run: RunDir
    should_stop: Callable[[], bool]
    start_ray: Callable[[], None]

    def once(self, step: str, inputs: dict[str, str], work: Callable[[], object]) -> None:
        """Do `work` unless `step` is finished with the same settings and inputs."""
        self.run.begin_step(step, self.config, inputs)
        if self.run.is_finished(step):
            print(f"{step}: already finished")
            return
        with step_clock(self.run.root, step):
            work()
        self.run.finish_step(step)


def run_steps(config: Config, root: Path, steps: tuple[str, ...] = STEPS) -> None:
    """Run `steps` of the method in the run directory `root`, then write and print the closing table.

    Raises:
        InputError: bad input, or a step whose predecessor has not run.
        Stopped: SIGTERM or Ctrl-C; the same command resumes.
    """
    if steps == STEPS and not config.training.uses_pseudo_labels:
        print("synthesize, vote: skipped, no training stage uses pseudo-labels")
        steps = ("train", "evaluate")
    with open_run(root, config) as run, _stop_on_signal() as should_stop, _ray_on_demand(config, run) as start_ray:
        session = Session(config, run, should_stop, start_ray)
        with step_clock(run.root, "run"):
            _run(session, steps)
        close(session)


def _run(session: Session, steps: tuple[str, ...]) -> None:
    refuse_bad_inputs(session, steps)
    if "synthesize" in steps:
        synthesize(session)
    if "vote" in steps and "train" in steps and session.config.runtime.mode == "stream":
        vote_into_stage1(session)
    else:
        if "vote" in steps:
            vote(session)
        if "train" in steps:
            train_stage1(session)
    if "train" in steps:
        train_stage2(session)
    if "evaluate" in steps:
        evaluate(session)


def refuse_bad_inputs(session: Session, steps: tuple[str, ...]) -> None:
    """Read what the later steps will need, so that nothing is paid for before it is known to be there."""
    config = session.config
    if set(steps) & {"vote", "train", "evaluate"}:
        _base_model(session)
    if "train" in steps and config.training.stage2.enabled:
        _supervised_questions(config)
    if "evaluate" in steps:
        read_benchmarks(config.evaluation, config.runtime.random_seed)


def synthesize(session: Session) -> None:
    """Step 1: new questions from seeds, rare-disease entities and passages."""
    from medssr_dist.knowledge.retrieval import Retriever, entities
    from medssr_dist.synthesis.run import Inputs, goes_on
    from medssr_dist.synthesis.run import synthesize as work

    config, folder = session.config, session.run.synthesis
    seeds = read_all(config.synthesis.seeds, config.runtime.random_seed)
    benchmarks = {
        source_name(source): read_questions(source, config.runtime.random_seed)
        for source in config.evaluation.benchmarks
    }
    refuse_evaluation_items(seeds, [question for items in benchmarks.values() for question in items])
    rare = entities(config.knowledge, config.runtime.random_seed) if config.synthesis.alpha > 0 else []
    retriever = Retriever(config.knowledge)

    def write_questions() -> None:
        retriever.prepare([entity.name for entity in rare])
        inputs = Inputs(seeds, benchmarks, rare, retriever.top_k, retriever.passage_text)
        work(config, folder, inputs, commit(), session.should_stop)

    if session.run.is_finished("synthesize") and goes_on(config.synthesis, folder):
        session.run.reopen_step("synthesize")
    session.once("synthesize", {"seeds": _ids_hash(seeds)}, write_questions)


def vote(session: Session, watch: Callable[[], object] | None = None) -> None:
    """Step 2: pseudo-labels by majority vote of the base policy.

    Args:
        watch: given where a trainer follows the labels; called after each question, what it raises ends the vote.
    """
    from medssr_dist.knowledge.vignettes import hpo_truth
    from medssr_dist.runtime.models import model_fingerprint
    from medssr_dist.voting.run import vote as work

    questions = _synthetic_questions(session.run)
    model = _base_model(session)

    def should_stop() -> bool:
        if watch is not None:
            watch()
        return session.should_stop()

    def take_votes() -> None:
        session.start_ray()
        work(session.config, questions, model, session.run.voting, hpo_truth, should_stop, watch is not None)

    session.once("vote", {"questions": _ids_hash(questions), "model": model_fingerprint(model)}, take_votes)


def vote_into_stage1(session: Session) -> None:
    """Steps 2 and 3a side by side: stage 1 trains on each kept label while the vote goes on."""
    if session.run.is_finished("vote") or not session.config.training.stage1.enabled:
        vote(session)
        train_stage1(session)
        return
    stage = _begin_stage1(session)
    try:
        with step_clock(session.run.root, "stage1"):
            vote(session, watch=stage.check)
            stage.wait(session.should_stop)
    except BaseException:
        stage.kill()
        raise
    session.run.finish_step("stage1")


def train_stage1(session: Session) -> None:
    """Step 3a: self-supervised GRPO on the kept pseudo-labels."""
    if not session.config.training.stage1.enabled:
        return
    _need_vote(session)
    session.once("stage1", _stage1_inputs(session), lambda: _begin_stage1(session).wait(session.should_stop))


def _need_vote(session: Session) -> None:
    if not session.run.is_finished("vote"):
        raise InputError(f"{session.run.root} has no finished vote to train on; run `medssr vote` first")


def _begin_stage1(session: Session):
    from medssr_dist.training.run import start_stage1

    session.run.begin_step("stage1", session.config, _stage1_inputs(session))
    session.start_ray()
    labels = session.run.voting / "labeled.jsonl"
    most = len(_synthetic_questions(session.run))
    return start_stage1(session.config, _base_model(session), labels, session.run.training("stage1"), most)


def _stage1_inputs(session: Session) -> dict[str, str]:
    from medssr_dist.runtime.models import model_fingerprint

    questions = _synthetic_questions(session.run)
    return {"questions": _ids_hash(questions), "model": model_fingerprint(_base_model(session))}


def train_stage2(session: Session) -> None:
    """Step 3b: supervised GRPO on human-annotated questions, from stage 1's weights."""
    from medssr_dist.runtime.models import model_fingerprint
    from medssr_dist.training.run import start_stage2

    config, stage = session.config, session.config.training.stage2
    if not stage.enabled:
        return
    if stage.mix_pseudo_labels:
        _need_vote(session)
    questions = _supervised_questions(config)
    base = _base_model(session)
    stage1 = session.run.training("stage1") / "hf"
    model = stage1 if config.training.stage1.enabled else base
    reference = stage1 if stage.reference == "stage1" else base
    labels = session.run.voting / "labeled.jsonl"
    folder = session.run.training("stage2")

    def train() -> None:
        session.start_ray()
        start_stage2(config, model, reference, questions, labels, folder).wait(session.should_stop)

    if not model.exists():
        raise InputError(f"stage 2 starts from stage 1's checkpoint, but {model} does not exist; run `medssr train`")
    inputs = {
        "data": _ids_hash(questions),
        "model": model_fingerprint(model),
        "reference": model_fingerprint(reference),
    }
    if stage.mix_pseudo_labels:
        inputs["labels"] = content_hash([[label.question.id, label.answer] for label in kept_labels(labels)])
    session.once("stage2", inputs, train)


def evaluate(session: Session) -> None:
    """Step 4: base, stage 1 and stage 2 side by side on every benchmark."""
    from medssr_dist.runtime.models import model_fingerprint

    config = session.config
    benchmarks = read_benchmarks(config.evaluation, config.runtime.random_seed)
    policies = _policies(session)
    _warn_of_unchecked(session.run, benchmarks)
    inputs = {name: model_fingerprint(folder) for name, folder in policies.items()}
    inputs |= {f"benchmark {name}": _ids_hash(questions) for name, questions in benchmarks.items()}
    session.once("evaluate", inputs, lambda: _evaluate_policies(session, benchmarks, policies))


def _warn_of_unchecked(run: RunDir, benchmarks: dict[str, list[Question]]) -> None:
    """Say which benchmarks came after the synthesis, whose questions were thus not compared with them."""
    if run.is_finished("synthesize"):
        checked = read_json(run.synthesis / "summary.json")["checked_against"]
        if later := [name for name in benchmarks if name not in checked]:
            print(f"warning: the synthetic questions were not checked for contamination with {', '.join(later)}")


def _evaluate_policies(session: Session, benchmarks: dict[str, list[Question]], policies: dict[str, Path]) -> None:
    from medssr_dist.evaluation.protocol import evaluate_policy
    from medssr_dist.evaluation.report import write_report
    from medssr_dist.evaluation.scores import build_scores
    from medssr_dist.runtime.engines import EnginePool
    from medssr_dist.runtime.models import load_tokenizer, model_fingerprint

    session.start_ray()
    config, voting = session.config, session.config.voting
    questions = [question for items in benchmarks.values() for question in items]
    answers, seconds = {}, {}
    for name, folder in policies.items():
        started = time.monotonic()
        print(f"evaluate {name}: {folder}")
        tokenizer = load_tokenizer(folder, config.policy)
        with EnginePool(
            folder, config.policy, config.runtime, voting.engines, voting.tensor_parallel_size, voting.shard_size
        ) as pool:
            answers[name] = evaluate_policy(
                pool, tokenizer, questions, config.evaluation, config.runtime.random_seed,
                session.run.evaluation / "answers.jsonl", policy=model_fingerprint(folder),
                should_stop=session.should_stop,
            )  # fmt: skip
        seconds[name] = round(time.monotonic() - started, 1)
    scores = build_scores(benchmarks, answers, config.evaluation, config.runtime.random_seed, seconds)
    write_report(scores, session.run.evaluation)


def close(session: Session) -> None:
    """Write summary.json and print the closing table."""
    summary = build_summary(session.run.root)
    write_json(session.run.summary_file, summary)
    print(render_summary(summary))


def _policies(session: Session) -> dict[str, Path]:
    """Those of `evaluation.policies` that the run has: name -> model directory."""
    folders = {"base": _base_model(session)}
    for stage in ("stage1", "stage2"):
        if getattr(session.config.training, stage).enabled:
            folders[stage] = session.run.training(stage) / "hf"
    wanted = {name: folders[name] for name in session.config.evaluation.policies if name in folders}
    for name, folder in wanted.items():
        if not folder.exists():
            raise InputError(f"{name} has no checkpoint in {folder}; run `medssr train`, or leave it out of "
                             "evaluation.policies")  # fmt: skip
    return wanted


def _base_model(session: Session) -> Path:
    from medssr_dist.runtime.models import resolve_model

    return resolve_model(session.config.policy)


def _synthetic_questions(run: RunDir) -> list[Question]:
    file = run.synthesis / "questions.jsonl"
    if not run.is_finished("synthesize"):
        raise InputError(f"{run.root} has no finished questions; run `medssr synthesize` first")
    return [parse_record(Question, row, str(file)) for row in read_jsonl(file)]


def _supervised_questions(config: Config) -> list[Question]:
    """Stage 2's questions, each with an answer and none from a benchmark."""
    questions = read_all(config.training.stage2.data, config.runtime.random_seed)
    human_labelled(questions)
    refuse_evaluation_items(questions, read_all(config.evaluation.benchmarks, config.runtime.random_seed))
    return questions


def _ids_hash(questions: list[Question]) -> str:
    return content_hash([[question.id, question.truth] for question in questions])


@contextmanager
def _ray_on_demand(config: Config, run: RunDir) -> Iterator[Callable[[], None]]:
    """Yields a function that starts Ray on its first call; a finished run never starts it."""
    with ExitStack() as stack:
        started = threading.Event()

        def start() -> None:
            from medssr_dist.runtime.cluster import ray_cluster

            if not started.is_set():
                refuse_too_little_memory(config)
                stack.enter_context(ray_cluster(config, run.logs))
                started.set()

        yield start


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """SIGTERM and the first Ctrl-C ask the run to stop at the next safe point; a second Ctrl-C ends it.

    SIGTERM may come twice, from Slurm and from the job's launcher.
    """
    asked = threading.Event()

    def ask(number, frame):
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    except Exception as error:
        # Ctrl-C also reaches the engines' processes; what their end raises here is part of the stop.
        if asked.is_set() and not isinstance(error, (Stopped, InputError)):
            raise Stopped("stopped; the same command resumes") from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
