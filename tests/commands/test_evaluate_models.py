"""`medssr evaluate MODEL --data X`: configs without a run, names, adapters, and a whole evaluation through a server."""

import asyncio
import json
import threading

import pytest
from far_server import CARD, FarEnd
from tiny_policy import tiny_llama, tiny_tokenizer

from medssr_dist.cli import main
from medssr_dist.commands.evaluate_models import evaluate_models, name_models
from medssr_dist.config.bare_evaluation import build_evaluation_config
from medssr_dist.config.schema import Policy
from medssr_dist.data.jsonl import read_json
from medssr_dist.errors import InputError
from medssr_dist.runtime.fingerprints import fingerprint_model
from medssr_dist.runtime.models import resolve_model

ROWS = [{"question": f"Pick {n}", "options": {"A": "x", "B": "y", "C": "z", "D": "w"}, "answer": "B"} for n in range(6)]


@pytest.fixture
def data(tmp_path):
    file = tmp_path / "set.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(file)


@pytest.fixture
def model(tmp_path):
    """A directory with a tokenizer and a config, as much as a model on a server needs here."""
    folder = tmp_path / "policy"
    tiny_tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


@pytest.fixture
def server(model):
    """The address of a completions server whose answers follow from the seed."""
    far, started, stop, address = FarEnd(), threading.Event(), None, []
    far.cards = [CARD | {"root": str(model), "max_model_len": 512}]

    async def serve():
        nonlocal stop
        stop = asyncio.Event()
        async with far.serve() as url:
            address.append(url)
            started.set()
            await stop.wait()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    assert started.wait(30)
    yield address[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(30)


def test_a_config_needs_neither_synthesis_nor_training(data, tmp_path):
    config = build_evaluation_config("m", [data, "{path: lab/x, split: test}"], 7, "", None, ["policy.prompt=base"])
    assert [(s.path, s.split, s.limit) for s in config.evaluation.benchmarks] == [(data, "", 7), ("lab/x", "test", 7)]
    assert (config.policy.prompt.name, config.voting.engines) == ("base", 1)
    assert not config.training.stage1.enabled and not config.training.stage2.enabled
    file = tmp_path / "c.yaml"
    file.write_text("synthesis: {accepted: 9}\nevaluation: {generations: 2, benchmarks: [a.csv]}\n")
    config = build_evaluation_config("m", [], 0, "http://h:1/v1", file, [])
    assert (config.evaluation.generations, config.evaluation.benchmarks[0].path) == (2, "a.csv")
    assert (config.voting.engines, config.voting.servers[0].base_url) == (0, "http://h:1/v1")
    with pytest.raises(InputError, match="no benchmark is given"):
        build_evaluation_config("m", [], 0, "", None, [])
    with pytest.raises(InputError, match="is not valid YAML"):
        build_evaluation_config("m", ["{path: "], 0, "", None, [])


def test_models_have_short_names_that_differ():
    assert name_models(["Qwen/Qwen3-0.6B", "runs/a/hf", "runs/b/hf"]) == ["Qwen3-0.6B", "runs/a/hf", "runs/b/hf"]
    with pytest.raises(InputError, match="named twice"):
        name_models(["m", "m"])


@pytest.mark.parametrize(
    ("arguments", "needle"),
    [
        (["--data", "x.csv"], "--data needs a model"),
        ([], "evaluate needs a model and --data, or the --config of a run"),
        (["m", "--data", "absent.csv"], "absent.csv does not exist"),
    ],
)
def test_a_wrong_call_names_the_fix(arguments, needle, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", *arguments]) == 2
    assert needle in capsys.readouterr().err


def test_a_server_is_evaluated_and_asked_once(data, model, server, tmp_path, capsys):
    overrides = ["policy.prompt=direct", "policy.max_model_len=256", "evaluation.max_tokens=16"]
    config = build_evaluation_config(str(model), [data], 4, server, None, overrides)
    evaluate_models(config, [str(model)], tmp_path / "run")
    text = capsys.readouterr().out
    assert "| set" in text and "policy" in text
    scores = read_json(tmp_path / "run" / "evaluation" / "scores.json")
    score = scores["policies"]["policy"]["protocols"]["ours"]["benchmarks"]["set"]
    assert (score["questions"], score["answers"], score["invalid"]) == (4, 16, 0)
    lines = (tmp_path / "run" / "evaluation" / "answers.jsonl").read_text()
    evaluate_models(config, [str(model)], tmp_path / "run")
    assert (tmp_path / "run" / "evaluation" / "answers.jsonl").read_text() == lines
    with pytest.raises(InputError, match="a server answers for one model"):
        evaluate_models(config, [str(model), "other"], tmp_path / "run")


def test_an_adapter_is_merged_into_its_model_once(tmp_path, monkeypatch):
    import torch
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("MEDSSR_CACHE", str(tmp_path / "cache"))
    tokenizer, base, adapter = tiny_tokenizer(), tmp_path / "base", tmp_path / "adapter"
    tiny_llama(len(tokenizer)).float().save_pretrained(base)
    tokenizer.save_pretrained(base)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, target_modules=["q_proj"]))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    adapted.save_pretrained(adapter)
    policy = Policy(model=str(adapter))
    merged = resolve_model(policy)
    assert resolve_model(policy) == merged and fingerprint_model(merged) != fingerprint_model(base)
    ids = torch.arange(12)[None] % len(tokenizer)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter))
    expected, found = (each(ids).logits for each in (again, AutoModelForCausalLM.from_pretrained(merged)))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_a_plan_names_absent_models_and_wrong_lengths(data, tmp_path, capsys, monkeypatch):
    """Nothing is started: what would end the evaluation later is said first."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    mini = "embedded:medssr-mini"
    arguments = ["evaluate", "--data", data, "--dry-run"]
    assert main([*arguments, mini]) == 2
    assert "names 512 positions; set policy.max_model_len=512 or less" in capsys.readouterr().err
    short = ["policy.max_model_len=512", "evaluation.max_tokens=96", "policy.prompt=direct"]
    assert main([*arguments, mini, str(tmp_path / "absent"), *short]) == 2
    assert "absent' is neither a directory nor" in capsys.readouterr().err
    assert main([*arguments, mini, "lab/absent", *short]) == 0
    assert "lab/absent, to be downloaded" in capsys.readouterr().out
