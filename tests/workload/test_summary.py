"""A trace read by columns and row by row gives one summary, and rows are what they were in one batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memplan.errors import InputError
from memplan.specs import BUILTIN_CLASSES, UNKNOWN_CLASS, ClassSpec
from memplan.specs.classes import ClassWhen
from memplan.specs.values import TokenRange
from memplan.workload import trace as trace_module
from memplan.workload.classify import class_of
from memplan.workload.shape import class_names
from memplan.workload.summary import TraceSummary, summarise_trace
from memplan.workload.trace import FORMATS, read_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
TIMES = st.sampled_from([
    "2024-05-10 00:00:01.5+00:00", "2024-05-10T00:00:00Z", "2024-05-10 02:00:00+02:00",
    "2024-05-10 00:00:00.123456789Z", "2024-05-10 00:00:03+0000", "2024-02-30 00:00:00Z",
    "2024-05-10", "2024-05-10 0000Z", "1600-01-01 00:00:00Z", "2024-05-10 00:00:07",
    " 2024-05-10 00:00:05Z ", "", "9999-05-10 00:00:00Z", "2024-05-10 00:00:60Z",
    "2024-05-10 00:00:01+00:99", "2024-05-10 00:00:01+99:00",
])  # fmt: skip
TOKENS = st.sampled_from(
    ["7", "0", "512", "4096", "-1", "+3", "007", "1e3", "2147483648", "", " 8"]
)
GOOD = st.sampled_from(["7", "0", "512", "4096", "90000"])
ROWS = st.lists(
    st.one_of(st.tuples(TIMES, GOOD, GOOD), st.tuples(TIMES, TOKENS, TOKENS)),
    min_size=1,
    max_size=8,
)
BATCH = (np.array([600, 40, 70_000]), np.array([5, 9_000, 5]))


def outcome(path: Path) -> TraceSummary | str:
    try:
        return summarise_trace(path, BUILTIN_CLASSES)
    except InputError as error:
        return error.message


@settings(max_examples=200, deadline=None)
@given(ROWS, st.sampled_from(["\n", "\r\n", "\n\n", ",x\n"]))
@example([("2024-05-10 00:00:03+00:00", "7", "3"), ("2024-05-10 00:00:01+00:00", "0", "3")], "\n")
def test_by_columns_is_what_row_by_row_is(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], end: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "columns.csv"
    path.write_bytes("".join(f"{line}{end}" for line in [HEADER, *map(",".join, rows)]).encode())
    by_columns = outcome(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_module, "FORMATS", tuple(replace(one, columns=None) for one in FORMATS))
        assert outcome(path) == by_columns


def test_a_plain_file_is_read_by_columns(tmp_path: Path) -> None:
    """Without this the law above could hold by never taking that way."""
    path = tmp_path / "azure.csv"
    path.write_text(f"{HEADER}\n2024-05-10 00:00:01.5+00:00,7,3\n2024-05-10 00:00:00Z,8,4\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("memplan.workload.summary._by_rows", None)
        found = summarise_trace(path, BUILTIN_CLASSES)
    trace = read_trace(path)
    assert found.head.sha256 == trace.sha256
    assert found.head.time_origin == trace.time_origin
    assert (found.head.rows_kept, found.shape.span_s) == (2, 1.5)
    assert found.shape.input.quantiles == (7, 8, 8, 8)
    assert dict(found.shape.classes) == {"short": 2}


@given(
    st.lists(st.tuples(st.integers(1, 10_000), st.integers(1, 10_000)), max_size=30),
    st.lists(
        st.builds(
            ClassWhen,
            input_tokens=st.none() | st.builds(TokenRange, low=st.integers(1, 9_000)),
            output_tokens=st.none() | st.builds(TokenRange, high=st.integers(1, 9_000)),
            operation=st.sampled_from([None, ("chat",), ("embeddings",)]),
            labels=st.sampled_from([{}, {"model": "m"}]),
        ),
        max_size=4,
    ),
)
def test_classes_of_columns_are_those_of_each_row(
    rows: list[tuple[int, int]], whens: list[ClassWhen]
) -> None:
    specs = [ClassSpec(name=f"c{at}", when=when) for at, when in enumerate(whens)]
    inputs, outputs = (np.array([row[at] for row in rows], dtype=np.int64) for at in (0, 1))
    names, found = class_names(specs, inputs, outputs)
    assert [names[at] for at in found] == [
        class_of(specs, input_tokens=one, output_tokens=other) for one, other in rows
    ]
    assert names[-1] == UNKNOWN_CLASS
