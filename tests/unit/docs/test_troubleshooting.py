"""docs/troubleshooting.md quotes messages of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from repository import ROOT

PAGE = ROOT / "docs" / "troubleshooting.md"
PACKAGES = ("common", "operator", "preprocess", "trainer")
ANY = "…"  # placeholder for names and numbers, on the page and in the messages


def rows() -> Iterator[tuple[str, str, str]]:
    """Yield the rows of the page's tables."""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 3 and cells[0] != "symptom" and not set(cells[0]) <= set("-: "):
            yield cells[0], cells[1], cells[2]


def symptoms() -> list[str]:
    """Return every quoted symptom."""
    return [quoted for first, *_ in rows() for quoted in re.findall(r"`([^`]+)`", first)]


@cache
def messages() -> tuple[str, ...]:
    """Return every string in the sources, with an ellipsis for its placeholders."""
    texts: set[str] = set()
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    parts = [v.value if isinstance(v, ast.Constant) else ANY for v in node.values]
                    texts.add("".join(map(str, parts)))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    texts.add(re.sub(r"\{[a-z_:.0-9!]*\}|%\.?\d*[sdfg](?:/%s)?", ANY, node.value))
    return tuple(texts)


def test_each_row_has_a_symptom_a_cause_and_a_remedy():
    for symptom, cause, remedy in rows():
        assert re.search(r"`[^`]+`", symptom), symptom
        assert cause, symptom
        assert remedy, symptom


@pytest.mark.parametrize("symptom", symptoms())
def test_each_symptom_quotes_a_message_of_the_code(symptom):
    parts = [re.escape(part.strip()) for part in symptom.split(ANY) if part.strip()]
    assert max(map(len, parts)) > 8, "too short to be unique"
    pattern = re.compile(".*".join(parts), re.DOTALL | re.IGNORECASE)
    assert any(pattern.search(text) for text in messages()), f"nothing says: {symptom}"


def test_a_symptom_without_a_message_is_detected():
    assert not any("this text is in no program" in text for text in messages())
    assert any("The CRD in this cluster is older" in text for text in messages())
