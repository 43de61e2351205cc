r"""JSON as chat models write it: slips that are mended, LaTeX, and what must not be read."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medssr_dist.synthesis.checks.loose_json import find_objects, mend_escapes


def read(text):
    """Return the values of the objects in a text."""
    return [found.value for found in find_objects(mend_escapes(text))]


LATEX = (
    r"\mu",
    r"\alpha",
    r"\beta",
    r"\frac{1}{2}",
    r"\nu",
    r"\neq",
    r"\tau",
    r"\theta",
    r"\times 3",
    r"\text{mg}",
    r"\rho",
)
LATEX += (
    r"\rightarrow",
    r"\Delta",
    r"\leq",
    r"\uparrow",
    r"\(x\)",
    r"\%",
    r"\bar{x}",
    r"\forall",
    r"10\,mg",
    r"\right)",
)


@pytest.mark.parametrize("latex", [*LATEX, r"\tan x", r"\sqrt{2}", r"5 \mu g"])
def test_latex_in_a_string_is_kept(latex):
    assert read('{"a": "x ' + latex + ' y"}') == [{"a": f"x {latex} y"}]
    assert read(json.dumps({"a": latex})) == [{"a": latex}]  # escaped as it should be


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r"one\ntwo", "one\ntwo"),
        (r"one\nThe second", "one\nThe second"),
        (r"Na\t140\nK\t4", "Na\t140\nK\t4"),
        (r"a\r\nb", "a\r\nb"),
        (r"caf\u00e9 \u03b2", "café β"),
        (r"10\xa0km", "10\u00a0km"),
        (r"Crohn\'s", "Crohn's"),
        (r"1\*2 \> 3", "1*2 > 3"),
        (r"a\/b", "a/b"),
        (r"\"no\"", '"no"'),
        ("two\nlines", "two\nlines"),
    ],
)
def test_escapes_in_a_string(written, meant):
    assert read('{"a": "' + written + '"}') == [{"a": meant}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{'a': 'the patient's foot', 'b': \"it's\"}", {"a": "the patient's foot", "b": "it's"}),
        ('{“a”: “Crohn’s "x"”}', {"a": 'Crohn’s "x"'}),
        ("{‘a’: ‘Crohn’s’}", {"a": "Crohn’s"}),
        ("{a: 1, b_2: [true, None, False, -2.50,],}", {"a": "1", "b_2": [True, None, False, "-2.50"]}),
        ('{"a": NaN}', {"a": "NaN"}),
        ('{"a": "x", "a": "x"}', {"a": "x"}),
        ("{}", {}),
    ],
)
def test_slips_that_are_mended(text, value):
    assert read(text) == [value]
    assert read(f"Here it is: {{x}} {text} and {{ more") == [value]


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "x',
        '{"a": "x"',
        '{"a": ["x", "y"}',
        '{"a": "x" "b": "y"}',
        '{"a": ["x" "y"]}',
        '{"a": "x", "a": "y"}',
        "{'a': 'x', 'a': 'y'}",
        '{"a": "he said "no" twice"}',
        "{'a': 'patients' wounds', 'b': 1}",
        '{"a": x}',
        '{"a": 1.2.3}',
        '{"a"; "b"}',
        "{“a”: “say “no” twice”}",
    ],
)
def test_what_is_unclear_or_cut_is_not_read(text):
    assert read(text) == []


def test_places_and_nested_objects():
    text = 'a {"x": {"y": 1}} b {"z": 2} c'
    assert [text[each.start : each.end] for each in find_objects(text)] == ['{"x": {"y": 1}}', '{"z": 2}']
    assert read('{"broken": {"inner": "whole"} "and": 1') == [{"inner": "whole"}]


@given(st.dictionaries(st.text(), st.text() | st.lists(st.text()) | st.booleans() | st.none(), max_size=4))
def test_valid_json_is_read_as_it_is(value):
    text = json.dumps(value)
    if not any(mark in text for mark in (r"\b", r"\f", r"\n", r"\t", r"\r")):
        assert read(text) == [value]
