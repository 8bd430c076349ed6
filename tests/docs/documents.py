"""Markdown, taken apart as far as the tests need it."""

import re
from pathlib import Path
from typing import NamedTuple


class Code(NamedTuple):
    """A fenced block."""

    language: str
    text: str


_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def blocks(text: str) -> list[Code]:
    return [Code(language, body) for language, body in _FENCE.findall(text)]


def prose(text: str) -> str:
    """Without the fenced blocks."""
    return _FENCE.sub("", text)


def headings(text: str) -> list[tuple[int, str]]:
    """(level, title)."""
    return [(len(marks), title) for marks, title in re.findall(r"^(#+) (.+)$", prose(text), re.M)]


def inline_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(text))


def links(text: str) -> list[str]:
    """Targets of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


def tables(text: str) -> list[list[list[str]]]:
    """Each table as rows of cells, the header first, without the line of dashes."""
    found = re.findall(r"(?:^\|.*\|\n)+", prose(text), re.M)
    rows = [[[cell.strip() for cell in line[1:-1].split(" | ")] for line in table.splitlines()] for table in found]
    return [[row for row in table if not re.fullmatch(r"[-|: ]+", "|".join(row))] for table in rows]


def slug(title: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


def what_runs(code: Code) -> str:
    """A block without what may be translated: comments, the labels of a diagram, remarks in a listing."""
    if code.language == "mermaid":
        return re.sub(r'"[^"]*"', '""', code.text)
    if code.language == "text":
        return re.sub(r"(?m)^(\s*\S+).*$", r"\1", code.text)
    return re.sub(r"(?m)(^|\s+)#.*$", "", code.text)
