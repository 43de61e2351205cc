"""Named sets of benchmarks in a config, and the set of the paper."""

from pathlib import Path

import pytest
from config_builder import write_config

from medssr_dist.config.benchmark_sets import list_benchmark_sets
from medssr_dist.config.load import dump_config, load_config
from medssr_dist.config.schema import Config
from medssr_dist.errors import InputError

COUNTS = {"medqa": 1273, "medmcqa": 1200, "mmlu": 1089, "bioasq": 782, "nejm": 603, "pubmedqa": 500, "lancet": 412}
COUNTS |= {"medbullets": 308, "medxpertqa": 0, "raredis_sub": 2122}


@pytest.fixture(autouse=True)
def data(monkeypatch):
    monkeypatch.setenv("MEDSSR_DATA", "/data")


def load(tmp_path: Path, benchmarks, *overrides: str) -> Config:
    return load_config(write_config(tmp_path / "c.yaml", evaluation={"benchmarks": benchmarks}), list(overrides))


@pytest.mark.parametrize("form", ["paper", {"set": "paper"}, [{"set": "paper"}]])
def test_the_papers_set_is_taken_whole(tmp_path, form):
    sources = load(tmp_path, form).evaluation.benchmarks
    assert {source.name: source.questions for source in sources} == COUNTS
    assert {source.name for source in sources if source.rare is True} == {"raredis_sub"}
    assert {source.rare for source in sources if source.name != "raredis_sub"} == {"auto"}
    assert sources[0].path == "/data/test_short_medqa.json" and "tdlhl/MedSSR" in sources[0].origin


def test_a_set_stands_beside_files_and_may_be_cut(tmp_path):
    sources = load(tmp_path, ["mine.jsonl", {"set": "paper", "limit": 5, "rare": False}]).evaluation.benchmarks
    assert [source.path for source in sources][:2] == ["mine.jsonl", "/data/test_short_medqa.json"]
    assert {(source.limit, source.rare) for source in sources[1:]} == {(5, False)}


def test_overrides_name_a_set_and_change_one_file_of_it(tmp_path):
    sources = load(tmp_path, [], "evaluation.benchmarks=paper", "evaluation.benchmarks.2.questions=0")
    assert [source.questions for source in sources.evaluation.benchmarks[:3]] == [1273, 1200, 0]


def test_the_resolved_config_holds_the_files(tmp_path):
    config = load(tmp_path, "paper")
    again = Config.model_validate(dump_config(config))
    assert again.evaluation.benchmarks == config.evaluation.benchmarks


def test_a_file_without_the_new_keys_is_dumped_as_before(tmp_path):
    assert dump_config(load(tmp_path, ["a.jsonl"]))["evaluation"]["benchmarks"] == [
        {"path": "a.jsonl", "name": "", "limit": 0}
    ]


@pytest.mark.parametrize(
    ("form", "needle"),
    [
        ("papers", r"no benchmark set of that name; sets: paper. A file is an item of a list: \[papers\]"),
        ([{"set": "x"}], "no benchmark set"),
        ([{"set": "paper", "path": "y"}], "'path' cannot stand beside"),
        ([{"set": ["paper"]}], "no benchmark set"),
    ],
)
def test_a_wrong_set_is_refused(tmp_path, form, needle):
    with pytest.raises(InputError, match=needle):
        load(tmp_path, form)


def test_a_set_without_its_folder_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.delenv("MEDSSR_DATA")
    with pytest.raises(InputError, match="MEDSSR_DATA, which is not set"):
        load(tmp_path, "paper")
    assert list_benchmark_sets() == ["paper"]
