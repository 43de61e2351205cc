"""Question files that are absent: their origin is told, and they are downloaded and checked, over loopback."""

import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from config_builder import make_config

from medssr_dist.commands.data_files import describe_origin, describe_sets, fetch_absent, hash_blob, list_absent
from medssr_dist.config.schema import Config
from medssr_dist.errors import InputError
from medssr_dist.readers import read_questions

ROWS = [{"id": f"q{place}", "question": f"Q{place}?\nA. x\nB. y", "gold": "B", "name": "set"} for place in range(3)]
CONTENT = json.dumps(ROWS).encode()
COMMIT = "1" * 40


class Server(SimpleHTTPRequestHandler):
    """Files by URL, and the part of the Hugging Face hub that a data set needs: `lab/rare`."""

    def do_GET(self) -> None:
        if self.path == "/api/datasets/lab/rare":
            files = [{"rfilename": name} for name in ("README.md", "test.json")]
            data = json.dumps({"id": "lab/rare", "sha": COMMIT, "siblings": files}).encode()
        elif self.path == "/api/datasets/lab/odd":
            data = b'{"sha": 5, "siblings": [{}]}'
        elif self.path in ("/set.json", f"/datasets/lab/rare/resolve/{COMMIT}/test.json"):
            data = CONTENT
        else:
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
        return None

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Server, directory=str(tmp_path))) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def config_of(tmp_path: Path, *origins: str, **keys) -> Config:
    seeds = tmp_path / "seeds.jsonl"
    seeds.write_text(json.dumps({"question": "S?", "options": {"A": "x", "B": "y"}}))
    benchmarks = [
        {"path": str(tmp_path / f"data/set{place}.json"), "origin": origin} | keys
        for place, origin in enumerate(origins)
    ]
    return make_config(synthesis={"seeds": [str(seeds)]}, evaluation={"benchmarks": benchmarks})


def test_an_absent_file_is_downloaded_and_read(tmp_path, server):
    config = config_of(tmp_path, f"{server}/set.json", questions=3, git_blob=hash_blob(CONTENT))
    with pytest.raises(InputError, match=f"does not exist; `medssr prefetch` downloads it from {server}"):
        read_questions(config.evaluation.benchmarks[0])
    (line,), absent = (result := fetch_absent(config)).lines, result.absent
    assert "set0.json downloaded from http" in line and absent == ()
    assert (tmp_path / "data/set0.json").read_bytes() == CONTENT and list_absent(config) == []
    assert describe_sets(config) == ["seeds: 1 questions, 1 without an answer", "set0: 3 questions, always B: 100.0%"]
    (tmp_path / "data/set0.json").write_text(json.dumps(ROWS, indent=1))
    assert describe_sets(config)[1].endswith("NOT the published file, by its hash")
    assert fetch_absent(config).lines == ()


def test_a_data_set_of_the_hub_is_downloaded(tmp_path, server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server)
    config = config_of(tmp_path, "hf://datasets/lab/rare", "hf://datasets/lab/rare/test.json", "hf://datasets/lab/none")
    result = fetch_absent(config)
    assert result.absent == ("set2",) and "huggingface.co/datasets/lab/none" in result.lines[2]
    assert (tmp_path / "data/set0.json").read_bytes() == (tmp_path / "data/set1.json").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("path", "blob", "needle"),
    [("/set.json", "0" * 40, "another file was sent: its git hash is"), ("/none.json", "", "the server answers 404")],
)
def test_a_wrong_download_leaves_nothing(tmp_path, server, path, blob, needle):
    result = fetch_absent(config_of(tmp_path, server + path, git_blob=blob))
    assert needle in result.lines[0] and result.absent == ("set0",)
    assert not (tmp_path / "data").exists()


def test_what_a_server_sends_is_checked(tmp_path, server, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server)
    config = config_of(tmp_path, "hf://datasets/lab/odd", f"{server}/set.json")
    monkeypatch.setattr("medssr_dist.data.jsonl._MOST_BYTES", len(CONTENT) - 1)
    result = fetch_absent(config)
    assert "sha: Input should be a valid string" in result.lines[0] and result.absent == ("set0", "set1")
    assert "what 127.0.0.1 sends has more than" in result.lines[1]


def test_without_a_network_each_file_has_its_line(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    origin = f"https://raw.githubusercontent.com/tdlhl/MedSSR/{COMMIT}/data/x.json"
    config = config_of(tmp_path, "http://127.0.0.1:9/set.json", origin, "hf://datasets/tdlhl/RareDis-Sub")
    lines = fetch_absent(config).lines
    assert len(lines) == 3 and all("is absent; it comes from" in line and "refused" in line for line in lines)
    assert "github.com/tdlhl/MedSSR, data/x.json at commit 1111111" in lines[1]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert all("(HF_HUB_OFFLINE is set)" in line for line in fetch_absent(config).lines)


def test_an_origin_is_told_in_words():
    assert describe_origin("hf://datasets/tdlhl/RareDis-Sub") == "huggingface.co/datasets/tdlhl/RareDis-Sub"
    assert describe_origin("https://example.org/x.json") == "https://example.org/x.json"


def test_another_number_of_questions_is_refused(tmp_path):
    config = config_of(tmp_path, "", questions=4)
    source = config.evaluation.benchmarks[0]
    Path(source.path).parent.mkdir()
    Path(source.path).write_bytes(CONTENT)
    with pytest.raises(InputError, match=r"set0\.json has 3 questions, but 'set0' has 4; get the whole file"):
        read_questions(source)
    assert len(read_questions(source.model_copy(update={"questions": 3, "limit": 2}))) == 2


def test_an_absent_hub_set_is_named_and_not_downloaded_offline(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    config = make_config(evaluation={"benchmarks": [{"path": "lab/rare", "split": "test", "revision": "v1"}]})
    assert [source.path for source in list_absent(config)] == ["lab/rare"]
    result = fetch_absent(config)
    origin = "huggingface.co/datasets/lab/rare@v1"
    assert result.lines == (f"rare: lab/rare is absent; it comes from {origin} (HF_HUB_OFFLINE is set)",)
