"""The parts of the peak as a reader sees them: the runtime taken apart, the tensors named."""

from dataclasses import replace

from example_run import replay_recording, replay_summary

from memplan.report.peak_section import peak_section, tensor_notes
from memplan.report.pieces import Table
from memplan.stats.summary import Attribution
from memplan.units import MIB

RECORDING = replay_recording()
SUMMARY = replay_summary(RECORDING)


def told_apart(**changes: object) -> Attribution:
    assert SUMMARY.attribution is not None
    return replace(SUMMARY.attribution, **changes)  # type: ignore[arg-type]


def rows_of(attribution: Attribution) -> list[str]:
    section = peak_section(replace(SUMMARY, attribution=attribution), RECORDING, "")
    (table,) = (block for block in section.blocks if isinstance(block, Table))
    return [row[0].text for row in table.rows]


def test_what_runtime_is_the_sum_of_stands_right_below_it() -> None:
    rows = rows_of(told_apart(runtime_parts={"interpreter": 3 * MIB, "library files": 2 * MIB}))
    where = rows.index("runtime")
    assert rows[where + 1 : where + 3] == ["· interpreter", "· library files"]


def test_whose_the_kv_is_stands_right_below_it() -> None:
    rows = rows_of(told_apart(kv_parts={"of one request": MIB, "kept, of no request": 2 * MIB}))
    where = rows.index("KV cache")
    assert rows[where + 1 : where + 3] == ["· of one request", "· kept, of no request"]


def test_a_runtime_that_is_a_difference_has_no_rows_below_it() -> None:
    assert not any(text.startswith("·") for text in rows_of(told_apart()))


def test_the_largest_owners_of_tensors_are_named_and_the_rest_summed() -> None:
    owners = {f"part{n}": (10 - n) * MIB for n in range(6)}
    (note,) = tensor_notes(told_apart(tensors=owners, peak_module="model.layers.3.mlp"))
    assert "while model.layers.3.mlp ran: 45.0 MiB, made by part0 10.0 MiB, part1 9.00 MiB" in note
    assert note.endswith("part3 7.00 MiB, others 11.0 MiB.")


def test_tensors_that_were_not_counted_are_not_spoken_of() -> None:
    assert tensor_notes(told_apart()) == ()
