"""Reads YAML that a person wrote, or an adversary: every fault is an InputError that says where, and quotes nothing.

Of YAML, all plain values are read. Refused are a key that occurs twice in a section (PyYAML takes the last), tags of
Python objects, aliases that multiply or hold themselves, deep nesting, numbers in base 60 or 8 (1:30, 010), and text
that cannot be written as UTF-8.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from medssr_dist.data.jsonl import read_text
from medssr_dist.errors import InputError

_CHARS = 1_000_000  # of a YAML text
_DEPTH = 50  # of sections and lists within each other
_VALUES = 1_000_000  # in one file, where each alias counts as what it stands for
_QUOTED = re.compile(r"(['\"]).{2,}?\1")  # PyYAML quotes names of the file, and in the wrong place those are secrets
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")
_NUMBERS = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
_OLD_NUMBER = re.compile(r"[-+]?(?:\d[\d_]*(?::[\d_.]+)+|0[\d_]+)")  # 1:30 would be 90, and 010 would be 8
_BAD_SCALAR = (ValueError, KeyError, AttributeError, TypeError, IndexError, OverflowError)


def read_yaml(path: Path) -> Any:
    """Return the value of a YAML file. Raises InputError where it cannot be read; the message names file and line."""
    return parse_yaml(read_text(path), str(path))


def parse_yaml(text: str, where: str) -> Any:
    """Return the value of a YAML text: sections, lists, texts, numbers, dates, None.

    Args:
        where: the place of the text, for the message.

    Raises:
        InputError: it is not valid YAML, or one of the things that are refused (see the module).
    """
    if len(text) > _CHARS:
        raise InputError(f"{where} has {len(text):,} characters, more than {_CHARS:,}: it is no config; check the path")
    try:
        loader = _PlainLoader(text)
        try:
            root = loader.get_single_node()
            if root is None:
                return None
            _refuse_large(root, {}, 0)
            return loader.construct_document(root)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = _QUOTED.sub("...", ", ".join(filter(None, (error.context, error.problem))))
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        place, reason = f"line {line}: ", f"the character {chr(error.character)!r} is not allowed"
    except RecursionError:
        place, reason = "", f"sections and lists are nested more than {_DEPTH} deep"
    raise InputError(f"{where} is not valid YAML ({place}{reason}); correct it")


class _PlainLoader(yaml.SafeLoader):
    """Builds plain values only; a value or key that cannot be built is an error with its line."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        if node.tag in _NUMBERS and _OLD_NUMBER.fullmatch(node.value):
            raise _error(node, "YAML reads this as a number in base 60 or 8; quote a text, write a number in base 10")
        try:
            value = super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except _BAD_SCALAR:
            raise _error(node, f"the value is no {node.tag.rpartition(':')[2]}") from None
        if isinstance(value, str) and not _is_plain(value):
            raise _error(node, "the text holds a NUL or half a surrogate pair")
        return value

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                key = self.construct_object(key_node)
                if key in seen:
                    raise _error(key_node, "the section has this key twice; remove one")
                seen.add(key)
        return super().construct_mapping(node, deep)


def _refuse_large(node: Node, sizes: dict[int, int], depth: int) -> int:
    """Return the number of values in `node`. Raises YAMLError where there are too many, or they hold themselves."""
    known = sizes.get(id(node))
    if known == 0 or depth > _DEPTH:
        raise _error(node, "a value holds itself" if known == 0 else f"nested more than {_DEPTH} deep")
    if known:
        return known
    sizes[id(node)] = 0  # while its parts are counted
    size = 1
    if isinstance(node, SequenceNode | MappingNode):
        parts = node.value if isinstance(node, SequenceNode) else [part for pair in node.value for part in pair]
        for part in parts:
            size += _refuse_large(part, sizes, depth + 1)
    if size > _VALUES:
        raise _error(node, f"it stands for more than {_VALUES:,} values")
    sizes[id(node)] = size
    return size


def _is_plain(text: str) -> bool:
    return not _UNWRITABLE.search(text)


def _error(node: Node, problem: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
