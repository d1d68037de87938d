"""A Document as one HTML file that needs no network: styles, charts and plotly.js are inside it.

The same document always gives the same bytes. Everything that comes from a run is escaped, and a
content security policy forbids the page every request.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from importlib.resources import files

from plotly.offline import get_plotlyjs

from memplan.report.charts import figure_of
from memplan.report.pieces import (
    Block,
    Cell,
    Document,
    Facts,
    FindingList,
    Section,
    Table,
)
from memplan.report.series import Chart

# plotly.js writes style attributes and blob images; nothing may be loaded from anywhere.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; font-src data:"
)

PAGE_ROWS = 14
"""A table no longer than this is not parted between two printed pages."""


def html_of(document: Document) -> str:
    """The whole page as text, UTF-8 when written."""
    here = files("memplan.report")
    charts = [
        block
        for section in document.sections
        for block in section.blocks
        if isinstance(block, Chart)
    ]
    return "\n".join(
        (
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(document.title)}</title>",
            f"<style>\n{here.joinpath('page.css').read_text('utf-8')}</style>",
            "</head>",
            "<body>",
            "<main>",
            *_head(document),
            *(line for section in document.sections for line in _section(section)),
            "<footer>Made by memplan. This file holds everything it shows and needs no "
            "network.</footer>",
            "</main>",
            f'<script type="application/json" id="chart-data">{_chart_json(charts)}</script>',
            f"<script>{get_plotlyjs()}</script>",
            f"<script>\n{here.joinpath('page.js').read_text('utf-8')}</script>",
            "</body>",
            "</html>",
            "",
        )
    )


def _chart_json(charts: list[Chart]) -> str:
    """``<`` must not occur inside a script element, whatever a class is called."""
    figures = [{"id": f"{chart.id}-plot", **figure_of(chart)} for chart in charts]
    text = json.dumps(figures, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _head(document: Document) -> Iterator[str]:
    yield "<header>"
    yield f"<h1>{escape(document.title)}</h1>"
    yield f'<p class="subtitle">{escape(document.subtitle)}</p>'
    yield f'<p class="answer">{escape(document.answer)}</p>'
    yield '<dl class="figures">'
    for figure in document.figures:
        yield (
            f"<div><dt>{escape(figure.name)}</dt>"
            f"<dd>{escape(figure.text)}<small>{escape(figure.detail)}</small></dd></div>"
        )
    yield "</dl>"
    yield "<nav>"
    for section in document.sections:
        yield f'<a href="#{escape(section.id)}">{escape(section.title)}</a>'
    yield "</nav>"
    yield "<noscript><p>The charts need JavaScript; the tables hold every figure.</p></noscript>"
    yield "</header>"


def _section(section: Section) -> Iterator[str]:
    yield f'<section id="{escape(section.id)}">'
    yield f"<h2>{escape(section.title)}</h2>"
    for paragraph in section.paragraphs:
        yield f"<p>{escape(paragraph)}</p>"
    # One table alone needs no second heading on the page; a screen reader still hears it.
    is_alone = len(section.blocks) == 1
    for block in section.blocks:
        yield from _block(block, is_alone=is_alone)
    yield "</section>"


def _block(block: Block, *, is_alone: bool) -> Iterator[str]:
    match block:
        case Table():
            yield from _table(block, is_alone=is_alone)
        case Facts():
            unseen = ' class="unseen"' if is_alone else ""
            yield f"<h3{unseen}>{escape(block.title)}</h3>"
            yield f'<dl class="facts" id="{escape(block.id)}">'
            for fact in block.facts:
                yield f"<dt>{escape(fact.name)}</dt><dd>{escape(fact.text)}</dd>"
            yield "</dl>"
        case FindingList():
            yield f'<ul class="findings" id="{escape(block.id)}">'
            for one in block.findings:
                yield (
                    f"<li>{escape(one.text)} <code>{escape(one.code)}</code>"
                    f'<span class="hint">Next: {escape(one.hint)}</span></li>'
                )
            yield "</ul>"
        case _:
            yield from _figure(block)


def _table(table: Table, *, is_alone: bool) -> Iterator[str]:
    short = " short" if len(table.rows) <= PAGE_ROWS else ""
    yield f'<div class="scroll{short}"><table id="{escape(table.id)}">'
    unseen = ' class="unseen"' if is_alone else ""
    yield f"<caption{unseen}>{escape(table.title)}</caption>"
    heads = (
        f'<th scope="col"{_class_of(column.align, "plain")}>{escape(column.title)}</th>'
        for column in table.columns
    )
    yield f"<thead><tr>{''.join(heads)}</tr></thead>"
    yield "<tbody>"
    for row in table.rows:
        cells = (_cell(cell, column.align) for cell, column in zip(row, table.columns, strict=True))
        start = "<tr>" if row[0].text else '<tr class="more">'
        yield f"{start}{''.join(cells)}</tr>"
    yield "</tbody></table></div>"
    for note in table.notes:
        yield f'<p class="note">{escape(note)}</p>'


def _cell(cell: Cell, align: str) -> str:
    detail = f"<small>{escape(cell.detail)}</small>" if cell.detail else ""
    return f"<td{_class_of(align, cell.tone)}>{escape(cell.text)}{detail}</td>"


def _class_of(align: str, tone: str) -> str:
    names = [name for name in (align, tone) if name not in ("right", "plain")]
    return f' class="{" ".join(names)}"' if names else ""


def _figure(chart: Chart) -> Iterator[str]:
    height = figure_of(chart)["layout"]["height"]
    yield f'<figure id="{escape(chart.id)}">'
    yield f"<figcaption>{escape(chart.title)}</figcaption>"
    yield (
        f'<div class="plot" id="{escape(chart.id)}-plot" style="height:{height}px" role="img" '
        f'aria-label="{escape(chart.title)}"></div>'
    )
    yield f'<p class="caption">{escape(chart.caption)}</p>'
    yield "</figure>"
