r"""JSON objects in the reply of a chat model. Slips of the pen are mended; what is unclear or cut is not read.

Mended: text around the object, code fences, line breaks within strings, single or typographic quotes, keys without
quotes, a comma too many, Python's None and True, and backslashes of LaTeX ("5 \mu g" is no valid JSON, and "\beta" is a
backspace followed by "eta"). Nothing is closed that the reply does not close, and an object with one key twice is not
read, so that no half or mixed question results. Numbers stay as written.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

_MOST_FAILURES = 500  # opening braces of one reply that begin no object
_MOST_LEVELS = 8  # objects and lists within each other
_START = re.compile(r"\{(?=\s*(?:[\"'“”„‘’}]|[A-Za-z_]\w*\s*:))")
_ESCAPE = re.compile(r"\\(?:([\"\\/]|u[0-9A-Fa-f]{4})|(x[0-9A-Fa-f]{2}|[A-Za-z]+)|(.))", re.DOTALL)
# Commands of LaTeX that begin like an escape of JSON. A backspace (\b) or form feed (\f) is never meant.
_LATEX = re.compile(
    "nabla|natural|neg?|neq|newline|nleq|ngeq|not|notin|nu|rangle|rbrace|rceil|rfloor|rho|right|rightarrow|rm|"
    "rightharpoonup|rightleftharpoons|tanh?|tau|text(?:bf|degree|it|mu|rm|subscript|superscript|up)?|tfrac|therefore|"
    "theta|thicksim|tilde|times|tiny|to|top|triangle|[bf].+"
)
_PYTHON_BYTE = re.compile("x[0-9A-Fa-f]{2}")
_JSON_ESCAPES = "bfnrt"
_APOSTROPHE = r"\u0027"  # so that it closes no string
_LATEX_SIGNS = "()[]{}%$&#_,;!^"
_CURLY, _SINGLE_CURLY = "“”„", "‘’"
# The text of a string, by the quote that opens it. An apostrophe between letters closes no string.
_STRINGS = {
    '"': re.compile(r'"((?:[^"\\]|\\.)*+)"', re.DOTALL),
    "'": re.compile(r"'((?:[^'\\]|\\.|(?<=\w)'(?=\w))*+)'", re.DOTALL),
    _CURLY: re.compile(rf"[{_CURLY}]((?:[^{_CURLY}\\]|\\.)*+)[{_CURLY}]", re.DOTALL),
    _SINGLE_CURLY: re.compile(
        rf"[{_SINGLE_CURLY}]((?:[^{_SINGLE_CURLY}\\]|\\.|(?<=\w)’(?=\w))*+)[{_SINGLE_CURLY}]", re.DOTALL
    ),
}
_BARE_QUOTE = re.compile(r'\\.|"', re.DOTALL)
_KEY = re.compile(r"[A-Za-z_]\w*")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?![\w.])")
_WORD = re.compile(r"[A-Za-z]+")
_WORDS = {"true": True, "false": False, "null": None, "None": None, "True": True, "False": False, "NaN": "NaN"}
_SPACE = re.compile(r"\s*")


class FoundObject(NamedTuple):
    """A JSON object and its place in the text: text[start:end]. Example: FoundObject({"question": "..."}, 6, 90)"""

    value: dict[str, Any]
    start: int
    end: int


def mend_escapes(text: str) -> str:
    r"""Return `text` with the backslashes doubled that are LaTeX and no escapes of JSON: "\mu" -> "\\mu"."""
    return _ESCAPE.sub(_mend, text) if "\\" in text else text


def find_objects(text: str) -> list[FoundObject]:
    """Return the outermost JSON objects of `text` (see `mend_escapes`), in order."""
    found: list[FoundObject] = []
    failures = 0
    match = _START.search(text)
    while match and failures < _MOST_FAILURES:
        try:
            one = _decode(text, match.start())
        except RecursionError:
            break
        if one:
            found.append(one)
        failures += one is None
        match = _START.search(text, one.end if one else match.end())
    return found


def _mend(escape: re.Match[str]) -> str:
    valid, name, sign = escape.groups()
    if valid or (name and name[0] in _JSON_ESCAPES and not _LATEX.fullmatch(name)):
        return escape.group()
    if name and _PYTHON_BYTE.fullmatch(name):
        return "\\u00" + name[1:]
    if name or sign in _LATEX_SIGNS:
        return "\\" + escape.group()
    return _APOSTROPHE if sign == "'" else sign


def _decode(text: str, start: int) -> FoundObject | None:
    """Return the object that starts at `start`, or None if it cannot be read."""
    try:
        value, end = _decoder.raw_decode(text, start)
        return FoundObject(value, start, end)
    except ValueError:
        reader = _LooseReader(text, start)
        try:
            return FoundObject(reader.read_object(0), start, reader.place)
        except ValueError:
            return None


def _build_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these pairs. Raises ValueError if it has one key with two values."""
    built: dict[str, Any] = {}
    for key, value in pairs:
        if built.setdefault(key, value) != value:
            raise ValueError(f"two values of {key!r}")
    return built


_decoder = json.JSONDecoder(
    strict=False, object_pairs_hook=_build_object, parse_float=str, parse_int=str, parse_constant=str
)


class _LooseReader:
    """Reads one value after the other from `place` on. Its methods raise ValueError where the text cannot be read."""

    def __init__(self, text: str, place: int):
        self._text = text
        self.place = place

    def read_object(self, level: int) -> dict[str, Any]:
        """Read an object whose opening brace is at `place`."""
        pairs: list[tuple[str, Any]] = []
        comma = True
        self.place += 1
        while not self._take("}"):
            if not comma:
                raise ValueError("no comma")
            key = self._read_key()
            if not self._take(":"):
                raise ValueError("no colon")
            pairs.append((key, self._read_value(level + 1)))
            comma = self._take(",")
        return _build_object(pairs)

    def _read_list(self, level: int) -> list[Any]:
        items: list[Any] = []
        comma = True
        self.place += 1
        while not self._take("]"):
            if not comma:
                raise ValueError("no comma")
            items.append(self._read_value(level + 1))
            comma = self._take(",")
        return items

    def _read_value(self, level: int) -> Any:
        first = self._peek()
        if first in "{[":
            if level > _MOST_LEVELS:
                raise ValueError("too many levels")
            return self.read_object(level) if first == "{" else self._read_list(level)
        if (text := self._read_string()) is not None:
            return text
        if number := _NUMBER.match(self._text, self.place):
            self.place = number.end()
            return number.group()
        word = _WORD.match(self._text, self.place)
        if word is None or word.group() not in _WORDS:
            raise ValueError("no value")
        self.place = word.end()
        return _WORDS[word.group()]

    def _read_key(self) -> str:
        self._peek()
        if (text := self._read_string()) is not None:
            return text
        key = _KEY.match(self._text, self.place)
        if key is None:
            raise ValueError("no key")
        self.place = key.end()
        return key.group()

    def _read_string(self) -> str | None:
        """Return the string at `place`, or None if there is none."""
        first = self._text[self.place]
        pattern = next((pattern for quotes, pattern in _STRINGS.items() if first in quotes), None)
        if pattern is None:
            return None
        match = pattern.match(self._text, self.place)
        if match is None:
            raise ValueError("a string is not closed")
        self.place = match.end()
        escaped = _BARE_QUOTE.sub(lambda each: '\\"' if each.group() == '"' else each.group(), match.group(1))
        return str(_decoder.decode(f'"{escaped}"'))

    def _take(self, sign: str) -> bool:
        """Return whether the next character is `sign`, and move behind it."""
        found = self._peek() == sign
        self.place += found
        return found

    def _peek(self) -> str:
        """Move to the next character that is no space, and return it."""
        match = _SPACE.match(self._text, self.place)
        self.place = match.end() if match else self.place
        if self.place >= len(self._text):
            raise ValueError("the text ends within the object")
        return self._text[self.place]
