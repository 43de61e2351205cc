"""`medssr push` against a local server of the hub's shape: what is uploaded, cards, tokens, refusals."""

import io

import huggingface_hub
import pyarrow.parquet as pq
import pytest
from config_builder import make_config
from finished_run import write_run
from hub_server import serve_hub
from huggingface_hub import DatasetCard, ModelCard

from medssr_dist import cli, secret_registry
from medssr_dist.data.jsonl import read_json, write_json
from medssr_dist.synthesis.card import write_card
from medssr_dist.synthesis.synthesis_summary import ModelReplies, read_synthesis_summary

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz0123"
MODEL_CARD = "---\nlicense: other\ntags:\n- medical\n---\n\n# m, stage 1\n\n> For research only.\n"


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(secret_registry, "_variables", {})
    monkeypatch.setattr(secret_registry, "_forms", ())
    monkeypatch.setattr(secret_registry, "_encoded", ())
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)  # the server here speaks LFS
    with serve_hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


@pytest.fixture
def run(tmp_path):
    found = write_run(tmp_path / "run")
    summary = read_synthesis_summary(found.synthesis.summary)
    write_card(found.synthesis.folder, make_config(), summary)
    folder = found.stage("stage1").hf
    folder.mkdir()
    for name, text in {"config.json": "{}", "model.safetensors": "weights", "notes.txt": "mine"}.items():
        (folder / name).write_text(text)
    (folder / "README.md").write_text(MODEL_CARD)
    return found


def push(*arguments) -> int:
    return cli.main(["push", *map(str, arguments)])


def test_a_push_through_xet_registers_files_and_commits(hub, run, monkeypatch):
    """The hub's own library for Xet asks for a token, registers the files, and then the commit names them."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    assert cli.main(["push", str(run.root), "--dataset", "me/questions"]) == 0
    files = hub.repos["dataset", "me/questions"]["files"]
    assert hub.shards == 1 and files["train.parquet"] == b"in Xet" and b"---" in files["README.md"]


def test_questions_are_uploaded_with_their_card(hub, run, capsys):
    assert push(run.root, "--dataset", "me/questions", "--private") == 0
    repo = hub.repos["dataset", "me/questions"]
    assert repo["private"] and set(repo["files"]) == {"train.parquet", "README.md"}
    kept = [row for row in read_rows(repo["files"]["train.parquet"]) if row["kept"]]
    assert len(kept) == len(read_rows(repo["files"]["train.parquet"])) > 0
    card = DatasetCard(repo["files"]["README.md"].decode())
    assert card.data.license == "other" and "rare-diseases" in card.data.tags and "ontology-made" not in card.data.tags
    assert hub.tokens == {f"Bearer {TOKEN}"}
    out = capsys.readouterr()
    assert "uploaded: " in out.out and TOKEN not in out.out + out.err


def read_rows(data: bytes):
    return pq.read_table(io.BytesIO(data)).to_pylist()


def test_a_model_is_uploaded_with_a_model_index(hub, run, capsys):
    assert push(run.root, "--model", "me/model") == 0
    repo = hub.repos["model", "me/model"]
    assert not repo["private"] and set(repo["files"]) == {"config.json", "model.safetensors", "README.md"}
    assert repo["files"]["model.safetensors"] == b"weights"
    card = ModelCard(repo["files"]["README.md"].decode())
    (result,) = card.data.eval_results
    assert (card.data.model_name, result.dataset_name, result.metric_type) == ("model", "set", "accuracy")
    assert result.metric_args["questions"] == 5 and len(result.metric_args["interval_95"]) == 2
    assert "left out: notes.txt" in capsys.readouterr().out


def test_questions_made_by_rules_say_so(hub, run):
    summary = read_synthesis_summary(run.synthesis.summary)
    made = summary.model_copy(update={"models": ModelReplies(asked=["offline-teacher"], answered={})})
    write_json(run.synthesis.summary, made.model_dump(mode="json"))
    assert push(run.root, "--dataset", "me/made", "--labels", "all") == 0
    text = hub.repos["dataset", "me/made"]["files"]["README.md"].decode()
    assert "ontology-made" in DatasetCard(text).data.tags and "not written by people" in text


def test_scores_on_ontology_questions_say_so(hub, run):
    tree = read_json(run.config_file)
    tree["evaluation"]["benchmarks"] = [{"path": "hpo:mini-evaluation", "name": "set"}]
    write_json(run.config_file, tree)
    assert push(run.root, "--model", "me/model") == 0
    text = hub.repos["model", "me/model"]["files"]["README.md"].decode()
    assert ModelCard(text).data.eval_results[0].dataset_name == "set (ontology-made)"
    assert "not written by people" in text and "# m, stage 1" in text


def test_a_dry_run_sends_nothing_and_needs_no_token(hub, run, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    assert push(run.root, "--dataset", "me/questions", "--dry-run") == 0
    out = capsys.readouterr().out
    assert "train.parquet" in out and "license: other" in out and "nothing was sent" in out
    assert hub.repos == {} and hub.tokens == set()


def test_a_second_push_replaces_the_files(hub, run):
    assert push(run.root, "--model", "me/model") == 0
    (run.stage("stage1").hf / "model.safetensors").write_text("better")
    assert push(run.root, "--model", "me/model") == 0
    assert hub.repos["model", "me/model"]["files"]["model.safetensors"] == b"better"


def test_the_token_may_stand_in_a_private_file(hub, run, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("HF_TOKEN")
    file = tmp_path / "token"
    file.write_text(TOKEN)
    file.chmod(0o644)
    assert push(run.root, "--model", "me/model", "--token-file", file) == 2
    assert "chmod 600" in capsys.readouterr().err and hub.repos == {}
    file.chmod(0o600)
    assert push(run.root, "--model", "me/model", "--token-file", file) == 0
    assert hub.tokens == {f"Bearer {TOKEN}"}


@pytest.mark.parametrize(
    ("change", "arguments", "expected"),
    [
        ("no token", ("--model", "me/model"), "export HF_TOKEN"),
        ("", ("--model", "model"), "write OWNER/NAME"),
        ("", ("--model", "me/../x"), "is no name of a repository"),
        ("", ("--model", "me/model", "--stage", "stage2"), "no trained model of stage2"),
        ("no model", ("--model", "me/model"), "no trained model"),
        ("public", ("--model", "me/model", "--private"), "exists and is public"),
        ("refuse", ("--model", "me/model"), "the token may write there"),
        ("offline", ("--model", "me/model"), "HF_HUB_OFFLINE"),
        ("key in card", ("--model", "me/model"), "holds a key or a token"),
        ("no questions", ("--dataset", "me/x"), "no questions"),
    ],
)
def test_what_cannot_be_uploaded_is_said(hub, run, monkeypatch, capsys, change, arguments, expected):
    if change == "no token":
        monkeypatch.delenv("HF_TOKEN")
    elif change == "no model":
        (run.stage("stage1").hf).rename(run.root / "elsewhere")
    elif change == "public":
        hub.repos["model", "me/model"] = {"private": False, "files": {}}
    elif change == "refuse":
        hub.refuse = 403
    elif change == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    elif change == "key in card":
        (run.stage("stage1").hf / "README.md").write_text(f"{MODEL_CARD}\n{TOKEN}\n")
    elif change == "no questions":
        run.synthesis.questions.unlink()
    assert push(run.root, *arguments) == 2
    err = capsys.readouterr().err
    assert expected in err and TOKEN not in err and len(err.strip().splitlines()) <= 3
    assert all(not repo["files"] for repo in hub.repos.values())
