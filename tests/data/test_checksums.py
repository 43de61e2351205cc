"""Checksums of lines and documents: a flipped bit is found, whatever it hits, and older files are read as they are."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.data.checksums import CRC_KEY, Damaged, LineChecker, seal_line
from medssr_dist.data.jsonl import JsonlLedger, read_json, read_jsonl, write_json
from medssr_dist.errors import InputError

ROWS = [{"id": "a", "text": 'quotes " and } braces'}, {"id": "b", "tokens": 7, "text": "naïve\u2028"}]

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda parts: st.lists(parts, max_size=3) | st.dictionaries(texts, parts, max_size=3),
    max_leaves=10,
)
rows = st.dictionaries(texts.filter(lambda key: key != CRC_KEY), values, max_size=5)


@pytest.fixture
def ledger_file(tmp_path):
    with JsonlLedger(tmp_path / "rows.jsonl") as ledger:
        ledger.append(*ROWS)
    return tmp_path / "rows.jsonl"


def flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_lines_are_json_with_their_checksum_last(ledger_file):
    lines = ledger_file.read_text().splitlines()[:1]
    assert list(json.loads(lines[0])) == ["id", "text", CRC_KEY] and list(read_jsonl(ledger_file)) == ROWS


def test_no_flipped_bit_of_a_line_is_used(ledger_file):
    data = ledger_file.read_bytes()
    for bit in range(8 * len(data)):
        ledger_file.write_bytes(flip(data, bit))
        try:
            assert list(read_jsonl(ledger_file)) == ROWS, bit
        except InputError as error:
            assert str(ledger_file) in str(error)


def test_no_flipped_bit_of_a_document_is_used(tmp_path):
    file, value = tmp_path / "a.json", {"steps": {"vote": None}, "seconds": [1.5, 2]}
    write_json(file, value)
    data = file.read_bytes()
    for bit in range(8 * len(data)):
        file.write_bytes(flip(data, bit))
        try:
            found = read_json(file)
        except InputError as error:
            assert str(file) in str(error)
        else:
            assert {key: found.get(key) for key in value} == value, bit


@pytest.mark.parametrize("end", [b"\r\n", b" \n", b"\t\r\n", b"\n\n"])
def test_space_behind_lines_hides_no_damage(ledger_file, end):
    data = ledger_file.read_bytes().replace(b"\n", end)
    ledger_file.write_bytes(data)
    assert list(read_jsonl(ledger_file)) == ROWS
    ledger_file.write_bytes(data.replace(b'"b"', b'"c"'))
    with pytest.raises(Damaged):
        list(read_jsonl(ledger_file))


@given(rows)
def test_every_row_comes_back(row):
    line = seal_line(json.dumps(row, ensure_ascii=False).encode())
    assert json.loads(line).keys() == {*row, CRC_KEY}
    assert json.loads(LineChecker("f").open(line)) == row


@given(rows, st.data())
def test_a_changed_byte_is_never_used(row, data):
    line = seal_line(json.dumps(row).encode())
    place = data.draw(st.integers(0, len(line) - 2))
    byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != line[place] and byte not in b"\r\n"))
    changed = line[:place] + bytes([byte]) + line[place + 1 :]
    checker = LineChecker("f")
    checker.open(line)
    with pytest.raises(Damaged, match="f line 2 does not match its checksum"):
        checker.open(changed)


@given(rows)
def test_every_document_comes_back(tmp_path_factory, row):
    file = tmp_path_factory.mktemp("doc") / "a.json"
    write_json(file, row)
    assert read_json(file) == row


def test_a_document_that_was_formatted_anew_is_read(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    (tmp_path / "a.json").write_text(json.dumps(json.loads((tmp_path / "a.json").read_text()), sort_keys=True))
    assert read_json(tmp_path / "a.json") == {"a": [2], "b": 1}


def test_an_edited_document_is_refused_with_the_way_out(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1})
    edited = json.loads((tmp_path / "a.json").read_text()) | {"b": 2}
    (tmp_path / "a.json").write_text(json.dumps(edited))
    with pytest.raises(InputError, match='a.json does not match its checksum.* delete its "crc32"'):
        read_json(tmp_path / "a.json")
    del edited[CRC_KEY]
    (tmp_path / "a.json").write_text(json.dumps(edited))
    assert read_json(tmp_path / "a.json") == {"b": 2}


def test_lines_of_an_earlier_version_are_read_and_continued(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": "old"}\n')
    with JsonlLedger(file) as ledger:
        ledger.append({"id": "new"})
    assert [row["id"] for row in read_jsonl(file)] == ["old", "new"]


def test_a_line_that_lost_its_checksum_is_damaged(tmp_path, ledger_file):
    with open(ledger_file, "a") as file:
        file.write('{"id": "c"}\n')
    with pytest.raises(Damaged, match="line 3"):
        list(read_jsonl(ledger_file))
    damaged = []
    assert list(read_jsonl(ledger_file, damaged.append)) == ROWS and len(damaged) == 1
