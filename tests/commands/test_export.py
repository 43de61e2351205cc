"""Exports of a run: they load in the programs that they are for, have the labels of the vote, and are never partial."""

import json
import subprocess
import sys
from types import SimpleNamespace

import datasets
import pyarrow.parquet as pq
import pytest
import yaml

from medssr_dist.commands.export import export_run
from medssr_dist.commands.export_forms import FORMS
from medssr_dist.data.answers import grade
from medssr_dist.data.prompt_forms import load_prompt_form
from medssr_dist.data.records import Label, Provenance, Question
from medssr_dist.errors import InputError

CARD = (
    "---\nlicense: other\nconfigs:\n- config_name: default\n  data_files: questions.jsonl\n---\n\n# Title\n\nNOTICE\n"
)


def question(number: int) -> Question:
    rare = number % 2 == 0
    provenance = Provenance(
        index=number,
        prompt_hash=f"h{number}",
        seed_ids=("a", "b"),
        rho=0.25,
        entity="Alkaptonuria" if rare else None,
        entity_id="OMIM:203500" if rare else None,
        passage_ids=("OMIM:203500",) if rare else (),
        teacher="t",
        answered_by="t-1",
        permutation=(2, 0, 1),
        random_seed=42,
        commit="c0ffee",
    )
    options = [f"option {letter} of {number}" for letter in ("xyz" if number < 6 else "uvwxyz")]
    return Question.make(
        f"Which one is it, number {number}?", options, source="synthetic", rare=rare, provenance=provenance
    )


def label(item: Question, answer="B", kept=True) -> Label:
    counts = {"A": 1, answer: 5} if answer else {"A": 2, "B": 2}
    return Label(
        question=item,
        outcome="labeled" if answer else "tie",
        answer=answer,
        counts=counts,
        requested=8,
        taken=7,
        valid=sum(counts.values()),
        truncated=1,
        tokens=70,
        kept=kept,
        policy="p",
        sampling="s",
        confidence_requested=(0.625, 0.75) if answer else (0.25, 0.375),
        confidence_valid=(5 / 7, 6 / 7),
    )


DIRECT = load_prompt_form("direct")
QUESTIONS = [question(number) for number in range(8)]
LABELS = [
    label(QUESTIONS[1]),
    label(QUESTIONS[0], "C"),
    label(QUESTIONS[2], kept=False),
    label(QUESTIONS[3], None, False),
]


def write_lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(record.model_dump_json() + "\n" for record in records), encoding="utf-8")


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    write_lines(folder / "synthesis" / "questions.jsonl", QUESTIONS)
    write_lines(folder / "voting" / "labeled.jsonl", LABELS)
    (folder / "synthesis" / "README.md").write_text(CARD, encoding="utf-8")
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def load(folder, tmp_path):
    return datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))["train"]


@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_export_of_all_labels_loads_as_a_data_set(run, tmp_path, form):
    assert export_run(run, tmp_path / "out", form, "all") == 8
    rows = {row["id"]: row for row in load(tmp_path / "out", tmp_path)}
    assert set(rows) == {item.id for item in QUESTIONS}
    kept, rejected, tie, unvoted = (rows[QUESTIONS[number].id] for number in (0, 2, 3, 7))
    assert (kept["answer"], kept["kept"], kept["votes"], kept["confidence_requested"]) == ("C", True, [1, 0, 5], 0.625)
    assert kept["confidence_requested_most"] == 0.75
    assert (kept["confidence_valid"], kept["confidence_valid_most"]) == (5 / 7, 6 / 7)
    assert (kept["votes_requested"], kept["votes_taken"], kept["votes_valid"]) == (8, 7, 6)
    assert (unvoted["votes_taken"], unvoted["confidence_valid_most"]) == (None, None)
    assert (rejected["answer"], rejected["kept"]) == ("B", False)
    assert (tie["answer"], tie["outcome"], tie["votes_valid"]) == (None, "tie", 4)
    assert (unvoted["answer"], unvoted["kept"], unvoted["votes"]) == (None, None, None)
    assert unvoted["options"] == list(QUESTIONS[7].options.values())
    assert kept["provenance"]["entity"] == "Alkaptonuria" and kept["provenance"]["permutation"] == [2, 0, 1]
    assert unvoted["provenance"]["entity"] is None and unvoted["provenance"]["seed_ids"] == ["a", "b"]


@pytest.mark.parametrize(("labels", "count"), [("kept", 2), ("none", 8)])
def test_export_of_kept_labels_and_of_none(run, tmp_path, labels, count):
    assert export_run(run, tmp_path / "out", "parquet", labels) == count
    answers = [row["answer"] for row in load(tmp_path / "out", tmp_path)]
    assert answers == (["B", "C"] if labels == "kept" else [None] * 8)


def test_columns_match_the_records():
    columns = [field.name for field in FORMS["parquet"].schema().field("provenance").type]
    assert columns == [name for name in Provenance.model_fields if name != "schema_version"]
    for form in FORMS.values():
        for item in (QUESTIONS[0], LABELS[0]):
            assert list(form.row(item, 3, DIRECT)) == form.schema().names


def test_jsonl_types_do_not_depend_on_the_first_lines(run, tmp_path):
    """The loader guesses types from the first 10 MB; the only label comes after them."""
    many = [QUESTIONS[0].model_copy(update={"id": f"{number:016x}", "stem": "x" * 9_000}) for number in range(1_200)]
    write_lines(run / "synthesis" / "questions.jsonl", many)
    write_lines(run / "voting" / "labeled.jsonl", [])
    export_run(run, tmp_path / "out", "jsonl", "all")
    with open(tmp_path / "out" / "train.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(FORMS["jsonl"].row(LABELS[0], 0, DIRECT)) + "\n")
    assert load(tmp_path / "out", tmp_path)[1_200]["answer"] == "B"


def test_openrlhf_reads_prompts_and_labels(run, tmp_path):
    """Through OpenRLHF's own loader and preprocessing, with a chat template."""
    prompts_dataset = pytest.importorskip("openrlhf.datasets.prompts_dataset")
    from openrlhf.datasets.utils import blending_datasets

    assert export_run(run, tmp_path / "out", "openrlhf", "kept") == 2
    strategy = SimpleNamespace(
        print=lambda *_: None,
        is_rank_0=lambda: False,
        args=SimpleNamespace(
            use_ms=False, data=SimpleNamespace(input_key="input", label_key="label", apply_chat_template=True)
        ),
    )

    def template(chat, tokenize, add_generation_prompt):
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in chat) + "<assistant>" * add_generation_prompt

    data = blending_datasets(str(tmp_path / "out" / "train.jsonl"), None, strategy)
    found = prompts_dataset.PromptDataset(data, SimpleNamespace(apply_chat_template=template), strategy)
    assert [found[number][2] for number in range(2)] == ["B", "C"]
    assert found[0][:2] == ("medssr", f"<user>{load_prompt_form('direct').fill_in(QUESTIONS[1])}<assistant>")
    reference = json.loads(data[1]["reference"])
    assert grade("The answer is (C).", reference["options"], data[1]["label"]) == 1.0
    assert reference == {"answer": "C", "options": QUESTIONS[0].options, "id": QUESTIONS[0].id}


def test_verl_rows_have_the_columns_of_verl(run, tmp_path):
    assert export_run(run, tmp_path / "out", "verl", "all") == 3  # those with a letter, kept or not; not the tie
    rows = list(load(tmp_path / "out", tmp_path))
    assert list(rows[0]) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert rows[0]["prompt"] == [{"role": "user", "content": DIRECT.fill_in(QUESTIONS[1])}]
    assert rows[1]["reward_model"] == {"style": "rule", "ground_truth": "C"}
    assert [row["extra_info"]["index"] for row in rows] == [0, 1, 2]
    assert rows[0]["extra_info"]["confidence"] == 0.625
    assert rows[1]["extra_info"]["options"] == list(QUESTIONS[0].options.values())


@pytest.mark.parametrize("form", ["openrlhf", "verl"])
def test_without_labels_the_answer_is_empty(run, tmp_path, form):
    assert export_run(run, tmp_path / "out", form, "none") == 8
    row = load(tmp_path / "out", tmp_path)[7]
    assert (row["label"] if form == "openrlhf" else row["reward_model"]["ground_truth"]) == ""


@pytest.mark.parametrize("form", FORMS)
def test_the_card_is_exported_with_the_name_of_the_file(run, tmp_path, form):
    export_run(run, tmp_path / "out", form, "kept")
    assert names(tmp_path / "out") == sorted(["README.md", FORMS[form].file])
    _, header, body = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    header = yaml.safe_load(header)
    assert header["license"] == "other" and header["size_categories"] == ["n<1K"]
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": FORMS[form].file}]
    assert "NOTICE" in body and "2 questions, labels: kept" in body


@pytest.mark.parametrize("card", ["", "# no head\n", "---\n- a list\n---\nbody\n", "---\n{oops\n---\nbody\n"])
def test_a_card_that_was_edited_is_refused_by_name(run, tmp_path, card):
    (run / "synthesis" / "README.md").write_text(card)
    with pytest.raises(InputError, match=r"README\.md"):
        export_run(run, tmp_path / "out", "jsonl", "none")


def test_a_folder_with_files_is_refused_and_not_changed(run, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    export_run(run, out, "jsonl", "none")  # an empty one is taken
    before = (out / "train.jsonl").read_bytes()
    with pytest.raises(InputError, match="not an empty folder"):
        export_run(run, out, "parquet", "none")
    assert (out / "train.jsonl").read_bytes() == before and not (out / "train.parquet").exists()


@pytest.mark.parametrize(
    ("gone", "labels", "message"),
    [
        ("synthesis/questions.jsonl", "none", "has no questions.*medssr synthesize"),
        ("synthesis/README.md", "none", "no dataset card"),
        ("voting/labeled.jsonl", "kept", "has no labels.*medssr vote.*--labels none"),
        ("voting/labeled.jsonl", "all", "has no labels"),
    ],
)
def test_missing_files_of_the_run_are_named(run, tmp_path, gone, labels, message):
    (run / gone).unlink()
    with pytest.raises(InputError, match=message):
        export_run(run, tmp_path / "out", "jsonl", labels)
    assert not (tmp_path / "out").exists()


def test_export_without_a_kept_label_is_refused(run, tmp_path):
    write_lines(run / "voting" / "labeled.jsonl", LABELS[2:])
    with pytest.raises(InputError, match="no question that --labels kept takes"):
        export_run(run, tmp_path / "out", "jsonl", "kept")
    assert names(tmp_path) == ["run"]


def test_a_broken_line_is_named_and_a_torn_last_one_skipped(run, tmp_path):
    file = run / "synthesis" / "questions.jsonl"
    file.write_bytes(file.read_bytes() + b'{"id": "to')
    assert export_run(run, tmp_path / "out", "jsonl", "none") == 8
    file.write_bytes(b"{broken\n" + file.read_bytes())
    with pytest.raises(InputError, match=r"questions\.jsonl line 1"):
        export_run(run, tmp_path / "other", "jsonl", "none")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(("form", "labels"), [("csv", "kept"), ("jsonl", "some")])
def test_unknown_choices_are_refused(run, tmp_path, form, labels):
    with pytest.raises(InputError, match="choose one of"):
        export_run(run, tmp_path / "out", form, labels)


def test_parquet_is_written_in_bounded_memory(run, tmp_path):
    """Ten times as many questions take no more memory. The memory is measured in subprocesses."""
    code = (
        "import sys; from pathlib import Path; from medssr_dist.commands.export import export_run; "
        "export_run(Path(sys.argv[1]), Path(sys.argv[2]), 'parquet', 'none'); "
        "print([l for l in open('/proc/self/status') if 'VmHWM' in l][0].split()[1])"
    )
    peaks = []
    for count in (3_000, 30_000):
        line = QUESTIONS[0].model_dump_json() + "\n"
        (run / "synthesis" / "questions.jsonl").write_text(line * count, encoding="utf-8")
        out = tmp_path / f"out{count}"
        command = [sys.executable, "-c", code, str(run), str(out)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        assert pq.ParquetFile(out / "train.parquet").num_row_groups == -(-count // 2_000)
    assert peaks[1] < peaks[0] * 1.25, peaks  # the questions themselves are 20 MB more
