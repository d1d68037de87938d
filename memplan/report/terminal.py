"""A Document on a terminal: its tables, facts and findings, without charts.

Narrow terminals drop the second line of a cell (intervals); the HTML and JSON reports hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from memplan.report.pieces import Block, Cell, Document, Facts, FindingList, Section, Table, Tone

WIDE_COLUMNS = 120
"""From here on a cell's second line is shown: the longest intervals need it."""
STYLES: dict[Tone, str] = {"plain": "", "good": "green", "bad": "bold red", "muted": "dim"}


def print_document(document: Document, console: Console) -> None:
    console.print(Text(document.title, style="bold"))
    console.print(Text(document.subtitle, style="dim"))
    console.print()
    console.print(Text(document.answer))
    for section in document.sections:
        if section.in_terminal:
            _print_section(section, console)
    if console.width < WIDE_COLUMNS and _has_details(document):
        text = f"Intervals are shown from {WIDE_COLUMNS} columns on, and in the reports."
        console.print(Text(text, style="dim"))


def _has_details(document: Document) -> bool:
    return any(
        cell.detail
        for section in document.sections
        if section.in_terminal
        for block in section.blocks
        if isinstance(block, Table)
        for row in block.rows[: block.terminal_rows]
        for cell in row
    )


def _print_section(section: Section, console: Console) -> None:
    console.print()
    console.print(Text(section.title, style="bold underline"))
    for paragraph in section.paragraphs:
        console.print(Text(paragraph))
    for block in section.blocks:
        _print_block(block, console)


def _print_block(block: Block, console: Console) -> None:
    match block:
        case Table():
            if block.terminal_rows != 0:
                _print_table(block, console)
        case Facts():
            grid = RichTable.grid(padding=(0, 2))
            grid.add_column(style="dim", no_wrap=True, min_width=23)
            grid.add_column()
            for fact in block.facts:
                grid.add_row(Text(fact.name), Text(fact.text))
            console.print(Padding(grid, (0, 0, 0, 1)))
        case FindingList():
            for one in block.findings:
                console.print(Text.assemble(("! ", "yellow"), one.text, (f" [{one.code}]", "dim")))
                console.print(Padding(Text(f"next: {one.hint}", style="dim"), (0, 0, 0, 2)))
        case _:
            pass  # A chart has no form in a terminal; its table stands beside it.


def _print_table(table: Table, console: Console) -> None:
    console.print(_table(table, is_wide=console.width >= WIDE_COLUMNS))
    left_out = len(table.rows) - len(table.rows[: table.terminal_rows])
    if left_out:
        console.print(Text(f"{left_out} more rows are in the HTML report.", style="dim"))
    for note in table.notes:
        console.print(Text(note, style="dim"))


def _table(table: Table, *, is_wide: bool) -> RichTable:
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    shown = [at for at, column in enumerate(table.columns) if is_wide or not column.is_spare]
    rows = [
        [_cell(row[at], is_wide=is_wide) for at in shown]
        for row in table.rows[: table.terminal_rows]
    ]
    for place, at in enumerate(shown):
        column = table.columns[at]
        is_number = column.align == "right"
        title = _wrapped(column.title, [row[place].plain for row in rows])
        drawn.add_column(
            Text(title if is_number else column.title),
            justify=column.align,
            no_wrap=is_number,
            overflow="fold",
        )
    for row in rows:
        drawn.add_row(*row)
    return drawn


def _wrapped(title: str, texts: Sequence[str]) -> str:
    """A head as narrow as its figures, so that figures never have to wrap."""
    widths = [len(line) for text in texts for line in text.splitlines()]
    longest_word = max((len(word) for word in title.split()), default=1)
    return fill(title, max(longest_word, *widths, 1), break_on_hyphens=False)


def _cell(cell: Cell, *, is_wide: bool) -> Text:
    text = Text(cell.text, style=STYLES[cell.tone])
    if is_wide and cell.detail:
        text.append(f"\n{cell.detail}", style="dim")
    return text
