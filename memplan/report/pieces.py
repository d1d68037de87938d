"""The nouns of a report: what every renderer draws, whatever it draws on.

Text is final here (units, "unknown", "withheld"), so that a terminal and a printed page never
disagree; nothing here knows HTML, colours or plotly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from memplan.records import Finding
from memplan.report.series import Chart

Tone = Literal["plain", "good", "bad", "muted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    text: str
    detail: str = ""
    """A second, smaller line: the interval, the basis, what limits."""
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    title: str
    align: Literal["left", "right"] = "right"
    is_spare: bool = False
    """Left out on a narrow terminal; a page always shows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    id: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    """A row whose first cell is empty continues the row above it."""
    notes: tuple[str, ...] = ()
    terminal_rows: int | None = None
    """A terminal shows this many, 0 leaves the table out, None shows all. A page shows all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    id: str
    title: str
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingList:
    id: str
    findings: tuple[Finding, ...]


Block = Table | Facts | FindingList | Chart


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    id: str
    title: str
    paragraphs: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    in_terminal: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFigure:
    """One number at the top of the page."""

    name: str
    text: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    title: str
    subtitle: str
    answer: str
    """The whole report in one or two sentences."""
    figures: tuple[KeyFigure, ...]
    sections: tuple[Section, ...]
