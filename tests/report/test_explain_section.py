from dataclasses import replace
from io import StringIO

import pytest
from example_run import replay_recording, replay_summary
from rich.console import Console

from memplan.records import InFlight, Recording, Request
from memplan.report.document import document_of
from memplan.report.explain_section import explain_document, explain_section, explained
from memplan.report.html import html_of
from memplan.report.pieces import Facts, Section, Table
from memplan.report.terminal import print_document
from memplan.units import MIB

RECORDING = replay_recording()
CROWD = tuple(f"crowd-{number:02}" for number in range(15))


def crowded() -> Recording:
    """One more segment, the largest of all: 15 short requests, each with 1 MiB more than the last."""
    asked = tuple(
        Request(
            request_id=name,
            wave="trace",
            arrival_s=0.0,
            class_name="short",
            input_tokens=1500,
            output_tokens=20,
        )
        for name in CROWD
    )
    last = RECORDING.segments[-1]
    held = tuple(
        InFlight(
            request_id=name,
            kv_used_bytes=(number + 1) * MIB,
            kv_reserved_bytes=(number + 2) * MIB,
            tokens=10,
        )
        for number, name in enumerate(CROWD)
    )
    crowd = replace(
        last,
        start_s=last.end_s,
        end_s=last.end_s + 1,
        peak={"host.hwm": 2000 * MIB},
        gauges={"host.rss": 1985 * MIB},
        in_flight=held,
        prefill_tokens=140,
        decode_tokens=10,
        waiting=3,
    )
    done = RECORDING.outcomes["short-00"]
    return replace(
        RECORDING,
        requests=(*RECORDING.requests, *asked),
        outcomes={**RECORDING.outcomes, **{n: replace(done, request_id=n) for n in CROWD}},
        segments=(*RECORDING.segments, crowd),
    )


def table_of(section: Section, id: str) -> Table:
    found = next(block for block in section.blocks if getattr(block, "id", None) == id)
    assert isinstance(found, Table)
    return found


def facts_of(section: Section, id: str) -> dict[str, str]:
    found = next(block for block in section.blocks if getattr(block, "id", None) == id)
    assert isinstance(found, Facts)
    return {"": found.title, **{fact.name: fact.text for fact in found.facts}}


def printed(recordings: list[Recording], width: int) -> str:
    out = StringIO()
    print_document(explain_document(recordings), Console(file=out, width=width))
    return out.getvalue()


def test_the_section_says_when_how_much_and_in_which_parts() -> None:
    section = explain_section(crowded(), "run1-")
    facts = facts_of(section, "run1-explain-1-facts")
    assert facts[""] == "short: peaked at 1.95 GiB"
    assert "a step of 140 prompt tokens and 10 decodes, 1.00 s; 3 requests waiting" in facts["when"]
    assert facts["peak"] == "1.95 GiB (CPU)"
    assert facts["its parts"].startswith(
        "unexplained 1.09 GiB (55.8 %), runtime 870.0 MiB (43.5 %)"
    )
    assert "1.95 GiB of CPU memory" in section.paragraphs[1]
    assert "with 15 requests in flight" in section.paragraphs[1]


def test_twelve_holders_are_shown_and_the_rest_counted() -> None:
    table = table_of(explain_section(crowded(), "run1-"), "run1-explain-1-held")
    rows = [[cell.text for cell in row] for row in table.rows]
    assert [row[0] for row in rows] == [f"crowd-{n:02}" for n in range(14, 2, -1)]
    first = ["crowd-14", "short", "1,500 + 20", "15.0 MiB", "16.0 MiB", "1.00 MiB (6.7 %)"]
    assert rows[0] == [*first, "16.0 MiB"]
    assert table.notes[0] == "and 3 more, which owned 9.00 MiB together."


def test_classes_that_peaked_in_one_segment_share_its_figures() -> None:
    section = explain_section(RECORDING, "run1-")
    titles = [block.title for block in section.blocks if isinstance(block, Facts)]
    listed = [name for title in titles for name in title.split(":")[0].split(" and ")]
    assert sorted(", ".join(listed).split(", ")) == ["long", "medium", "short"]
    worst = explained(RECORDING).classes
    assert len(titles) == len({one.end_s for one in worst}) < len(worst)


def test_suggestions_say_what_is_measured_and_what_is_about() -> None:
    table = table_of(explain_section(crowded(), "run1-"), "run1-explain-1-suggestions")
    saved = {row[0].text: row[1].text for row in table.rows}
    assert saved["max_requests: 8"] == "84.0 MiB"
    assert saved["max_batch_tokens: 75"] == "≈ 7.50 MiB"
    assert "they must not be added" in table.notes[0]


def test_a_budget_of_the_place_is_held_against_the_largest_owner() -> None:
    classes = [{"name": "short", "budget": {"cpu_bytes": 10 * MIB, "gpu_bytes": MIB}}]
    recording = crowded()
    header = replace(recording.header, deployment={"classes": classes})
    short = explained(replace(recording, header=header)).classes[0]
    assert short.suggestions[0].saves_bytes == 6 * MIB
    assert "crowd-14 owned 16.0 MiB of a budget.cpu of 10.0 MiB" in short.suggestions[0].effect


def test_the_report_has_it_after_where_the_peak_goes_and_only_on_the_page() -> None:
    document = document_of([(replay_summary(RECORDING), RECORDING)])
    ids = [section.id for section in document.sections]
    assert ids[ids.index("run1-peak") + 1] == "run1-explain"
    out = StringIO()
    print_document(document, Console(file=out, width=120))
    assert "Why each class peaked" not in out.getvalue()
    page = html_of(document)
    assert "<h2>Why each class peaked</h2>" in page
    assert page.index('id="run1-parts-table-cpu"') < page.index('id="run1-explain-1-held"')


def test_a_run_in_which_nothing_was_in_flight_says_so() -> None:
    quiet = replace(RECORDING, segments=RECORDING.segments[:4])
    assert explain_section(quiet, "run1-").blocks == ()
    text = printed([quiet], 200)
    assert "Never in flight, so not explained: short, medium, long." in text
    assert "The largest of all" not in text


def test_a_segment_without_transient_or_suggestions_has_neither_words_for_them() -> None:
    flights = RECORDING.segments[-1].in_flight[:1]
    name = flights[0].request_id
    idle = replace(RECORDING.segments[3], in_flight=flights, engine_start=0, waiting=0)
    facts = replace(
        RECORDING.engines[0],
        idle={"host.rss": 870 * MIB, "engine.weights_resident": 600 * MIB},
        engine="scripted",
    )
    asked = tuple(one for one in RECORDING.requests if one.request_id == name)
    header = replace(RECORDING.header, deployment={})
    calm = replace(RECORDING, header=header, engines=(facts,), requests=asked, segments=(idle,))
    section = explain_section(calm, "x-")
    assert [type(block) for block in section.blocks] == [Facts, Table]
    assert ", idle, 800 ms" in facts_of(section, "x-explain-1-facts")["when"]
    held = table_of(section, "x-explain-1-held")
    assert held.rows[0][5].text == "0 B"
    assert held.notes[0].startswith("Owned is KV: nothing was seen")


@pytest.mark.parametrize("width", [80, 100, 140])
def test_the_terminal_shows_it_whole_without_a_word_about_intervals(width: int) -> None:
    text = printed([crowded()], width)
    assert max(len(line) for line in text.splitlines()) <= width
    assert "…" not in text
    assert "short: peaked at 1.95 GiB" in text
    assert "and 3 more, which owned 9.00 MiB together." in text
    assert "Intervals are shown" not in text


def test_of_several_runs_each_text_says_which_it_is_about() -> None:
    header = replace(RECORDING.header, variant="lean")
    restarted = tuple(replace(one, engine_start=1) for one in RECORDING.segments)
    engines = tuple(replace(one, engine_start=1) for one in RECORDING.engines)
    lean = replace(RECORDING, header=header, segments=restarted, engines=engines)
    document = explain_document([RECORDING, lean])
    assert {section.title.split(":")[0] for section in document.sections} == {"base", "lean"}
    assert "lean: The largest of all" in document.answer
    assert "of engine start 2, with" in document.answer
    ids = [block.id for section in document.sections for block in section.blocks]
    assert len(ids) == len(set(ids))
