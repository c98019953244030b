"""Read YAML and JSON files as kubectl does, so that we validate what the API server would get.

kubectl converts YAML to JSON by the YAML 1.1 rules of its own parser: ``on`` is true, ``010`` is 8,
``1e3`` is 1000, a date is text. PyYAML resolves some of these differently, so we use its parser
only, and resolve scalars here.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from video2world_operator.api.errors import InvalidResource, Problem

__all__ = ["Document", "as_json", "documents", "from_json", "join", "text_of", "to_json"]

MAX_VALUES = 200_000  # per file, with aliases expanded: a few aliases can expand to billions
_PLAIN = "plain"  # stands for the tag of a scalar that is neither quoted nor tagged
_YAML = "tag:yaml.org,2002:"
_BOOLEANS = {
    word: value
    for value, words in ((True, ("y", "yes", "true", "on")), (False, ("n", "no", "false", "off")))
    for lower in words
    for word in (lower, lower.capitalize(), lower.upper())
}
_NULLS = ("", "~", "null", "Null", "NULL")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[oO]?[0-7]+|0[bB][01]+|0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


@dataclass
class Document:
    """One document of a file.

    By path (``spec.training.nodes``): ``lines`` of the values in the file, and ``sources``, the
    original text of those that are not strings.
    """

    value: Any
    lines: dict[str, int] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)


def join(path: str, part: object) -> str:
    """Append a field or the index of an item to a path."""
    if isinstance(part, int):
        return f"{path}[{part}]"
    return f"{path}.{part}" if path else str(part)


def text_of(path: Path) -> str:
    """Read a text file in UTF-8, or in UTF-16 if its byte order mark says so."""
    try:
        content = path.read_bytes()
    except OSError as error:
        remedy = f"cannot be read ({error.strerror}); pass the path of a YAML file"
        raise InvalidResource([Problem(str(path), remedy)]) from None
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        where = "UTF-16" if utf16 else f"UTF-8 (line {line}, byte {content[error.start]:#04x})"
        remedy = f"is not valid {where}; save it as UTF-8 and pass a YAML file"
        raise InvalidResource([Problem(str(path), remedy)]) from None


def documents(text: str, name: str) -> list[Document]:
    """Parse the documents of a file or stream called ``name``, without empty ones.

    Raises:
        InvalidResource: the text is neither YAML nor JSON; names the line and column.
    """
    if text.lstrip().startswith("{"):
        try:
            return list(_json(text, name))
        except (json.JSONDecodeError, RecursionError):
            pass  # YAML in flow style
    return [d for d in _yaml(text, name) if d.value is not None]


def _refused(name: str, line: int, column: int, what: str, remedy: str) -> InvalidResource:
    where = f"{name}, line {line}, column {column}"
    return InvalidResource([Problem(where, f"not valid YAML: {what}; {remedy}")])


# ---------------------------------------------------------------------- JSON


def _json(text: str, name: str) -> Iterator[Document]:
    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [key for key, _ in pairs]
            twice = next(key for key in names if names.count(key) > 1)
            raise InvalidResource([Problem(name, f"not valid: {twice} is set twice; keep one")])
        return made

    def number(word: str) -> Any:
        raise InvalidResource([Problem(name, f"not valid JSON: {word} is not a number in JSON")])

    decoder = json.JSONDecoder(object_pairs_hook=mapping, parse_constant=number)
    rest = text.strip()
    while rest:
        value, end = decoder.raw_decode(rest)
        yield Document(value)
        rest = rest[end:].lstrip()


# ---------------------------------------------------------------------- YAML


def _yaml(text: str, name: str) -> Iterator[Document]:
    import yaml  # here, which keeps `v2w --help` fast

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        """Distinguish plain scalars from quoted and tagged ones."""

        def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
            if kind is yaml.ScalarNode and implicit[0]:
                return _PLAIN
            return super().resolve(kind, value, implicit)

    for number, line in enumerate(text.split("\n"), start=1):
        if line.startswith("---") and line[3:].strip() and not line[3:].strip().startswith("#"):
            raise _refused(name, number, 4, "text after ---", "put --- on a line of its own")
    try:
        for node in yaml.compose_all(text, Loader):
            yield _Reader(name).read(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        number, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what, remedy = error.problem or str(error), "check indentation, quotes and colons there"
        if "\\t" in repr(what) or "\t" in "".join(text.split("\n")[number - 1 : number])[:column]:
            remedy = "indent with spaces, not with tabs"
        raise _refused(name, number, column, what, remedy) from None
    except yaml.reader.ReaderError as error:
        at = text[: error.position]
        what = f"a control character ({error.character:#04x})"
        column = len(at) - at.rfind("\n")
        raise _refused(name, at.count("\n") + 1, column, what, "remove it") from None
    except UnicodeEncodeError:
        raise InvalidResource(
            [Problem(name, "not valid YAML: it contains half a surrogate pair")]
        ) from None
    except RecursionError:
        raise InvalidResource([Problem(name, "not valid YAML: nested too deeply")]) from None


class _Reader:
    """Convert the nodes of one document to values, as kubectl converts YAML to JSON."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._made = Document(None)
        self._count = 0
        self._open: set[int] = set()  # nodes being read: an anchor can contain itself

    def read(self, node: Any) -> Document:
        self._made.value = self._value(node, "")
        return self._made

    def _fail(self, node: Any, what: str, remedy: str) -> InvalidResource:
        mark = node.start_mark
        return _refused(self._name, mark.line + 1, mark.column + 1, what, remedy)

    def _value(self, node: Any, path: str) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise self._fail(node, "too many values", "shorten it, or use fewer aliases")
        self._made.lines[path] = node.start_mark.line + 1
        if isinstance(node.value, str):
            return self._scalar(node, path)
        if id(node) in self._open:
            raise self._fail(node, "an anchor contains itself", "remove the alias")
        self._open.add(id(node))
        try:
            if node.tag == f"{_YAML}seq":
                return [self._value(n, join(path, i)) for i, n in enumerate(node.value)]
            if node.tag == f"{_YAML}map":
                made: dict[str, Any] = {}
                self._fill(made, node, path)
                return made
        finally:
            self._open.discard(id(node))
        raise self._fail(node, f"the tag {node.tag} is not supported", "remove it")

    def _fill(self, made: dict[str, Any], node: Any, path: str) -> None:
        """Add the pairs of a mapping to ``made``; later ones win, also those of ``<<``."""
        seen = set()
        for key, value in node.value:
            if key.value == "<<" and key.tag in (_PLAIN, f"{_YAML}merge"):
                self._merge(made, value, path)
                continue
            text = self._key(key)
            if text in seen:
                raise self._fail(key, f"{text} is set twice", "keep one of them")
            seen.add(text)
            here = join(path, text)
            made[text] = self._value(value, here)
            self._made.lines[here] = key.start_mark.line + 1

    def _merge(self, made: dict[str, Any], node: Any, path: str) -> None:
        several = node.tag == f"{_YAML}seq"
        for one in reversed(node.value) if several else [node]:
            if one.tag != f"{_YAML}map" or id(one) in self._open:
                raise self._fail(node, "<< takes a mapping or a list of mappings", "use an anchor")
            self._open.add(id(one))
            self._fill(made, one, path)
            self._open.discard(id(one))

    def _key(self, node: Any) -> str:
        value = self._resolved(node) if isinstance(node.value, str) else None
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, float) and float(f"{value:g}") != value:
            raise self._fail(node, f"the key {node.value} is a number", "write it in quotes")
        if value is None:
            raise self._fail(node, "a key is not a string", "write it in quotes")
        return f"{value:g}" if isinstance(value, float) else str(value)

    def _scalar(self, node: Any, path: str) -> Any:
        value = self._resolved(node)
        if not isinstance(value, str):
            self._made.sources[path] = node.value
        return value

    def _resolved(self, node: Any) -> Any:
        """Return the value of a scalar, as kubectl's parser resolves it."""
        tag, text = node.tag, node.value
        if tag in (f"{_YAML}str", f"{_YAML}timestamp"):
            return text
        kinds = {_PLAIN: (), "null": (type(None),), "bool": (bool,), "int": (int,)}
        kinds |= {"float": (int, float)}
        allowed = kinds.get(tag.removeprefix(_YAML))
        if allowed is None:
            raise self._fail(node, f"the tag {tag} is not supported", "remove it")
        if _NOT_FINITE.fullmatch(text):
            raise self._fail(node, f"JSON has no number {text}", "use another value, or quotes")
        value = _plain(text)
        if allowed and type(value) not in allowed:
            raise self._fail(node, f"{text!r} does not match the tag {tag}", "remove the tag")
        return value


def _plain(text: str) -> Any:
    """Resolve a plain scalar."""
    if text in _NULLS:
        return None
    if text in _BOOLEANS:
        return _BOOLEANS[text]
    if text[0] not in "+-.0123456789":
        return text
    digits = text if text[0] == "." else text.replace("_", "")
    if _INTEGER.fullmatch(digits):
        value = _integer(digits)
        if -(2**63) <= value < (2**63 if digits[0] == "+" else 2**64):
            return value
    if _FLOAT.fullmatch(digits) and math.isfinite(number := float(digits)):
        return number
    return text


def _integer(digits: str) -> int:
    unsigned = digits.lstrip("+-")
    if len(unsigned) > 70:
        return 2**64
    octal = unsigned[0] == "0" and unsigned.isdecimal()
    value = int(unsigned, 8 if octal else 0)
    return -value if digits[0] == "-" else value


def as_json(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return an object as it comes out of JSON, where 1000.0 and 1000 are the same number.

    Raises:
        TypeError, ValueError: JSON cannot represent a value.
    """
    return from_json(to_json(value))


def to_json(value: Mapping[str, Any]) -> str:
    """Serialize an object as it is sent.

    Raises:
        TypeError, ValueError: JSON cannot represent a value.
    """
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    text.encode()  # half a surrogate pair is a UnicodeEncodeError
    return text


def from_json(text: str) -> dict[str, Any]:
    """Parse JSON as the API server does."""
    made: dict[str, Any] = json.loads(text, parse_float=_number)
    return made


def _number(text: str) -> int | float:
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 1e21 else value
