"""A Document as Markdown, for a pull request: its answer, facts, findings and tables, without charts."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.report.pieces import Cell, Document, Fact, Facts, FindingList, Section, Table


def markdown_of(document: Document) -> str:
    lines = [f"# {_plain(document.title)}", "", _plain(document.subtitle), ""]
    lines += [f"**{_plain(document.answer)}**", ""]
    for section in document.sections:
        lines += _section(section)
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section) -> Iterator[str]:
    yield f"## {_plain(section.title)}"
    yield ""
    for paragraph in section.paragraphs:
        yield _plain(paragraph)
        yield ""
    for block in section.blocks:
        match block:
            case Table():
                yield from _table(block)
            case Facts():
                for fact in block.facts:
                    yield from _fact(fact)
                yield ""
            case FindingList():
                yield from (
                    f"- **{one.code}**: {_plain(one.text)} {_plain(one.hint)}"
                    for one in block.findings
                )
                yield ""
            case _:  # a chart is for those who look; its numbers are in the tables
                continue


def _fact(fact: Fact) -> Iterator[str]:
    if "\n" not in fact.text:
        yield f"- {_plain(fact.name)}: {_plain(fact.text)}"
        return
    yield f"- {_plain(fact.name)}:"
    yield "  ```"
    yield from (f"  {line}" for line in fact.text.splitlines())
    yield "  ```"


def _table(table: Table) -> Iterator[str]:
    if not table.rows:
        return
    yield f"### {_plain(table.title)}"
    yield ""
    yield _row([_plain(column.title) for column in table.columns])
    yield _row(["---:" if column.align == "right" else ":---" for column in table.columns])
    for row in table.rows:
        yield _row([_cell(cell) for cell in row])
    yield ""
    for note in table.notes:
        yield f"_{_plain(note)}_"
        yield ""


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(cell: Cell) -> str:
    text = _plain(cell.text)
    if cell.tone == "bad" and text:
        text = f"**{text}**"
    return f"{text}<br>{_plain(cell.detail)}" if cell.detail else text


def _plain(text: str) -> str:
    """On one line, and without what Markdown or HTML would take for its own."""
    text = " ".join(text.split())
    for sign in "\\`*_|[]<>#":
        text = text.replace(sign, f"\\{sign}")
    return text
