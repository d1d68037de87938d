"""Five truths, each with its decision; what was not measured says so and why."""

from dataclasses import replace

from example_run import profile_recording, profile_summary, replay_recording, replay_summary
from example_truths import run_truths, truths

from memplan.report.document import document_of
from memplan.report.pieces import Facts, Section, Table
from memplan.report.truths_section import charged_facts, truths_section
from memplan.stats.truths import RunTruths
from memplan.units import MIB

SUMMARY = replay_summary(replay_recording())


def section(found: RunTruths) -> Section:
    made = truths_section(replace(SUMMARY, truths=found), "run1-")
    assert made is not None
    return made


def rows(found: RunTruths) -> dict[str, list[str]]:
    table = section(found).blocks[0]
    assert isinstance(table, Table)
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def notes(found: RunTruths) -> str:
    table = section(found).blocks[0]
    assert isinstance(table, Table)
    return " ".join(table.notes)


def facts(found: RunTruths) -> dict[str, str]:
    block = section(found).blocks[1]
    assert isinstance(block, Facts)
    return {fact.name: fact.text for fact in block.facts}


def test_each_truth_has_its_row_and_its_decision() -> None:
    table = rows(run_truths())
    assert table["resident"] == ["870.0 MiB", "1.21 GiB", "880.0 MiB", "what a class costs"]
    assert table["proportional"][:3] == ["780.0 MiB", "not measured", "790.0 MiB"]
    assert table["charged"] == ["810.0 MiB", "1.15 GiB", "820.0 MiB", "a limit, the OOM kill"]
    assert table["working set"] == ["570.0 MiB", "939.0 MiB", "580.0 MiB", "an eviction"]
    assert table["demand, alone"] == ["872.0 MiB", "1.21 GiB", "882.0 MiB", "the node plan"]
    assert table["– private"][0] == "516.0 MiB"
    assert table["charged − demand"][:3] == ["−62.0 MiB", "−62.0 MiB", "−62.0 MiB"]


def test_the_difference_is_explained_and_replicas_are_added_up() -> None:
    told = facts(run_truths())
    assert told["charged − demand, idle"] == (
        "file pages charged less mapped −63.0 MiB, kernel memory beside page tables 1.00 MiB"
    )
    # 885 private each, 256 + 100 once.
    assert told["demand on one node"].startswith("2 of them 2.08 GiB, 10 of them 8.99 GiB")
    assert told["weight files"] == (
        "257.0 MiB, of them 8.00 MiB in the page cache before the first engine start"
    )


def test_without_a_group_the_table_says_why() -> None:
    alone = truths(870, charged_bytes=None, working_set_bytes=None)
    found = run_truths(
        idle=alone,
        peak=alone,
        after=None,
        charged_peak_bytes=None,
        charged_load_peak_bytes=None,
        charged_since=None,
        no_group="no permission",
    )
    table = rows(found)
    assert table["charged"][:3] == ["not measured", "not measured", "–"]
    assert table["charged − demand"][0] == "not measured"
    assert "no control group of its own (no permission)" in notes(found)
    assert "After the last request: the run ended" in notes(found)
    assert [(fact.name, fact.text) for fact in charged_facts(found)] == [
        ("charged peak", "not measured: no permission")
    ]


def test_an_unknown_page_cache_is_not_said_to_be_empty() -> None:
    unknown = facts(run_truths(weight_files_cached_bytes=None))["weight files"]
    assert "is not known" in unknown
    assert "0 B in the page cache" in facts(run_truths(weight_files_cached_bytes=0))["weight files"]


def test_every_run_with_a_real_engine_has_the_section() -> None:
    runs = (
        (replace(SUMMARY, truths=run_truths()), replay_recording()),
        (profile_summary(), profile_recording()),
    )
    found = {section.id for section in document_of(runs).sections}
    assert "run1-truths" in found
    assert "profile1-truths" not in found  # nothing real was measured in it


def test_small_differences_keep_their_sign() -> None:
    found = run_truths(idle=truths(870, charged_bytes=871 * MIB))
    assert rows(found)["charged − demand"][0] == "−1.00 MiB"


def test_the_charged_peaks_stand_beside_the_resident_ones() -> None:
    assert [(fact.name, fact.text) for fact in charged_facts(run_truths())] == [
        ("charged peak", "1.15 GiB, of serving: set back when the engine was ready"),
        ("charged while loading", "1.07 GiB"),
    ]
    unmarked = charged_facts(run_truths(charged_peak_bytes=None))
    assert [fact.text for fact in unmarked] == ["not measured: this kernel keeps no mark of it"]
    assert charged_facts(None) == ()
    runs = ((replace(SUMMARY, truths=run_truths()), replay_recording()),)
    blocks = [block for section in document_of(runs).sections for block in section.blocks]
    process = next(b for b in blocks if isinstance(b, Facts) and b.id == "run1-process")
    assert [fact.name for fact in process.facts][:5] == [
        "idle", "peak", "peak while loading", "charged peak", "charged while loading",
    ]  # fmt: skip
