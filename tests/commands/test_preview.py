"""`medssr preview`, the prices of models, and the batch script that `--sbatch` prints."""

import json
import shlex
import subprocess

import pytest
from config_builder import make_config

from medssr_dist.commands.batch_script import render_batch_script
from medssr_dist.commands.preview import preview
from medssr_dist.config.price_table import describe_cost, find_price
from medssr_dist.errors import InputError


@pytest.fixture
def seeds(tmp_path):
    file = tmp_path / "seeds.jsonl"
    rows = [{"question": f"Which sign {n}?", "options": {"A": "x", "B": f"y{n}"}, "answer": "A"} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_preview_shows_everything_and_keeps_nothing(seeds, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    teacher = {"base_url": "offline-teacher", "model": "offline-teacher"}
    config = make_config(synthesis={"seeds": [seeds], "alpha": 0, "endpoints": [teacher]})
    before = sorted(tmp_path.iterdir())
    preview(config, 2)
    text = capsys.readouterr().out
    assert text.count("===== request ") == 2 and text.count("--- reply, ") == 2 and text.count("checks: ") == 2
    assert "Which sign" in text and "prompt tokens" in text and "offline-teacher: table, " in text
    assert text.rstrip().endswith("nothing was kept") and sorted(tmp_path.iterdir()) == before
    preview(config, 1, show_prompt=False)
    assert "Which sign" not in capsys.readouterr().out.partition("--- reply")[0]


@pytest.mark.parametrize(
    ("models", "expected"),
    [
        (["gpt-4.1"], "$10.00 (gpt-4.1: table, 2026-05-07)"),
        (["openai/gpt-4.1-mini", "gpt-4.1"], "$10.00 (gpt-4.1: table, 2026-05-07)"),
        (["own"], "$3.00 (own: synthesis.prices)"),
        (["gpt-4.1", "nobody"], "unknown: no price of nobody; set synthesis.prices"),
    ],
)
def test_a_cost_is_known_or_said_to_be_unknown(models, expected):
    synthesis = make_config(synthesis={"prices": {"own": {"prompt": 1, "completion": 2}}}).synthesis
    assert describe_cost(synthesis, models, 1e6, 1e6) == expected


def test_a_configured_price_replaces_that_of_the_table():
    synthesis = make_config(synthesis={"prices": {"gpt-4.1": {"prompt": 1, "completion": 2}}}).synthesis
    assert find_price(synthesis, "gpt-4.1").origin == "synthesis.prices"
    assert find_price(synthesis, "nobody") is None


def test_a_batch_script_is_complete(tmp_path):
    training = {"nodes": 2, "ranks_per_node": 4, "engines": 4, "stage1": {"prompts_per_step": 8}}
    config = make_config(training=training)
    run_dir, override = tmp_path / "my runs" / "a", "policy.system_prompt=It's so"
    text = render_batch_script(config, "run", tmp_path / "c.yaml", run_dir, [override])
    assert text.startswith("#!/usr/bin/env bash\n#SBATCH ")
    assert "#SBATCH --nodes=2\n" in text and "#SBATCH --gpus-per-node=6\n" in text
    assert f"export RUN_DIR={shlex.quote(str(run_dir))}\n" in text
    assert text.rstrip().endswith(f"medssr_launch medssr_ssl.sh run {shlex.quote(override)}")
    assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    named = [line.partition("=")[0] for line in text.splitlines() if line.startswith("#SBATCH")]
    assert len(named) == len(set(named))
    assert "medssr_launch vote.sh vote" in render_batch_script(config, "vote", tmp_path / "c.yaml", run_dir, [])
    with pytest.raises(InputError, match="no batch script of 'nothing'"):
        render_batch_script(config, "nothing", tmp_path / "c.yaml", run_dir, [])
