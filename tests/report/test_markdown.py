"""A document as Markdown: what a pull request shows, and nothing that is taken for markup."""

from __future__ import annotations

from memplan.records import Finding
from memplan.report.markdown import markdown_of
from memplan.report.pieces import (
    Cell,
    Column,
    Document,
    Fact,
    Facts,
    FindingList,
    Section,
    Table,
)

TABLE = Table(
    id="t",
    title="A table",
    columns=(Column(title="class", align="left"), Column(title="bytes")),
    rows=((Cell(text="a|b"), Cell(text="3", detail="2–4", tone="bad")),),
    notes=("One note.",),
)
DOCUMENT = Document(
    title="A *title*",
    subtitle="below",
    answer="So many.",
    figures=(),
    sections=(
        Section(id="s", title="Part", paragraphs=("Words\nover lines.",), blocks=(TABLE,)),
        Section(
            id="f",
            title="Facts",
            blocks=(
                Facts(
                    id="x",
                    title="x",
                    facts=(Fact(name="n", text="1"), Fact(name="yaml", text="a:\n  b: 1")),
                ),
                FindingList(id="y", findings=(Finding(code="c", text="t.", hint="h."),)),
            ),
        ),
    ),
)


def test_every_piece_is_written_and_nothing_is_taken_for_markup() -> None:
    assert markdown_of(DOCUMENT) == (
        "# A \\*title\\*\n\nbelow\n\n**So many.**\n\n## Part\n\nWords over lines.\n\n### A table\n\n"
        "| class | bytes |\n| :--- | ---: |\n| a\\|b | **3**<br>2–4 |\n\n_One note._\n\n"
        "## Facts\n\n- n: 1\n- yaml:\n  ```\n  a:\n    b: 1\n  ```\n\n- **c**: t. h.\n"
    )


def test_a_table_without_rows_is_left_out() -> None:
    empty = Table(id="t", title="Nothing", columns=TABLE.columns, rows=())
    document = Document(
        title="t", subtitle="", answer="", figures=(),
        sections=(Section(id="s", title="S", blocks=(empty,)),),
    )  # fmt: skip
    assert "Nothing" not in markdown_of(document)
