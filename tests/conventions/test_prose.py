"""The prose of documents, comments and docstrings stays standard technical English.

Four figures stand for four habits that make prose hard to read: a clause in the place of a noun ("what"), a process that is
called a person ("who", "nobody"), and a sentence that begins with such a clause. They are a thermometer and not the goal.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from conventions.files import ROOT, tracked

#: Files of each part of the repository. CHANGELOG.md is a record and is not measured.
PARTS = {
    "docs": r"(README|CONTRIBUTING|SECURITY)\.md|(docs|sql|bench|examples)/.*\.md",
    "src": r"src/.*\.py",
    "sql": r"sql/.*\.sql",
    "tests": r"(tests|examples)/.*\.py",
}
#: Words for each habit, and how many of them a thousand words may have.
MOST = {
    "what whatever": 4.0,
    "who whoever whose whom": 1.0,
    "somebody nobody everybody anybody": 0.3,
}
#: Share of the sentences that may begin with such a clause.
MOST_BEGINNINGS = 0.01


def _markdown(text: str) -> str:
    """The sentences of a page: without code, tables and targets of links."""
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"^\s*\|.*$|`[^`]*`", "", text, flags=re.MULTILINE)
    return re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)


def _python(text: str) -> str:
    """Docstrings, and comments; adjacent comment lines are one paragraph."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, kinds)]
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comment = token.string.lstrip("#: ")
            if token.start[0] == last + 1:
                found[-1] += f" {comment}"
            else:
                found.append(comment)
            last = token.start[0]
    return "\n\n".join(found)


def _sql(text: str) -> str:
    """Comments of the file, and comments on objects."""
    lines = re.findall(r"^\s*--\s?(.*)$", text, flags=re.MULTILINE)
    return "\n".join([*lines, "", *re.findall(r"comment on [^']*is\s+'((?:[^']|'')*)'", text)])


READ = {".md": _markdown, ".py": _python, ".sql": _sql}


def _files(part: str) -> Iterator[Path]:
    return (file for file in tracked() if re.fullmatch(PARTS[part], file.relative_to(ROOT).as_posix()))


@pytest.mark.parametrize("part", PARTS)
def test_prose_names_things(part):
    """Each part of the repository keeps below the figures of MOST and MOST_BEGINNINGS.

    Fails when: a page, or many comments, describe things instead of naming them, or call processes persons.
    """
    text = "\n\n".join(READ[file.suffix](file.read_text()) for file in _files(part))
    words = re.findall(r"[a-z][a-z'’-]*", text.lower())
    assert len(words) > 10_000
    for habit, most in MOST.items():
        found = 1000 * sum(words.count(word) for word in habit.split()) / len(words)
        assert found <= most, f"{habit}: {found:.2f} in a thousand words"
    sentences = [s.strip() for s in re.split(r"(?<=[.!?:;])\s+|\n\n", text) if len(s.split()) > 2]
    begin = re.compile(r"(\*+|[-*] )?(What|Who|Whoever|Whatever|Where|Whose)\b(?!.*\?)")
    share = sum(bool(begin.match(s)) for s in sentences) / len(sentences)
    assert share <= MOST_BEGINNINGS, f"{share:.2%} of the sentences begin so"
