"""The dataset card: the questions load by its header; its text contains every figure and every source."""

import pytest
import yaml
from config_builder import make_config
from synthesis_examples import summary

from medssr_dist.config.schema import Config
from medssr_dist.config.synthesis import Checks
from medssr_dist.data.records import Provenance, Question
from medssr_dist.data.wilson import measure_share, wilson_interval
from medssr_dist.knowledge.hpo import read_hpo_version
from medssr_dist.run.directory import find_commit
from medssr_dist.synthesis.card import size_category, write_card
from medssr_dist.synthesis.synthesis_summary import AlphaShares, LetterBalance, ModelReplies


def config(**synthesis) -> Config:
    fields = {
        "accepted": 1000,
        "seeds": ["hpo:seeds", {"path": "/home/someone/private/my_seeds.jsonl", "limit": 40}],
        "endpoints": [{"base_url": "http://secret-host.example/v1", "model": "gpt-x"}],
    }
    return make_config(
        synthesis=fields | synthesis,
        training={"stage2": {"enabled": True, "data": ["hpo:supervised"]}},
        evaluation={"benchmarks": ["/data/bench.json"]},
    )


def split(path):
    _, header, body = path.read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(header), body


def test_the_header_is_in_the_hubs_form(tmp_path):
    path = write_card(tmp_path, config(), summary())
    assert path == tmp_path / "README.md"
    header, _ = split(path)
    assert header["license"] == "other"
    assert (header["language"], header["size_categories"]) == (["en"], ["1K<n<10K"])
    assert "multiple-choice" in header["task_categories"]
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "questions.jsonl"}]


@pytest.mark.parametrize(
    ("count", "name"), [(0, "n<1K"), (999, "n<1K"), (43_000, "10K<n<100K"), (1_000_000, "1M<n<10M")]
)
def test_size_categories(count, name):
    assert size_category(count) == name


def test_the_text_holds_every_figure(tmp_path):
    _, body = split(write_card(tmp_path, config(prices={"gpt-x": {"prompt": 1, "completion": 2}}), summary()))
    low, high = wilson_interval(610, 1200)
    for text in (
        "1,200",
        "1,000",
        "rejected: not_parsable | 150 | 12.5%",
        "Asked: 0.5",
        "0.5083",
        f"{low:.4f} - {high:.4f}",
        "500 of 1,000",
        "| A | 251 | 7 |",
        "| E | 0 | 9 |",
        "gpt-x-0613",
        "1,190",
        "gpt-y\\|z",
        "2026-01-02T04:04:05",
        find_commit(),
        "3.46 US dollars",
        "1,234,567",
        "7,654",
        "1,213",
        "1,300",
        "not used: 13",
        "random seed\n  42",
        "For research only. Not for clinical use",
        "Known limits",
        "asked for was reached",
    ):
        assert text in body, text


def test_reasons_come_by_falling_count(tmp_path):
    _, body = split(write_card(tmp_path, config(), summary()))
    assert body.index("not_parsable") < body.index("near_duplicate")


def test_every_check_is_named_with_its_threshold(tmp_path):
    _, body = split(write_card(tmp_path, config(checks={"near_duplicate": 0.75, "grounding": 0}), summary()))
    assert all(f"`{name}`" in body for name in Checks.model_fields)
    assert "| `near_duplicate` | 0.75 |" in body
    assert "| `grounding` | off |" in body and "| `missing_figure` | on |" in body


def test_sources_are_named_with_terms_but_without_folder_or_host(tmp_path):
    _, body = split(write_card(tmp_path, config(), summary()))
    assert "| seeds | `hpo:seeds` | HPO, see below |" in body
    assert "`my_seeds.jsonl`, first 40 | user's file; licence to be stated by the user" in body
    assert "| decontaminated against | `bench.json` |" in body
    assert read_hpo_version() in body and "Gargano" in body
    assert "/home" not in body and "secret-host" not in body


def test_without_hpo_it_is_not_cited(tmp_path):
    _, body = split(write_card(tmp_path, config(seeds=["mine.jsonl"], alpha=0), summary()))
    assert "Gargano" not in body and "passages |" not in body


def test_an_empty_run_has_a_card_too(tmp_path):
    empty = summary(
        requested=0,
        accepted=0,
        rejected_by_reason={},
        usd=0.0,
        alpha=AlphaShares(asked=0.0, requests=measure_share(0, 0), accepted=measure_share(0, 0)),
        letter_balance=LetterBalance(first_option={}, entity_option={}),
        models=ModelReplies(asked=["m"], answered={}),
    )
    _, body = split(write_card(tmp_path, config(), empty.model_copy(update={"unpriced": ("m",)})))
    assert "money: unknown: no price of m" in body and "| of the accepted | 0 of 0 | - | - |" in body


def test_the_run_folder_loads_as_a_data_set(tmp_path):
    """Types come from the header: the first entity and the further options appear far behind the first block."""
    import datasets

    def question(number):
        last = number == 9_000
        provenance = Provenance(
            index=number,
            prompt_hash="h" * 900,
            seed_ids=("a", "b"),
            rho=0.1,
            entity="E" if last else None,
            teacher="t",
            random_seed=1,
            commit="c",
        )
        options = [f"option {letter}" for letter in ("abcdefghij" if last else "abcd")]
        return Question.make(f"Number {number}?", options, source="synthetic", provenance=provenance)

    folder = tmp_path / "run"
    write_card(folder, config(), summary())
    lines = "".join(question(number).model_dump_json() + "\n" for number in range(9_001))
    (folder / "questions.jsonl").write_text(lines, encoding="utf-8")
    assert len(lines) > 10 << 20  # more than the loader reads to guess types
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.num_rows == 9_001
    assert loaded[0]["options"]["D"] == "option d" and loaded[0]["options"]["J"] is None
    assert loaded[9_000]["provenance"]["entity"] == "E" and loaded[9_000]["options"]["J"] == "option j"
