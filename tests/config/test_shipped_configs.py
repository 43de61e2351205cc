"""Each shipped config loads, each ablation differs from its base in one way, and the package reads every key."""

import ast
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from places import REPO
from pydantic import BaseModel

from medssr_dist.config.load import dump_config, load_config
from medssr_dist.config.schema import Config
from medssr_dist.config.synthesis import CorpusColumns
from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.synthesis.checks import flaws
from medssr_dist.synthesis.judge import CRITERIA
from medssr_dist.training.collapse_guard import SIGNALS

CONFIGS = sorted(
    file for file in (REPO / "configs").rglob("*.yaml") if file.parent.name not in ("benchmarks", "prompts")
)
ABLATIONS = {
    "no_knowledge": {"synthesis.alpha": (0.5, 0.0)},
    "no_filter": {"voting.threshold": (0.5, 0.0)},
    "no_stage1": {"training.stage1.enabled": (True, False)},
    "no_stage2": {"training.stage2.enabled": (True, False)},
    "single_stage_mix": {
        "training.stage1.enabled": (True, False),
        "training.stage2.mix_pseudo_labels": (False, True),
    },
}


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix.removesuffix("."): tree}
    return {key: value for name, below in tree.items() for key, value in flat(below, f"{prefix}{name}.").items()}


@pytest.fixture
def load(monkeypatch):
    """Return a function that loads a config; each environment variable in a shipped config has a value."""
    for file in CONFIGS:
        for name in re.findall(r"\$\{(\w+)\}", file.read_text(encoding="utf-8")):
            monkeypatch.setenv(name, f"https://host/{name}" if name.endswith("_BASE") else f"value-of-{name}")
    return lambda name, *overrides: load_config(REPO / "configs" / name, list(overrides))


def test_the_set_is_complete():
    found = {str(file.relative_to(REPO / "configs")) for file in CONFIGS}
    ablations = {f"ablations/{name}.yaml" for name in ABLATIONS}
    assert found >= {"demo_cpu.yaml", "qwen3_8b_base.yaml", "qwen3_8b.yaml", "llama31_8b.yaml"} | ablations


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_it_loads_and_survives_a_round_trip(load, file):
    config = load(file)
    assert isinstance(config, Config)
    tree = dump_config(config)
    for endpoint in tree["synthesis"]["endpoints"]:
        endpoint["api_key"] = None
    assert flat(dump_config(Config.model_validate(tree))) == flat(tree)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_it_holds_no_secret_and_no_machine_path(load, file):
    text = file.read_text(encoding="utf-8")
    assert not re.search(r"sk-\w{8}|Bearer|/home/|/root|/work|/mnt|/scratch", text)
    for endpoint in load(file).synthesis.endpoints:
        assert endpoint.api_key is None or endpoint.api_key.get_secret_value().startswith("value-of-")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_it_starts_with_a_description(file):
    assert file.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_no_evaluation_file_is_trained_on(load, file):
    config = load(file)
    evaluation = {source.path for source in config.evaluation.benchmarks}
    assert evaluation
    assert not evaluation & {source.path for source in [*config.synthesis.seeds, *config.training.stage2.data]}


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_only_what_its_name_says(load, name):
    base, ablation = flat(dump_config(load("qwen3_8b.yaml"))), flat(dump_config(load(f"ablations/{name}.yaml")))
    assert base.keys() == ablation.keys()
    assert {key: (base[key], ablation[key]) for key in base if base[key] != ablation[key]} == ABLATIONS[name]


BIG = {
    "qwen3_8b_base.yaml": ("Qwen/Qwen3-8B-Base", "base", {}),
    "qwen3_8b.yaml": ("Qwen/Qwen3-8B", "reason", {"enable_thinking": False}),
    "llama31_8b.yaml": ("meta-llama/Llama-3.1-8B-Instruct", "reason", {}),
}


@pytest.mark.parametrize(("name", "expected"), BIG.items())
def test_the_models_differ_only_in_how_they_are_asked(load, name, expected):
    base, policy = load("qwen3_8b_base.yaml"), load(name).policy
    assert (policy.model, policy.prompt.name, policy.chat_template_kwargs) == expected
    assert load(name).model_copy(update={"policy": base.policy}) == base


@pytest.mark.parametrize("file", sorted((REPO / "configs" / "prompts").glob("*.yaml")), ids=lambda file: file.stem)
def test_a_prompt_is_valid_and_can_be_named(load, file):
    assert load("qwen3_8b.yaml", f"policy.prompt={file}").policy.prompt == load_prompt_form(str(file))


@pytest.mark.parametrize("name", BIG)
def test_the_papers_figures(load, name):
    config = load(name)
    evaluation = config.evaluation
    protocol = (evaluation.generations, evaluation.temperature, evaluation.top_p, evaluation.top_k)
    assert (*protocol, evaluation.max_tokens) == (4, 0.6, 0.95, 20, 2048)
    assert (config.synthesis.accepted, config.knowledge.encoder) == (43000, "medcpt")
    assert config.training.stage1.kl_coef > 0
    assert len(config.evaluation.benchmarks) == 10  # the named set
    for stage in (config.training.stage1, config.training.stage2):
        assert (stage.prompts_per_step, stage.samples_per_prompt) == (128, 8)
        assert stage.sequences % config.training.ranks == 0


@pytest.mark.parametrize(
    ("name", "model"), [("demo_cpu", "embedded:medssr-mini"), ("smollm2_cpu", "embedded:smollm2-135m")]
)
def test_the_demos_need_no_download(monkeypatch, name, model):
    monkeypatch.delenv("MEDSSR_DATA", raising=False)
    config = load_config(REPO / "configs" / f"{name}.yaml")
    assert (config.policy.model, config.policy.dtype) == (model, "float32")
    assert (config.knowledge.encoder, config.synthesis.endpoints[0].base_url) == ("minilm", "offline-teacher")
    sources = [*config.knowledge.corpora, *config.synthesis.seeds, *config.training.stage2.data]
    assert all(source.path.startswith("hpo:") for source in [*sources, *config.evaluation.benchmarks])
    assert config.training.stage1.steps == config.training.stage2.steps > 0
    assert (config.training.attention, config.runtime.mode) == ("sdpa", "stream")


# --- every field is read ----------------------------------------------------------------------------

# Names of variables that hold a section, where they are not the section's own name.
ALIASES = {
    "stage1": {"stage"},
    "stage2": {"stage"},
    "corpora": {"source", "corpus"},
    "seeds": {"source"},
    "data": {"source"},
}
ALIASES |= {"benchmarks": {"source"}, "endpoints": {"endpoint"}, "knowledge": {"_knowledge"}, "": {"config", "found"}}
ALIASES |= {"synthesis": {"_synthesis"}, "retry": {"_retry"}, "budget": {"_budget"}, "prices": {"price"}}
ALIASES |= {"prompt": {"form", "self", "_system", "prompts"}}
ALIASES |= {"guard": {"settings", "_settings"}, "calibrate": {"wanted"}}
ALIASES |= {"checks": {"_checks"}, "voting": {"_voting"}, "servers": {"server", "_server"}}


def section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)


def fields(section: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each field of the config, sections included."""
    for name, field in section.model_fields.items():
        yield (*path, name)
        if below := section_in(field.annotation):
            yield from fields(below, (*path, name))


def names_read() -> set[tuple[str, str]]:
    """Return (object, attribute) of each attribute that the package reads outside config/."""
    found = set()
    for file in [*(REPO / "medssr_dist").rglob("*.py"), *(REPO / "launch").rglob("*.py")]:
        if file.parent.name == "config":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name | ast.Attribute):
                owner = node.value
                found.add((owner.id if isinstance(owner, ast.Name) else owner.attr, node.attr))
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
                owner = node.args[0]
                name = owner.id if isinstance(owner, ast.Name) else getattr(owner, "attr", "")
                found |= {(name, "stage1"), (name, "stage2")} if isinstance(node.args[1], ast.Name) else set()
    return found


def test_every_key_is_read():
    read = names_read() | {("synthesis", "candidates")}  # through Synthesis.most_candidates
    read |= {("checks", name) for name, check in vars(flaws).items() if callable(check)}  # Screen asks by name
    read |= {("judge", name) for name in CRITERIA} | {("judge", "endpoints")}  # by name; Synthesis.judge_endpoints
    read |= {("guard", signal.name) for signal in SIGNALS}  # by name
    read |= {("columns", name) for name in CorpusColumns.model_fields}  # by name
    read |= {("voting", "record_logprobs")}  # through Voting.needs_logprobs
    unread = []
    for path in fields(Config):
        parent = path[-2] if len(path) > 1 else ""
        if not any((owner, path[-1]) in read for owner in {parent} | ALIASES.get(parent, set())):
            unread.append(".".join(path))
    assert unread == []


def test_every_key_is_documented():
    """Each field has a description, unless its meaning is clear from its name and type."""
    plain = {
        "enabled",
        "learning_rate",
        "lr_scheduler",
        "top_p",
        "keep_checkpoints",
        "random_seed",
        "gradient_checkpointing",
        "temperature",
    }
    sections = {section_in(field.annotation) for field in Config.model_fields.values()}
    undocumented = [
        f"{section.__name__}.{name}"
        for section in sections
        for name, field in section.model_fields.items()
        if not field.description and name not in plain and section_in(field.annotation) is None
    ]
    assert undocumented == []
