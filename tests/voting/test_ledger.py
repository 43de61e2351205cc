"""The vote ledger on disk: each vote and label once, whatever crashes, and readable by other tools."""

import gzip
import json

import pytest
from config_builder import make_config
from ledger_writer import K, fill, keep_lines, label, names, question, seeds, vote
from places import HELPERS
from stored_votes import stored_labels, stored_votes
from stream_parts import make_prompts

from medssr_dist.config.schema import Config
from medssr_dist.data.checksums import CRC_KEY
from medssr_dist.data.jsonl import read_jsonl
from medssr_dist.errors import InputError
from medssr_dist.voting import segments
from medssr_dist.voting.ledger import VoteLedger, derive_seeds, hash_vote_sampling, read_ledger_counts

WRITER = HELPERS / "ledger_writer.py"


@pytest.fixture(autouse=True)
def small_segments(monkeypatch):
    monkeypatch.setattr(segments, "SEGMENT_QUESTIONS", 4)


# --- writing and reading back -----------------------------------------------------------------------


def test_a_ledger_resumes_where_it_was(tmp_path):
    with VoteLedger(tmp_path, "p", "s") as ledger:
        ledger.add_votes(0, [vote(0, seed, text="long") for seed in range(K)])
        ledger.add_votes(1, [vote(1, 2)])
        ledger.add_label(0, label(0))
    with VoteLedger(tmp_path, "p", "s") as again:
        assert (again.num_labels, again.num_kept) == (1, 1)
        assert again.known_votes(1, question(1)) == {2: vote(1, 2)}
        assert again.known_votes(0, question(0)) == {}, "forgotten once it has its label"
        assert again.known_votes(2, question(2)) == {}
    assert stored_labels(tmp_path) == [label(0)]
    assert {vote.text for vote in stored_votes(tmp_path)} == {"long", ""}


def test_of_votes_with_equal_keys_the_first_counts(tmp_path):
    second = vote(0, 0).model_copy(update={"tokens": 99})
    with VoteLedger(tmp_path, "p", "s") as ledger:
        assert ledger.add_votes(0, [vote(0, 0), second]) == 1
        ledger.commit()
        assert ledger.add_votes(0, [second]) == 0
    with VoteLedger(tmp_path, "p", "s") as again:
        assert again.add_votes(0, [second, vote(0, 1)]) == 1
        assert again.known_votes(0, question(0)) == {0: vote(0, 0), 1: vote(0, 1)}
    assert stored_votes(tmp_path) == [vote(0, 0), vote(0, 1)]


def test_a_doubled_line_counts_once(tmp_path):
    fill(tmp_path, 1, labels=0)
    file = tmp_path / "votes" / "00000.jsonl"
    file.write_bytes(file.read_bytes() * 2)
    assert seeds(VoteLedger(tmp_path, "p", "s"), 0) == [0, 1, 2, 3]


def test_labels_are_in_question_order_and_end_their_question(tmp_path):
    with VoteLedger(tmp_path, "p", "s") as ledger:
        for position in (1, 5):
            with pytest.raises(ValueError, match=f"of question 0, not of question {position}"):
                ledger.add_label(position, label(position))
        ledger.add_label(0, label(0))
        assert ledger.add_votes(0, [vote(0, 3)]) == 0, "its question has a label"
    assert stored_votes(tmp_path) == []


def test_text_is_kept_or_dropped_by_config(tmp_path):
    for keep, text in ((True, "long é\u2028 text"), (False, "")):
        folder = tmp_path / str(keep)
        with VoteLedger(folder, "p", "s", keep_text=keep) as ledger:
            ledger.add_votes(0, [vote(0, 1, text="long é\u2028 text")])
            assert ledger.known_votes(0, question(0)) == {1: vote(0, 1)}, "the text is never in memory"
        assert [vote.text for vote in stored_votes(folder)] == [text]


def test_half_a_surrogate_pair_does_not_lose_the_vote(tmp_path):
    broken = vote(0, 1).model_copy(update={"text": "x\ud83d"})
    with VoteLedger(tmp_path, "p", "s") as ledger:
        ledger.add_votes(0, [broken])
    assert [vote.text for vote in stored_votes(tmp_path)] == ["x?"]


def test_nothing_is_on_disk_before_commit(tmp_path):
    ledger = VoteLedger(tmp_path, "p", "s")
    ledger.add_votes(0, [vote(0, 1)])
    ledger.add_label(0, label(0))
    assert stored_votes(tmp_path) == list(read_jsonl(ledger.labels_file)) == []
    ledger.commit()
    assert len(stored_votes(tmp_path)) == len(list(read_jsonl(ledger.labels_file))) == 1
    ledger.close()


# --- policy and sampling ----------------------------------------------------------------------------


def test_votes_of_another_policy_or_sampling_are_never_mixed(tmp_path):
    for policy, sampling in (("p", "s"), ("other", "s"), ("p", "other")):
        with VoteLedger(tmp_path, policy, sampling) as ledger:
            assert seeds(ledger, 0) == []
            ledger.add_votes(0, [vote(0, 1, policy, sampling)])
            with pytest.raises(ValueError, match="is not of policy"):
                ledger.add_votes(0, [vote(0, 2, "third", sampling)])
    for policy, sampling in (("p", "s"), ("other", "s"), ("p", "other")):
        found = VoteLedger(tmp_path, policy, sampling).known_votes(0, question(0))
        assert found == {1: vote(0, 1, policy, sampling)}
    assert len(stored_votes(tmp_path)) == 3


def test_labels_of_another_policy_or_sampling_are_refused(tmp_path):
    """Otherwise a question would be voted on again and keep its old label."""
    fill(tmp_path, 1)
    for other in (("p", "other"), ("other", "s")):
        with pytest.raises(InputError, match="labeled.jsonl holds labels of another policy.*--run-dir"):
            VoteLedger(tmp_path, *other)
    assert json.loads((tmp_path / "ledger.json").read_text())["sampling"] == "s"


def test_labels_of_other_questions_are_refused(tmp_path):
    fill(tmp_path, 6)
    with VoteLedger(tmp_path, "p", "s") as ledger:
        for position in [*range(6), 6, 2, 2, 5]:
            ledger.check_order(position, question(position))
        for position in (0, 3, 5):
            with pytest.raises(InputError, match=f"labeled.jsonl line {position + 1} .* or their order changed"):
                ledger.check_order(position, question(99))


def config(**voting) -> Config:
    return make_config(voting={"max_tokens": 16, **voting})


def test_the_sampling_hash_covers_what_affects_a_vote():
    base = hash_vote_sampling(config(), make_prompts())
    assert hash_vote_sampling(config(), make_prompts("other template")) != base
    for changed in ({"temperature": 0.7}, {"top_p": 0.9}, {"max_tokens": 8}):
        assert hash_vote_sampling(config(**changed), make_prompts()) != base
    for same in ({"samples": 99}, {"threshold": 0.9}, {"engines": 2}, {"in_flight": 1}, {"adaptive": "never"}):
        assert hash_vote_sampling(config(**same), make_prompts()) == base


def test_seeds_do_not_depend_on_the_number_of_votes():
    few, many = derive_seeds("ab", 42, 4), derive_seeds("ab", 42, 8)
    assert list(few) == list(many)[:4]
    assert len({derive_seeds("ab", 42, 4), derive_seeds("ac", 42, 4), derive_seeds("ab", 43, 4)}) == 3


# --- segments ---------------------------------------------------------------------------------------


def test_complete_segments_are_packed(tmp_path):
    fill(tmp_path, 11, labels=9)
    assert names(tmp_path) == ["00000.jsonl.gz", "00001.jsonl.gz", "00002.jsonl"]
    assert [vote.key for vote in stored_votes(tmp_path)] == [vote(i, s).key for i in range(11) for s in range(K)]
    with VoteLedger(tmp_path, "p", "s") as again:
        assert [seeds(again, position) for position in range(8, 12)] == [[], [0, 1, 2, 3], [0, 1, 2, 3], []]


def test_only_undecided_segments_are_read_on_opening(tmp_path):
    fill(tmp_path, 9, labels=8)
    for number in (0, 1):
        (tmp_path / "votes" / f"0000{number}.jsonl.gz").write_bytes(b"not read")
    with VoteLedger(tmp_path, "p", "s") as again:
        assert seeds(again, 8) == [0, 1, 2, 3]


def test_later_votes_are_read_with_their_question(tmp_path):
    fill(tmp_path, 12, labels=0)
    keep_lines(tmp_path / "votes" / "00002.jsonl", 3, b'{"torn')
    with VoteLedger(tmp_path, "p", "s") as again:
        assert seeds(again, 8) == [0, 1, 2]
        again.add_votes(8, [vote(8, 3)])
        again.release()
        assert seeds(again, 8) == [0, 1, 2, 3]
    assert len(stored_votes(tmp_path)) == 36


@pytest.mark.parametrize("whole", [True, False])
def test_a_crash_while_packing_leaves_each_vote_once(tmp_path, whole):
    """Both files exist: the packed one is kept if it is complete, else the plain one."""
    fill(tmp_path, 4, labels=3)
    plain = tmp_path / "votes" / "00000.jsonl"
    data = plain.read_bytes()
    fill(tmp_path, 4)
    packed = plain.with_name("00000.jsonl.gz")
    assert gzip.decompress(packed.read_bytes()) == data
    plain.write_bytes(b"" if whole else data)
    if not whole:
        packed.write_bytes(packed.read_bytes()[:-9])
    (tmp_path / "ledger.json").unlink()
    VoteLedger(tmp_path, "p", "s").close()
    assert names(tmp_path) == ["00000.jsonl.gz"]
    assert gzip.decompress(packed.read_bytes()) == data
    assert read_ledger_counts(tmp_path).votes == 16


def test_partly_packed_files_are_removed(tmp_path):
    fill(tmp_path, 4, labels=3)
    (tmp_path / "votes" / ".00000.aside").write_bytes(gzip.compress(b"half")[:-5])
    VoteLedger(tmp_path, "p", "s").close()
    assert names(tmp_path) == ["00000.jsonl"]


def test_a_complete_plain_segment_is_packed_on_opening(tmp_path):
    fill(tmp_path, 5)
    packed = tmp_path / "votes" / "00000.jsonl.gz"
    packed.with_name("00000.jsonl").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    (tmp_path / "ledger.json").unlink()
    VoteLedger(tmp_path, "p", "s").close()
    assert names(tmp_path) == ["00000.jsonl.gz", "00001.jsonl"]


def test_lost_labels_unpack_their_segment(tmp_path):
    fill(tmp_path, 9)
    keep_lines(tmp_path / "labeled.jsonl", 2, b'{"question"')
    assert read_ledger_counts(tmp_path) == (2, 1, 36)
    with VoteLedger(tmp_path, "p", "s") as again:
        assert again.num_labels == 2
        assert [seeds(again, position) for position in (2, 3, 4, 8)] == [[0, 1, 2, 3]] * 4
        again.add_votes(2, [vote(2, 77)])
        for position in range(2, 9):
            again.add_label(position, label(position))
    assert names(tmp_path) == ["00000.jsonl.gz", "00001.jsonl.gz", "00002.jsonl"]
    assert len(stored_votes(tmp_path)) == 37
    assert read_ledger_counts(tmp_path) == (9, 3, 37)


# --- read by other processes ------------------------------------------------------------------------


def test_counts_are_right_during_a_vote_and_after(tmp_path):
    assert read_ledger_counts(tmp_path) == (0, 0, 0)
    ledger = VoteLedger(tmp_path, "p", "s")
    for position in range(10):
        ledger.add_votes(position, [vote(position, seed) for seed in range(K)])
        ledger.add_label(position, label(position))
        ledger.commit()
        assert read_ledger_counts(tmp_path) == (position + 1, position // 3 + 1, K * (position + 1))
    ledger.add_votes(10, [vote(10, 0)])
    ledger.close()
    assert read_ledger_counts(tmp_path) == (10, 4, 41)
    (tmp_path / "ledger.json").unlink()
    assert read_ledger_counts(tmp_path) == (10, 4, 41)


def test_counting_reads_only_what_ledger_json_does_not_count(tmp_path):
    fill(tmp_path, 8)
    for file in (tmp_path / "votes").iterdir():
        file.write_bytes(b"not read")
    size = (tmp_path / "labeled.jsonl").stat().st_size
    (tmp_path / "labeled.jsonl").write_bytes(b"x" * size)
    assert read_ledger_counts(tmp_path) == (8, 3, 32)


def test_datasets_loads_plain_and_packed_segments_together(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    fill(tmp_path, 6, labels=5)
    (tmp_path / "votes" / ".00001.aside").write_bytes(b"half")
    assert names(tmp_path) == [".00001.aside", "00000.jsonl.gz", "00001.jsonl"]
    found = datasets.load_dataset(
        "json", data_files=str(tmp_path / "votes" / "*"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert sorted(zip(found["question_id"], found["seed"], strict=True)) == sorted(
        (question(position).id, seed) for position in range(6) for seed in range(K)
    )
    assert set(found.column_names) == {*vote(0).model_dump(exclude={"token_ids"}), CRC_KEY}
