from dataclasses import replace

from example_run import (
    NODES_CSV,
    profile_recording,
    profile_summary,
    replay_recording,
    replay_summary,
)

from memplan.plan.nodes import parse_nodes
from memplan.report.document import document_of
from memplan.report.pieces import Document, Facts, FindingList, Table
from memplan.stats.summary import Quantile, WitnessSummary
from memplan.units import GIB, MIB

RECORDING = replay_recording()
SUMMARY = replay_summary(RECORDING)
NODES = parse_nodes(NODES_CSV, "nodes.csv")
PROFILES = (
    (profile_summary(), profile_recording()),
    (profile_summary("kv-int8", scale=0.5), profile_recording("kv-int8", scale=0.5)),
)


def table_of(document: Document, id: str) -> Table:
    blocks = [block for section in document.sections for block in section.blocks]
    return next(block for block in blocks if isinstance(block, Table) and block.id == id)


def has_table(document: Document, id: str) -> bool:
    blocks = [block for section in document.sections for block in section.blocks]
    return any(isinstance(block, Table) and block.id == id for block in blocks)


def rows_of(document: Document, id: str) -> dict[str, list[str]]:
    return {row[0].text: [cell.text for cell in row[1:]] for row in table_of(document, id).rows}


def test_the_answer_says_what_a_request_owns_and_how_many_replicas_fit() -> None:
    answer = document_of([(SUMMARY, RECORDING)], NODES).answer
    assert answer == (
        "At p95 a long request owns 122.0 MiB on top of the 870.0 MiB that the process holds "
        "idle; the process peaked at 1.21 GiB. The cheapest node for it, r8g.24xlarge, would "
        "hold 48 such replicas (vCPU-limited, not yet checked)."
    )


def test_without_a_catalog_there_is_neither_density_nor_cost() -> None:
    document = document_of([(SUMMARY, RECORDING)])
    assert document.answer.endswith("the process peaked at 1.21 GiB.")
    assert not has_table(document, "run1-density-table")


def test_where_the_heaviest_class_supports_no_p95_the_answer_gives_its_largest() -> None:
    withheld = Quantile(p=0.95, value=None, low=None, high=None)
    classes = tuple(
        replace(one, cpu=replace(one.cpu, attributed=replace(one.cpu.attributed, p95=withheld)))
        for one in SUMMARY.classes
    )
    document = document_of([(replace(SUMMARY, classes=classes), RECORDING)])
    assert document.answer.startswith(
        "The largest long request owned 122.0 MiB (6 are too few for a p95) on top of"
    )
    assert document.figures[2].name == "one long request, largest"


def test_a_class_that_lost_requests_says_how_many_and_why() -> None:
    table = table_of(document_of([(SUMMARY, RECORDING)]), "run1-glance")
    assert rows_of(document_of([(SUMMARY, RECORDING)]), "run1-glance")["long"][0] == "6 of 7"
    assert table.notes[0] == "long: 1 rejected (exceeds_context 1)."


def test_a_withheld_percentile_points_to_its_finding() -> None:
    table = table_of(document_of([(SUMMARY, RECORDING)]), "run1-memory-table")
    long_attributed = table.rows[6]
    assert long_attributed[5].text == "withheld"
    assert long_attributed[5].detail == "see p99_withheld"


def test_a_measured_gpu_adds_rows_and_an_unmeasured_one_none() -> None:
    classes = tuple(replace(one, gpu=one.cpu) for one in SUMMARY.classes)
    with_gpu = replace(SUMMARY, classes=classes, gpu_idle_bytes=GIB, gpu_peak_bytes=2 * GIB)
    document = document_of([(with_gpu, RECORDING)], NODES)
    named = [row[1].text for row in table_of(document, "run1-memory-table").rows]
    assert named[:6] == [
        "attributed, CPU",
        "co-resident, by time, CPU",
        "co-resident, by request, CPU",
        "attributed, GPU",
        "co-resident, by time, GPU",
        "co-resident, by request, GPU",
    ]
    assert document.answer.startswith(
        "At p95 a long request owns 122.0 MiB of GPU memory on top of the 1.00 GiB that the "
        "process holds idle; the process peaked at 2.00 GiB on the GPU and 1.21 GiB on the host."
    )
    assert list(rows_of(document, "run1-density-table")) == ["g6.2xlarge"]
    notes = table_of(document, "run1-density-table").notes
    assert notes[0] == "CPU nodes, left out because this replica was measured on a GPU: 4."
    assert notes[1] == "Nodes left out because their GPU memory is not in the catalog: 1."


def test_budgets_are_judged_and_a_broken_one_says_so() -> None:
    table = table_of(document_of([(SUMMARY, RECORDING)]), "run1-limits-table")
    verdicts = [(row[0].text, row[1].text, row[4].text) for row in table.rows]
    assert verdicts[0] == ("short", "memory budget, CPU", "kept so far")
    assert ("medium", "memory budget, CPU", "broken") in verdicts
    assert len(verdicts) == 7


def test_a_deployment_without_limits_has_no_section_for_them() -> None:
    header = replace(RECORDING.header, deployment={})
    document = document_of([(SUMMARY, replace(RECORDING, header=header))])
    assert not has_table(document, "run1-limits-table")


def test_nodes_are_offered_cheapest_first_with_unknown_prices_and_misfits_last() -> None:
    document = document_of([(SUMMARY, RECORDING)], NODES)
    rows = rows_of(document, "run1-density-table")
    assert list(rows) == ["r8g.24xlarge", "c4-highmem-192", "tiny.large", "quiet.standard"]
    assert rows["r8g.24xlarge"][1:4] == ["48", "$5.66", "$86.01"]
    assert rows["quiet.standard"][2:4] == ["unknown", "–"]
    assert rows["tiny.large"][1:4] == ["0", "$0.05", "–"]
    notes = table_of(document, "run1-density-table").notes
    assert notes[0] == "GPU nodes, not priced because nothing was measured on a GPU: 2."


def test_other_ways_of_paying_are_shown_where_they_are_known() -> None:
    rows = rows_of(document_of([(SUMMARY, RECORDING)], NODES), "run1-bases-table")
    assert list(rows) == ["c4-highmem-192"]
    assert rows["c4-highmem-192"] == ["$95.15", "$59.94", "$42.82", "$57.09"]


def test_unknown_threads_leave_the_vcpus_out_of_the_density() -> None:
    engine = replace(RECORDING.engines[0], settings={})
    document = document_of([(SUMMARY, replace(RECORDING, engines=(engine,)))], NODES)
    assert rows_of(document, "run1-density-table")["r8g.24xlarge"][1] == "553"


def test_every_finding_of_a_run_is_in_its_report() -> None:
    document = document_of([(SUMMARY, RECORDING)])
    lists = [
        block
        for section in document.sections
        for block in section.blocks
        if isinstance(block, FindingList)
    ]
    assert [one.findings for one in lists] == [SUMMARY.findings]


def test_how_it_was_measured_holds_what_a_reader_needs_to_believe_it() -> None:
    document = document_of([(SUMMARY, RECORDING)])
    facts = {
        fact.name: fact.text
        for section in document.sections
        for block in section.blocks
        if isinstance(block, Facts)
        for fact in block.facts
    }
    assert "too low by at most 128.0 KiB" in facts["peaks"]
    assert facts["model digest"] == "sha256:5d1c7e0b9a3f4a62"
    assert facts["scaling"] == "lengths × 0.5, time × 1"
    assert facts["rows"] == "41 of 55 kept; dropped: no output length 14"
    assert facts["dtype"] == "bfloat16"
    assert {"co-resident", "attributed", "solo", "segment"} <= set(facts)


def test_the_witness_is_told_with_its_gaps_and_left_out_where_there_was_none() -> None:
    def told(witness: WitnessSummary | None) -> list[str]:
        summary = replace(SUMMARY, witness=witness, duration_s=10.0)
        blocks = [b for s in document_of([(summary, RECORDING)]).sections for b in s.blocks]
        facts = [fact for block in blocks if isinstance(block, Facts) for fact in block.facts]
        return [fact.text for fact in facts if fact.name == "1 kHz witness"]

    known = WitnessSummary(
        n=9000,
        gap_p50_s=0.001,
        gap_p99_s=0.002,
        gap_max_s=0.5,
        max_bytes=2**20,
        policy="real-time",
        cpu_s=0.2,
    )
    unknown = WitnessSummary(
        n=0,
        gap_p50_s=None,
        gap_p99_s=None,
        gap_max_s=None,
        max_bytes=None,
        policy=None,
        cpu_s=None,
    )
    (text,) = told(known)
    for part in (
        "9,000 readings at real-time",
        "1.0 ms apart (p50)",
        "1.00 MiB",
        "2.0% of one core",
    ):
        assert part in text
    assert "core" not in told(unknown)[0]
    assert told(None) == []


def test_a_run_that_was_cut_off_says_so() -> None:
    document = document_of([(SUMMARY, replace(RECORDING, end=None))])
    method = next(
        block
        for section in document.sections
        for block in section.blocks
        if isinstance(block, Facts) and block.id == "run1-how"
    )
    assert method.facts[-1].text == "cut off"


def test_variants_have_a_line_each_with_what_they_save_and_what_that_costs() -> None:
    document = document_of(PROFILES)
    rows = {row[0].text: row[1:] for row in table_of(document, "variants-table").rows}
    assert list(rows) == ["base", "kv-int8"]
    assert [cell.text for cell in rows["kv-int8"]] == [
        "780.0 MiB", "861.9 MiB", "48.0 ms", "2.00 s", "1.78 s", "not measured",
        "quality not measured",
    ]  # fmt: skip
    assert rows["kv-int8"][1].detail.startswith("−")
    assert "Alone, a long request of 4,800 tokens adds 117.8 MiB" in document.answer
    assert document.answer.endswith(
        "of top tokens as in fp32): kv-int8 takes 160.9 MiB off the peak, but what it costs in "
        "quality was not measured."
    )


def test_a_peak_that_was_while_loading_is_said() -> None:
    def notes(load_peak_bytes: int) -> str:
        runs = [
            (replace(summary, load_peak_bytes=load_peak_bytes), recording)
            for summary, recording in PROFILES
        ]
        return " ".join(table_of(document_of(runs), "variants-table").notes)

    assert "The peak is that of loading: kv-int8." in notes(870 * MIB)
    assert "loading" not in notes(100 * MIB)


def test_the_line_below_the_title_names_no_more_variants_than_a_reader_reads() -> None:
    many = [(profile_summary(f"v{number}"), profile_recording(f"v{number}")) for number in range(7)]
    assert "7 variants" in document_of(many).subtitle
    assert "v0, v1, v2, v3, v4, v5" in document_of(many[:6]).subtitle


def test_two_runs_of_one_variant_are_told_apart_by_their_ids() -> None:
    other = (replace(SUMMARY, run_id="second"), RECORDING)
    table = table_of(document_of([(SUMMARY, RECORDING), other]), "replay-comparison-table")
    titles = [column.title for column in table.columns]
    assert titles == ["", "base (20260811-101500-3f2a)", "base (second)"]


def test_replays_beside_each_other_say_what_less_memory_is_worth() -> None:
    assert SUMMARY.peak_bytes is not None
    # So large that memory limits a node, and not its vCPUs.
    large = replace(SUMMARY, peak_bytes=40 * SUMMARY.peak_bytes)
    half = replace(large, run_id="second", variant="half", peak_bytes=20 * SUMMARY.peak_bytes)
    runs = [(large, RECORDING), (half, RECORDING)]
    document = document_of(runs, NODES)
    table = table_of(document, "replay-comparison-table")
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}
    (on_one,) = [cells for name, cells in rows.items() if name.startswith("replicas on ")]
    assert int(on_one[1]) > int(on_one[0]) > 0
    first, second = (
        float(text.removeprefix("$").replace(",", ""))
        for text in rows["a replica on its cheapest node, a month"]
    )
    assert second < first
    assert any("all peak at once" in note for note in table.notes)
    bare = table_of(document_of(runs), "replay-comparison-table")
    assert not any("replica" in row[0].text for row in bare.rows)


def test_ids_are_unique_when_replays_and_profiles_share_a_page() -> None:
    document = document_of([(SUMMARY, RECORDING), (SUMMARY, RECORDING), *PROFILES], NODES)
    ids = [section.id for section in document.sections]
    ids += [block.id for section in document.sections for block in section.blocks]
    assert len(ids) == len(set(ids))


def test_a_run_with_nothing_known_still_gives_a_report() -> None:
    bare = replace(
        SUMMARY,
        idle_bytes=None,
        peak_bytes=None,
        load_peak_bytes=None,
        classes=(),
        attribution=None,
        fidelity=None,
        findings=(),
    )
    nothing = replace(RECORDING, engines=(), segments=(), samples=(), requests=(), outcomes={})
    document = document_of([(bare, nothing)], NODES)
    assert document.answer.startswith(
        "No request ran. Idle, the process holds unknown; it peaked at unknown."
    )
    assert not has_table(document, "run1-density-table")
