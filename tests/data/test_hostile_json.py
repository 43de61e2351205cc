"""JSON and YAML that nobody should have written: an error of one line that says where, and repeats no secret."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from medssr_dist.data.json_text import parse_json
from medssr_dist.data.jsonl import read_json
from medssr_dist.data.records import Record, parse_record, read_record
from medssr_dist.data.yaml_text import parse_yaml
from medssr_dist.errors import InputError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 200_000, "nested too deep"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "nested too deep"),
        ('{"a": ' + "7" * 6_000 + "}", "4300 digits"),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' twice"),
        ('{"a": 1} {"a": 2}', "Extra data"),
        ('{"a": \x01"b"}', "Expecting value"),
        ("", "Expecting value"),
        ("{'a': 1}", "property name"),
    ],
    ids=["lists", "objects", "digits", "key twice", "two documents", "control", "empty", "quotes"],
)
def test_bad_json_is_one_line(text, words):
    with pytest.raises(InputError, match=words) as error:
        parse_json(text, "f.json")
    assert str(error.value).startswith("f.json is not valid JSON (") and len(str(error.value)) <= 500


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 2025-13-01", "line 1, column 4: the value is no timestamp"),
        ("a: 2025-01-01T25:00:00Z", "no timestamp"),
        ("a: 2025-01-01T00:00:00-88:00", "no timestamp"),
        ("b: 1\na: 0x_", "line 2, column 4: the value is no int"),
        ("a: -0b_", "no int"),
        ("a: " + "8" * 6_000, "no int"),
        ("a: !!int x", "no int"),
        ("a: 1:30", "line 1, column 4: YAML reads this as a number in base 60"),
        ("a: -190:20:30.5", "base 60"),
        ("a: 1\nrevision: 0123456", "line 2, column 11: YAML reads this as a number in base 60 or 8"),
        ("a: !!float ''", "no float"),
        ("a: !!bool 3", "no bool"),
        ("a: !!binary '\xff'", "line 1"),
        ("a: !!python/object/new:os.system [true]", "could not determine a constructor"),
        ("a: {b: 1, b: 2}", "this key twice"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: the section has this key twice"),
        ("0x10: a\n16: b", "this key twice"),
        ("a: &x [1, *x]", "holds itself"),
        ("a: &x {b: {c: *x}}", "holds itself"),
        ("x: " + "{a: " * 60 + "1" + "}" * 60, "nested more than 50 deep"),
        ("- " * 3000 + "a", "deep"),
        ('a: "\\ud83d"', "half a surrogate pair"),
        ('"\\0": a', "NUL"),
        ("a: \x07", "line 1: the character '\\x07' is not allowed"),
        ("a: b: c", "mapping values are not allowed"),
        ("a\n---\nb", "expected a single document"),
    ],
)
def test_bad_yaml_is_one_line_with_its_place(text, words):
    with pytest.raises(InputError) as error:
        parse_yaml(text, "c.yaml")
    message = str(error.value)
    assert words in message and message.startswith("c.yaml is not valid YAML (") and len(message) <= 500


def test_aliases_that_multiply_are_refused():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12)]
    with pytest.raises(InputError, match="stands for more than 1,000,000 values"):
        parse_yaml("\n".join(lines), "c.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("-0.5", -0.5), ("1_000", 1000), ("0x1F", 31), ("'010'", "010"), ("0.10", 0.1), ("0e3", "0e3")],
)
def test_plain_numbers_are_read(text, value):
    assert parse_yaml(f"a: {text}", "c.yaml") == {"a": value}


def test_plain_yaml_with_aliases_and_merges_is_read():
    text = "base: &b {a: 1, c: 2}\nother: {<<: *b, a: 3}\nlist: [*b, *b]"
    tree = parse_yaml(text, "c.yaml")
    assert tree["other"] == {"a": 3, "c": 2} and tree["list"] == [{"a": 1, "c": 2}] * 2
    assert parse_yaml("", "c.yaml") is None


@pytest.mark.parametrize(
    "text", ["k: 'sk-secret", "*sk-secret-anchor", "sk-secret: [a", "!sk-secret-tag a", "@sk-secret"]
)
def test_bad_yaml_is_not_quoted(text):
    with pytest.raises(InputError) as error:
        parse_yaml(text, "c.yaml")
    assert "secret" not in str(error.value)


class Example(Record):
    """A record. Example: Example(share=0.5)"""

    share: float


@dataclass(frozen=True)
class Plain:
    """A dataclass. Example: Plain(step=1)"""

    step: int


@pytest.mark.parametrize("value", [None, [], [1], 5, "x", {}, {"share": "x"}, {"share": float("inf")}, {"share": [1]}])
def test_values_of_another_shape_are_no_record(value):
    with pytest.raises(InputError, match=r"^f line 3: "):
        parse_record(Example, value, "f line 3")


@pytest.mark.parametrize("value", [None, [], 5, {}, {"step": "x"}, {"step": 1e400}, {"step": {}}])
def test_values_of_another_shape_are_no_dataclass(value):
    with pytest.raises(InputError, match=r"^f: "):
        parse_record(Plain, value, "f")


def test_a_record_is_read_from_a_file(tmp_path):
    (tmp_path / "a.json").write_text('{"share": 1e999}')
    with pytest.raises(InputError, match=r"a\.json: share: .*finite"):
        read_record(Example, tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"share": 0.5}')
    assert read_record(Example, tmp_path / "a.json") == Example(share=0.5)


def test_a_path_of_thousands_of_characters_is_not_repeated(tmp_path):
    with pytest.raises(InputError) as error:
        read_json(tmp_path / ("x" * 5000))
    assert len(str(error.value)) <= 500 and "check the path" in str(error.value)
