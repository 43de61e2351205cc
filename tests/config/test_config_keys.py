"""The list of the config's keys, docs/config.md, suggestions, missing variables, and where values come from."""

import pytest
from config_builder import write_config
from places import REPO

from medssr_dist.cli import main
from medssr_dist.commands.completion import complete_key
from medssr_dist.commands.config_command import init_config, print_keys, show_config
from medssr_dist.config.key_list import find_keys, list_keys_of_config, render_markdown, suggest_paths
from medssr_dist.config.load import load_config
from medssr_dist.config.shipped import find_config_file, list_shipped_configs
from medssr_dist.config.value_origins import trace_config
from medssr_dist.errors import InputError


def test_docs_config_is_the_schema():
    """If this fails: medssr config keys --markdown > docs/config.md."""
    assert (REPO / "docs/config.md").read_text(encoding="utf-8") == render_markdown()


def test_every_key_has_a_meaning():
    assert [key.path for key in list_keys_of_config() if not key.description] == []


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("voting.samples", "voting.samples"),
        ("SEED_PAIRS", "synthesis.seed_pairs"),
        ("training.stage2.*coef", "training.stage2.kl_coef"),
        ("nucleus", "voting.top_p"),  # in the meaning alone
    ],
)
def test_keys_are_found_by_path_pattern_and_meaning(pattern, path):
    assert path in [key.path for key in find_keys(pattern)]


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("samples", "voting.samples"),
        ("voting.temprature", "voting.temperature"),
        ("votign", "voting"),
        ("evaluation.seeds", "synthesis.seeds"),
        ("synthesis.endpoints.0.modell", "synthesis.endpoints.N.model"),
    ],
)
def test_a_wrong_key_is_suggested_with_its_full_path(wrong, right):
    assert suggest_paths(wrong)[0] == right


def test_all_missing_variables_are_told_at_once(tmp_path, monkeypatch):
    for name in ("LAB_DATA", "LAB_KEY"):
        monkeypatch.delenv(name, raising=False)
    endpoint = {"base_url": "http://h/v1", "model": "m", "api_key": "${LAB_KEY}"}
    synthesis = {"seeds": ["${LAB_DATA}/a", "${LAB_DATA}/b"], "endpoints": [endpoint]}
    file = write_config(tmp_path / "c.yaml", synthesis=synthesis)
    with pytest.raises(InputError) as error:
        load_config(file)
    message = str(error.value)
    assert "LAB_DATA, which is not set, is needed by synthesis.seeds.0, synthesis.seeds.1" in message
    assert "LAB_KEY, which is not set" in message and "LAB_KEY=..." in message.partition("; export ")[2]


def test_each_value_has_its_origin(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LAB_DATA", "/d")
    base = write_config(tmp_path / "base.yaml", voting={"samples": 4}, synthesis={"seeds": ["${LAB_DATA}/a"]})
    top = tmp_path / "top.yaml"
    top.write_text("extends: base.yaml\nvoting: {threshold: 0.7}\npolicy: {prompt: direct}\n")
    overrides = ["voting.in_flight=8", "synthesis.seeds.0={path: x, limit: 3}"]
    found = {each.key: (each.value, each.origin) for each in trace_config(top, overrides)}
    assert found["voting.samples"] == (4, str(base)) and found["voting.threshold"] == (0.7, str(top))
    assert found["voting.in_flight"] == (8, "override voting.in_flight")
    assert found["voting.top_p"] == (1.0, "default")
    assert found["policy.prompt.name"] == ("direct", str(top))
    assert found["synthesis.seeds"] == ([{"path": "x", "name": "", "limit": 3}], "override synthesis.seeds.0")
    show_config(top, [])
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("synthesis.seeds = ")]
    assert '"path": "/d/a"' in line and line.endswith(f"# {base} with ${{...}}")


def test_a_file_that_extends_itself_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(InputError, match="extends itself"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize("name", ["demo_cpu", "configs/demo_cpu.yaml", "configs/demo_cpu"])
def test_shipped_configs_are_found_from_any_folder(tmp_path, monkeypatch, name):
    from pathlib import Path

    monkeypatch.chdir(tmp_path)
    assert find_config_file(Path(name)) == REPO / "configs/demo_cpu.yaml"
    assert find_config_file(Path("../demo_cpu.yaml")) == Path("../demo_cpu.yaml")


@pytest.mark.parametrize("name", list_shipped_configs())
def test_init_copies_a_config_that_loads_elsewhere(tmp_path, monkeypatch, name, capsys):
    for variable in ("DATA", "API_BASE", "API_MODEL"):
        monkeypatch.setenv(f"MEDSSR_{variable}", f"http://{variable.lower()}")
    monkeypatch.setenv("MEDSSR_API_KEY", "k-4f9a17c2e8b35d60")
    init_config(tmp_path / "mine.yaml", name)
    assert load_config(tmp_path / "mine.yaml") == load_config(REPO / f"configs/{name}.yaml")
    with pytest.raises(InputError, match="exists; give another name"):
        init_config(tmp_path / "mine.yaml", name)
    with pytest.raises(InputError, match="no terminal to ask on"):
        init_config(tmp_path / "other.yaml", "")


def test_init_asks_for_what_is_needed(tmp_path, monkeypatch, capsys):
    answers = iter(
        ["demo_cpu", "", "https://api/v1", "big-model", "LAB_KEY", "50", "seeds.csv", "lab/gold", "test.csv"]
    )
    monkeypatch.setattr("builtins.input", lambda _: next(answers))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setenv("LAB_KEY", "secret-value")
    init_config(tmp_path / "c.yaml", "")
    config = load_config(tmp_path / "c.yaml")
    assert (config.synthesis.accepted, config.synthesis.models) == (50, ["big-model"])
    assert config.training.stage2.data[0].path == "lab/gold"
    assert config.voting == load_config(REPO / "configs/demo_cpu.yaml").voting
    assert "secret-value" not in (tmp_path / "c.yaml").read_text()


def test_keys_that_match_nothing_are_told(capsys):
    print_keys("voting.samples")
    assert "voting.samples  (integer >= 1; default 16)\n    K, answers per question" in capsys.readouterr().out
    with pytest.raises(InputError, match="did you mean voting.samples"):
        print_keys("voting.sampels")


def test_keys_complete_as_overrides():
    assert complete_key("voting.sam") == ["voting.samples="]
    assert "synthesis.endpoints.0.model=" in complete_key("synthesis.endpoints.0.m")


def test_overrides_may_stand_before_and_behind_options(capsys):
    assert main(["config", "show", "voting.samples=3", "--config", "demo_cpu", "voting.top_p=0.5"]) == 0
    text = capsys.readouterr().out
    assert "voting.samples = 3 " in text and "voting.top_p = 0.5 " in text
    for wrong in (["config", "show", "--config", "demo_cpu", "--nothing"], ["config", "keys", "a", "b"]):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
