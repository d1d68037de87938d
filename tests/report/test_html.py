import re
from dataclasses import replace
from html.parser import HTMLParser

from example_run import NODES_CSV, replay_recording, replay_summary

from memplan.plan.nodes import parse_nodes
from memplan.records import Finding
from memplan.report.document import document_of
from memplan.report.html import html_of

RECORDING = replay_recording()
SUMMARY = replay_summary(RECORDING)
PAGE = html_of(document_of([(SUMMARY, RECORDING)], parse_nodes(NODES_CSV, "nodes.csv")))


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def elements_of(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Elements()
    parser.feed(page)
    parser.close()
    return parser.found


def test_the_page_is_one_file_of_less_than_six_megabytes_with_plotly_once() -> None:
    assert len(PAGE.encode()) < 6_000_000
    assert len(re.findall(r"plotly\.js v\d", PAGE)) == 1


def test_nothing_on_the_page_is_loaded_from_elsewhere() -> None:
    loaded = [
        value
        for tag, attributes in elements_of(PAGE)
        for name, value in attributes.items()
        if (name == "src" or (name == "href" and tag == "link")) and value != "data:,"
    ]
    assert loaded == []
    assert "default-src 'none'" in PAGE


def test_the_same_document_gives_the_same_bytes() -> None:
    again = replay_recording()
    nodes = parse_nodes(NODES_CSV, "nodes.csv")
    assert html_of(document_of([(replay_summary(again), again)], nodes)) == PAGE


def test_text_from_a_run_can_not_become_markup() -> None:
    nasty = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    summary = replace(
        SUMMARY,
        deployment_name=nasty,
        variant=nasty,
        classes=tuple(replace(one, name=nasty + one.name) for one in SUMMARY.classes),
        findings=(Finding(code=nasty, text=nasty, hint=nasty),),
    )
    header = replace(RECORDING.header, model_digest=nasty, command=(nasty,))
    requests = tuple(replace(one, class_name=nasty + one.class_name) for one in RECORDING.requests)
    recording = replace(RECORDING, header=header, requests=requests, path=nasty)
    page = html_of(document_of([(summary, recording)]))
    assert nasty not in page
    tags = [tag for tag, _ in elements_of(page)]
    assert tags.count("script") == 3
    assert "img" not in tags


def test_every_link_of_the_contents_has_its_target() -> None:
    found = elements_of(PAGE)
    ids = {attributes["id"] for _, attributes in found if "id" in attributes}
    links = [attributes["href"] for tag, attributes in found if tag == "a"]
    assert links
    assert all(link is not None and link.removeprefix("#") in ids for link in links)


def test_intervals_are_in_the_page_itself_so_that_print_shows_them() -> None:
    assert "<small>97.0–112.0 MiB</small>" in PAGE
    assert ">withheld<small>see p99_withheld</small>" in PAGE
