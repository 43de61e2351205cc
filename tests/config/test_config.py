"""Loading a config: overrides, ${ENV}, and error messages with key, value and fix."""

import json

import pytest
import yaml
from config_builder import config_tree, write_config

from medssr_dist.config.load import dump_config, load_config
from medssr_dist.config.schema import Config
from medssr_dist.errors import InputError

SECTIONS = {
    "synthesis": {
        "accepted": 8,
        "endpoints": [{"base_url": "http://localhost:1/v1", "model": "m", "api_key": "${TEST_KEY}"}],
    },
    "training": {"stage2": {"enabled": True, "data": [{"path": "hpo:supervised", "limit": 4}]}},
    "evaluation": {"benchmarks": ["a.json", {"path": "b.json", "name": "b"}]},
}


@pytest.fixture
def config_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    return write_config(tmp_path / "config.yaml", **SECTIONS)


def refused(config_file, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        load_config(config_file, list(overrides))
    return str(error.value)


def test_defaults_sources_and_overrides(config_file):
    config = load_config(config_file, ["voting.samples=4", "synthesis.alpha=0", "synthesis.seeds=[x.jsonl, hpo:seeds]"])
    assert (config.voting.samples, config.synthesis.alpha, config.voting.threshold) == (4, 0.0, 0.5)
    assert [source.path for source in config.synthesis.seeds] == ["x.jsonl", "hpo:seeds"]
    assert (config.evaluation.benchmarks[1].name, config.training.stage2.data[0].limit) == ("b", 4)
    protocol = config.evaluation
    assert (protocol.generations, protocol.temperature, protocol.top_p, protocol.top_k) == (4, 0.6, 0.95, 20)


def test_an_override_reaches_into_a_list(config_file):
    config = load_config(config_file, ["synthesis.endpoints.0.concurrency=3", "evaluation.benchmarks.1.limit=2"])
    assert config.synthesis.endpoints[0].concurrency == 3
    assert [source.limit for source in config.evaluation.benchmarks] == [0, 2]


def test_resolved_is_json_without_the_secret(config_file):
    config = load_config(config_file)
    text = json.dumps(dump_config(config))
    assert "sk-secret" not in text and "********" in text
    assert config.synthesis.endpoints[0].api_key.get_secret_value() == "sk-secret"
    tree = json.loads(text)
    tree["synthesis"]["endpoints"][0]["api_key"] = "sk-secret"
    assert Config.model_validate(tree) == config


@pytest.mark.parametrize(
    ("override", "needles"),
    [
        ("voting.sample=4", ["'voting.sample'", "did you mean 'voting.samples'?"]),
        ("votign.samples=4", ["'votign'", "did you mean 'voting'?"]),
        ("evaluation.zzz=1", ["'evaluation.zzz'", "valid keys: evaluation.benchmarks, evaluation.generations"]),
        ("training.stage2.data=[{path: x, limt: 1}]", ["limt", "did you mean 'training.stage2.data.N.limit'"]),
        ("synthesis.budget=0.5", ["synthesis.budget = 0.5: it is a section", "`medssr config keys synthesis.budget`"]),
        ("training.stage2=[1]", ["training.stage2 is a list: it is a section", "such as training.stage2."]),
        (
            "synthesis.seeds=x.jsonl",
            ["override: synthesis.seeds = 'x.jsonl': must be a list; write synthesis.seeds='["],
        ),
        ("synthesis.alpha=1.5", ["synthesis.alpha = 1.5", "less than or equal to 1"]),
        ("synthesis.alpha=-0.1", ["synthesis.alpha = -0.1"]),
        ("synthesis.seeds=[]", ["synthesis.seeds"]),
        ("voting.samples=many", ["voting.samples = 'many'"]),
        ("evaluation.max_tokens=4096", ["evaluation.max_tokens = 4096", "policy.max_model_len = 4096"]),
        ("training.stage1.updates_per_rollout=65", ["stage1", "512 is fewer", "8 x 65"]),
        ("training.stage2.data=[]", ["stage2.data is empty"]),
        ("training.async_rollout=true", ["training.async_rollout was removed", "training.max_policy_lag=1"]),
        ("training.max_policy_lag=2", ["stage1: max_policy_lag = 2", "training.stage1.importance=token"]),
        ("training.over_draw=true", ["over_draw trains on surplus groups", "training.max_policy_lag=1"]),
        ("training.sync_timeout_s=0", ["training.sync_timeout_s = 0"]),
        ("evaluation.policies=[stage3]", ["evaluation.policies.0 = 'stage3'"]),
        ("voting.samples", ["key=value"]),
        ("=4", ["key=value"]),
        ("voting.samples=[", ["not valid YAML"]),
        ("policy.model.name=x", ["model is a value, not a section"]),
        ("synthesis.endpoints.0.api_key=sk-secret", ["synthesis.endpoints.0.api_key", "environment variable"]),
        ("synthesis.endpoints.0.api_key=${NOT_SET}", ["NOT_SET", "export"]),
        ("synthesis.endpoints=[{base_url: u, model: m, api_key: sk-secret}]", ["endpoints.0.api_key"]),
        ("synthesis.endpoints.1.model=x", ["1 is no item of a list of 1"]),
        ("synthesis.endpoints.first.model=x", ["first is no item"]),
        ("synthesis.endpoints.0.modell=x", ["did you mean 'synthesis.endpoints.N.model'"]),
        ("synthesis.candidates=7", ["candidates = 7", "accepted = 8"]),
        ("synthesis.budget.usd=1", ["price of 'm'", "synthesis.prices"]),
        ("synthesis.checks.near_duplicat=0", ["did you mean 'synthesis.checks.near_duplicate'"]),
        ("voting.confidence=${TEST_KEY}", ["voting.confidence", "secrets and paths only"]),
    ],
)
def test_bad_values_name_key_value_and_fix(config_file, override, needles):
    message = refused(config_file, override)
    assert "sk-secret" not in message
    for needle in needles:
        assert needle in message, message


def test_an_error_says_whether_file_or_override_has_it(config_file):
    config_file.write_text(config_file.read_text().replace("accepted: 8", "accepted: 0"))
    message = refused(config_file, "votin.samples=3", "synthesis.alpha=7")
    assert f"{config_file}: synthesis.accepted = 0" in message
    assert "override: synthesis.alpha = 7" in message and "unknown key 'votin'" in message


@pytest.mark.parametrize(
    "override",
    [
        "voting.kept=900",
        "synthesis.candidates=7",
        "policy.max_model_len=64",
        "training.guard.length_ratio=0.5",
        "training.validate.every=4",
        "training.guard={validation_fall: 0.1, agreement_fall: 0, vote_entropy_floor: 0, letter_entropy_fall: 0, "
        "length_ratio: 0, truncation_rise: 0}",
    ],
)
def test_an_override_that_does_not_fit_the_file_is_named_as_such(config_file, override):
    assert refused(config_file, "voting.samples=5", override).startswith("override: ")


def extend(config_file, text: str):
    """Return a config file with `text` that extends `config_file`."""
    file = config_file.with_name("more.yaml")
    file.write_text(f"extends: {config_file.name}\n{text}\n", encoding="utf-8")
    return file


def test_a_section_that_is_off_can_be_set_key_by_key(config_file):
    file = extend(config_file, "training: {validate: null}")
    config = load_config(file, ["training.validate.data=[hpo:mini-check]", "training.validate.every=4"])
    assert config.training.validation.every == 4


def test_a_key_missing_in_a_section_of_the_file_is_named_as_its(config_file):
    file = extend(config_file, "training: {validate: {every: 2}}")
    assert refused(file, "training.validate.every=4").startswith(f"{file}: training.validate.data is missing")


def test_a_section_that_an_override_replaces_is_named_as_its(config_file):
    file = extend(config_file, "training: {validate: {data: [hpo:mini-check]}}")
    assert refused(file, "training.validate={every: 4}").startswith("override: training.validate.data is missing")


def test_a_file_that_does_not_fit_itself_is_named(config_file):
    config_file.write_text(config_file.read_text().replace("accepted: 8", "accepted: 8\n  candidates: 7"))
    assert refused(config_file, "synthesis.alpha=0.5").startswith(f"{config_file}: synthesis: candidates = 7")


def test_stage2_reference_needs_stage1(config_file):
    message = refused(config_file, "training.stage2.reference=stage1", "training.stage1.enabled=false")
    assert "reference: base" in message


@pytest.mark.parametrize("key", ["rollout=grouped", "weight_sync=packed", "logprob=kernels", "stage1.top_p=0.9"])
def test_a_removed_key_says_what_to_do(config_file, key):
    message = refused(config_file, f"training.{key}")
    assert f"training.{key.partition('=')[0]} was removed" in message and "remove the key" in message


def test_missing_value_is_named(config_file):
    tree = {key: value for key, value in config_tree(**SECTIONS).items() if key != "policy"}
    config_file.write_text(yaml.safe_dump(tree))
    assert "policy is missing" in refused(config_file)
    assert load_config(config_file, ["policy.model=x"]).policy.model == "x"


def test_environment_variables_in_paths(config_file, monkeypatch):
    monkeypatch.setenv("DATA", "/data")
    config = load_config(config_file, ["evaluation.benchmarks=[{path: '${DATA}/x.json'}, '${DATA}/y.json']"])
    assert [source.path for source in config.evaluation.benchmarks] == ["/data/x.json", "/data/y.json"]


@pytest.mark.parametrize(
    ("content", "needle"),
    [(b"", "holds no settings"), (b"- 1", "holds no settings"), (b"a: [", "not valid YAML"), (b"\xff", "UTF-8")],
)
def test_unusable_files(tmp_path, content, needle):
    (tmp_path / "c.yaml").write_bytes(content)
    assert needle in refused(tmp_path / "c.yaml")


def test_absent_file(tmp_path):
    assert "does not exist" in refused(tmp_path / "none.yaml")


@pytest.mark.parametrize("word", ["true", "yes", "on", "off"])
@pytest.mark.parametrize("key", ["voting.samples", "voting.threshold", "synthesis.budget.tokens"])
def test_a_truth_value_is_no_number(config_file, key, word):
    with pytest.raises(InputError, match=f"{key}.*a number is needed here"):
        load_config(config_file, [f"{key}={word}"])


def test_settings_cannot_change(config_file):
    with pytest.raises(ValueError, match="frozen"):
        load_config(config_file).voting.samples = 3
