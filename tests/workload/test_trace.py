"""Every trace format, in good and in bad shape."""

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.errors import InputError
from memplan.workload.trace import Trace, read_trace, write_trace

WORKLOADS = Path(__file__).parents[2] / "workloads"
AZURE, MOONCAKE = (
    WORKLOADS / "azure_code_2023.slice.csv",
    WORKLOADS / "mooncake_conversation.slice.jsonl",
)
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
HEADER = {"memplan_trace": 1, "time_unit": "ms"}


def written(folder: Path, content: str | bytes, name: str = "trace") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def row(timestamp: float = 0, prompt: int = 10, output: int = 5, **more: Any) -> dict[str, Any]:
    return {"timestamp": timestamp, "input_length": prompt, "output_length": output, **more}


def message_of(path: Path, format: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        read_trace(path, format)
    assert caught.value.hint
    return caught.value.message


def canonical(folder: Path, *rows: dict[str, Any], **header: Any) -> Trace:
    return read_trace(written(folder, jsonl([{**HEADER, **header}, *rows])))


# -- the slices -------------------------------------------------------------------------------


def test_the_azure_slice_reads_as_many_rows_as_it_has_lines() -> None:
    lines = AZURE.read_bytes().splitlines()
    trace = read_trace(AZURE)
    assert (trace.format, trace.rows_read, trace.rows_kept) == ("azure_2023", 600, len(lines) - 1)
    assert sum(r.input_tokens for r in trace.rows) == sum(int(x.split(b",")[1]) for x in lines[1:])
    assert sum(r.output_tokens for r in trace.rows) == sum(int(x.split(b",")[2]) for x in lines[1:])
    assert trace.dropped == {}
    assert trace.time_origin == "2023-11-16T18:17:03.97996Z"
    assert trace.rows[1].timestamp_s == 0.052
    assert trace.span_s == trace.rows[-1].timestamp_s == 261.635999


def test_the_mooncake_slice_reads_as_many_rows_as_it_has_lines() -> None:
    records = [json.loads(line) for line in MOONCAKE.read_text().splitlines()]
    trace = read_trace(MOONCAKE)
    assert (trace.format, trace.rows_read, trace.rows_kept) == ("mooncake", 300, len(records))
    assert [r.input_tokens for r in trace.rows] == [r["input_length"] for r in records]
    assert [list(r.hash_ids) for r in trace.rows] == [r["hash_ids"] for r in records]
    assert [r.timestamp_s for r in trace.rows] == [r["timestamp"] / 1000 for r in records]
    assert trace.block_size == 512
    assert trace.time_origin is None


@pytest.mark.parametrize("path", [AZURE, MOONCAKE], ids=["azure", "mooncake"])
def test_sources_names_the_checksum_of_each_slice(path: Path) -> None:
    assert read_trace(path).sha256 in (WORKLOADS / "SOURCES.md").read_text()


@pytest.mark.parametrize("path", [AZURE, MOONCAKE], ids=["azure", "mooncake"])
def test_what_is_written_reads_back_the_same(tmp_path: Path, path: Path) -> None:
    trace, copy = read_trace(path), tmp_path / "copy.jsonl"
    write_trace(copy, trace)
    again = read_trace(copy)
    assert (again.format, again.block_size) == ("memplan", trace.block_size)
    assert again.time_origin == trace.time_origin
    for one, other in zip(trace.rows, again.rows, strict=True):
        assert other.timestamp_s == pytest.approx(one.timestamp_s, abs=1e-9)
        assert (other.input_tokens, other.output_tokens) == (one.input_tokens, one.output_tokens)
        assert other.hash_ids == one.hash_ids
    with pytest.raises(InputError, match="exists already"):
        write_trace(copy, trace)
    write_trace(copy, trace, overwrite=True)
    with pytest.raises(InputError, match="cannot be written"):
        write_trace(tmp_path / "missing" / "copy.jsonl", trace)


# -- shapes of good files ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        f"{AZURE_HEADER}\n2023-11-16 18:00:00.5,7,3\n2023-11-16 18:00:01.5000001,8,4\n",
        f"{AZURE_HEADER}\r\n2023-11-16 18:00:00.5,7,3\r\n2023-11-16 18:00:01.5000001,8,4",
        f"\ufeff{AZURE_HEADER}\n2023-11-16 18:00:00.5,7,3\n\n2023-11-16T18:00:01.5000001,8,4\n\n",
        '"ContextTokens","TIMESTAMP","extra","GeneratedTokens"\n'
        '7,"2023-11-16 18:00:00.5","a,b",3\n"8",2023-11-16 18:00:01.5000001,,4\n',
    ],
    ids=["plain", "crlf without final newline", "bom and empty lines", "quoted and reordered"],
)
def test_azure_files_are_read_in_every_dress(tmp_path: Path, content: str) -> None:
    trace = read_trace(written(tmp_path, content))
    assert [(r.input_tokens, r.output_tokens) for r in trace.rows] == [(7, 3), (8, 4)]
    assert trace.rows[1].timestamp_s == 1.0000001
    assert trace.time_origin == "2023-11-16T18:00:00.5Z"


def test_rows_are_sorted_by_time_and_ties_stay(tmp_path: Path) -> None:
    trace = canonical(tmp_path, row(30, 1), row(10, 2), row(30, 3), row(10, 4))
    assert [(r.timestamp_s, r.input_tokens) for r in trace.rows] == [
        (0.0, 2), (0.0, 4), (0.02, 1), (0.02, 3),
    ]  # fmt: skip


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_sorting_is_stable_and_starts_at_zero(
    tmp_path_factory: pytest.TempPathFactory, times: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "times.jsonl"
    path.write_text(jsonl([HEADER, *(row(t, n + 1) for n, t in enumerate(times))]))
    rows = read_trace(path).rows
    assert [r.timestamp_s for r in rows] == [(t - min(times)) / 1e3 for t in sorted(times)]
    for one, other in pairwise(rows):
        assert one.timestamp_s < other.timestamp_s or one.line < other.line


def test_rows_that_never_ran_are_counted_and_left_out(tmp_path: Path) -> None:
    trace = canonical(
        tmp_path,
        row(-5, status="error", output=0),
        row(0),
        row(1, output=0),
        {"timestamp": 2, "input_length": 7, "output_length": None},
        row(3, prompt=0),
        {"timestamp": 4, "input_length": 7, "status": "rejected"},
        row(5, status="cancelled"),
    )
    assert dict(trace.dropped) == {
        "status_error": 1,
        "status_rejected": 1,
        "unknown_output_length": 1,
        "zero_input": 1,
        "zero_output": 1,
    }
    assert (trace.rows_read, trace.rows_kept) == (7, 2)
    assert [(r.timestamp_s, r.status) for r in trace.rows] == [(0.0, "ok"), (0.005, "cancelled")]


def test_the_canonical_row_keeps_what_classes_need(tmp_path: Path) -> None:
    (only,) = canonical(
        tmp_path,
        row(
            request_id=7,
            session_id="s",
            operation="rerank",
            model="m",
            labels={"tenant": "a"},
            unheard_of=1,
            **{"class": "gold"},
        ),
    ).rows
    assert (only.request_id, only.session_id, only.operation) == ("7", "s", "rerank")
    assert only.class_label == "gold"
    assert only.labels == {"model": "m", "tenant": "a"}


def test_the_header_says_the_unit_and_the_origin(tmp_path: Path) -> None:
    trace = canonical(
        tmp_path, row(2), row(3.5), time_unit="s", time_origin="2024-02-29T23:59:59.25Z"
    )
    assert trace.span_s == 1.5
    assert trace.time_origin == "2024-03-01T00:00:01.25Z"


def test_ids_of_a_session_are_kept_apart_from_those_of_another(tmp_path: Path) -> None:
    one, other, again = canonical(
        tmp_path,
        row(0, 20, hash_ids=[1, 2], session_id="a"),
        row(1, 20, hash_ids=[1, 2], session_id="b"),
        row(2, 20, hash_ids=[1, 3], session_id="a"),
        block_size=16,
        hash_id_scope="session",
    ).rows
    assert not set(one.hash_ids) & set(other.hash_ids)
    assert one.hash_ids[0] == again.hash_ids[0]
    assert one.hash_ids[1] != again.hash_ids[1]


@pytest.mark.parametrize("block", [16, 64, 512])
def test_the_block_size_of_a_mooncake_file_is_the_one_that_fits(tmp_path: Path, block: int) -> None:
    rows = [row(n, 1000, hash_ids=list(range(-(-1000 // block)))) for n in range(3)]
    assert read_trace(written(tmp_path, jsonl(rows))).block_size == block


def test_large_ids_stay_exact(tmp_path: Path) -> None:
    (only,) = read_trace(written(tmp_path, jsonl([row(0, 10, hash_ids=[2**64 - 1])]))).rows
    assert only.hash_ids == (2**64 - 1,)


# -- recognising ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        "hello\n",
        "a,b,c\n1,2,3\n",
        "[1, 2]\n",
        '{"timestamp": 0, "input_length": 5}\n',
        '{"timestamp": 0, "input_length"',
    ],
)
def test_what_is_not_recognised_lists_what_was_looked_for(tmp_path: Path, content: str) -> None:
    message = message_of(written(tmp_path, content))
    assert all(f"{name}: " in message for name in ("memplan", "mooncake", "azure_2023"))


def test_a_format_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, jsonl([row(chat_id=1)]))
    assert read_trace(path, "mooncake").rows_kept == 1
    assert "expected one of memplan, mooncake, azure_2023" in message_of(path, "burstgpt")
    assert ":1 memplan_trace: got null" in message_of(path, "memplan")
    assert ":1 header: expected the columns" in message_of(path, "azure_2023")


# -- bad files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "expected"),
    [
        ({"input_length": 5, "output_length": 5}, "timestamp: missing"),
        (row("12"), 'timestamp: got "12", expected a number'),  # type: ignore[arg-type]
        (row(True), "timestamp: got true, expected a number"),
        (row(float("nan")), "timestamp: got NaN, expected a time"),
        (row(10**30), "timestamp: got 1000000000000000000000000000000, expected a time"),
        ({"timestamp": 0, "output_length": 5}, "input_length: missing"),
        (row(prompt=-5), "input_length: got -5, expected 0 to 2,147,483,647"),
        (row(prompt=5.0), "input_length: got 5.0, expected a whole number"),  # type: ignore[arg-type]
        (row(output=False), "output_length: got false, expected a whole number"),
        (row(output=2**31), "output_length: got 2147483648, expected 0 to"),
        ({"timestamp": 0, "input_length": 5}, "output_length: missing"),
        (row(status="fine"), 'status: got "fine", expected one of ok, error'),
        (row(status=[]), "status: got [], expected one of ok, error"),
        (row(operation={}), "operation: got {}, expected printable text"),
        (row(request_id="a\nb"), 'request_id: got "a\\nb", expected printable text'),
        (row(session_id="\ud800"), 'session_id: got "\\ud800", expected printable text'),
        (row(labels=["a"]), 'labels: got ["a"], expected an object'),
        (row(labels={"a": []}), "a: got [], expected printable text"),
        (row(hash_ids=[1.5]), "hash_ids: got [1.5], expected a list of whole numbers"),
        (row(hash_ids=[True]), "hash_ids: got [true], expected a list of whole numbers"),
        (row(hash_ids="12"), 'hash_ids: got "12", expected a list of whole numbers'),
        (row(prompt=10, hash_ids=[1, 2]), "hash_ids: got 2 ids for 10 tokens, expected 1 blocks"),
    ],
)
def test_a_bad_field_is_named_with_its_line(
    tmp_path: Path, bad: dict[str, Any], expected: str
) -> None:
    path = written(tmp_path, jsonl([{**HEADER, "block_size": 16}, row(), bad, row(9)]))
    message = message_of(path)
    assert message.startswith(f"{path}: 1 fault\n  {path}:3 {expected}")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("2023-11-16 18:00:00,5", "got 2 fields, expected 3"),
        ("2023-11-16 18:00:00,5,5,5", "got 4 fields, expected 3"),
        ("16.11.2023 18:00,5,5", 'TIMESTAMP: got "16.11.2023 18:00", expected a time without zone'),
        ("2023-11-16 18:00:00Z,5,5", 'TIMESTAMP: got "2023-11-16 18:00:00Z", expected'),
        ("2023-02-30 18:00:00,5,5", 'TIMESTAMP: got "2023-02-30 18:00:00": day'),
        (",5,5", 'TIMESTAMP: got "", expected'),
        ("2023-11-16 18:00:00,-5,5", "ContextTokens: got -5, expected 0 to"),
        ("2023-11-16 18:00:00,5,five", 'GeneratedTokens: got "five", expected a whole number'),
        ("2023-11-16 18:00:00,5.0,5", 'ContextTokens: got "5.0", expected a whole number'),
        ("2023-11-16 18:00:00,5,", 'GeneratedTokens: got "", expected a whole number'),
        ('2023-11-16 18:00:00,"' + "5" * 140_000 + '",5', "got 0 fields, expected 3"),
    ],
)
def test_a_bad_csv_row_is_named_with_its_line(tmp_path: Path, line: str, expected: str) -> None:
    path = written(tmp_path, f"{AZURE_HEADER}\n2023-11-16 18:00:00,1,1\n{line}\n")
    message = message_of(path)
    assert message.startswith(f"{path}: 1 fault\n  {path}:3 {expected}")


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ({"memplan_trace": 2}, "memplan_trace: got 2, expected the header of version 1"),
        ({"time_unit": "hours"}, 'time_unit: got "hours", expected "ms" or "s"'),
        ({"time_unit": ["s"]}, 'time_unit: got ["s"], expected "ms" or "s"'),
        ({"hash_id_scope": "user"}, 'hash_id_scope: got "user"'),
        ({"hash_id_scope": []}, "hash_id_scope: got []"),
        ({"block_size": 0}, "block_size: got 0, expected 1 to"),
        ({"time_origin": "yesterday"}, 'time_origin: got "yesterday"'),
        ({"time_origin": "2023-02-30T00:00:00Z"}, 'time_origin: got "2023-02-30T00:00:00"'),
    ],
)
def test_a_bad_header_is_named(tmp_path: Path, header: dict[str, Any], expected: str) -> None:
    path = written(tmp_path, jsonl([{**HEADER, **header}, row()]))
    assert message_of(path).startswith(f"{path}: 1 fault\n  {path}:1 {expected}")


def test_ids_need_a_block_size_and_a_session_where_they_belong_to_one(tmp_path: Path) -> None:
    ids = row(0, 10, hash_ids=[1])
    path = written(tmp_path, jsonl([HEADER, ids]))
    assert ":2 hash_ids: expected block_size in the header" in message_of(path)
    path = written(tmp_path, jsonl([{**HEADER, "block_size": 16, "hash_id_scope": "session"}, ids]))
    assert ":2 session_id: missing" in message_of(path)


def test_ids_that_fit_no_block_size_are_named(tmp_path: Path) -> None:
    good, bad = row(0, 1000, hash_ids=[1, 2]), row(1, 1000, hash_ids=[1, 2, 3])
    message = message_of(written(tmp_path, jsonl([good, bad, good])))
    assert ":2 hash_ids: got 3 ids for 1,000 tokens, expected one for each block of 512" in message


def test_a_broken_line_far_down_is_named_with_its_number(tmp_path: Path) -> None:
    lines = [json.dumps(row(n)) for n in range(1200)]
    lines[999] = lines[999][:20]
    path = written(tmp_path, "\n".join(lines))
    assert message_of(path) == f"{path}: 1 fault\n  {path}:1000 not a JSON object, or cut off"


@pytest.mark.parametrize(
    "line", ["[]", "12", "null", "{", '{"a": ' * 5000, '{"timestamp": ' + "9" * 5000 + "}"]
)
def test_a_line_that_is_no_json_object_is_a_fault(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, jsonl([row()]) + line + "\n")
    assert message_of(path).startswith(f"{path}: 1 fault\n  {path}:2 not a JSON object")


def test_all_faults_come_at_once_and_twenty_are_shown(tmp_path: Path) -> None:
    path = written(tmp_path, jsonl([row(), *(row(prompt=-1) for _ in range(1025))]))
    head, *lines, last = message_of(path).split("\n")
    assert head == f"{path}: 1,025 faults"
    assert len(lines) == 20
    assert lines[0].startswith(f"  {path}:2 ")
    assert last == "  and 1,005 more"


def test_a_request_id_given_twice_is_a_fault(tmp_path: Path) -> None:
    path = written(tmp_path, jsonl([row(request_id="a"), row(), row(request_id="a")]))
    assert message_of(path).endswith(":3 request_id 'a' is also on line 1")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (b"\n \r\n", "is empty"),
        (AZURE_HEADER.encode(), "holds no rows"),
        (jsonl([HEADER]).encode(), "holds no rows"),
        (jsonl([row(output=0)]).encode(), "none of its 1 rows can be replayed (zero_output 1)"),
        (b"\x1f\x8b\x08\x00rest", "is packed, and its end is missing or broken"),
        (b"PAR1\x00\x00", "is not text (line 1 holds binary data)"),
        (jsonl([row()]).encode("utf-16"), "is not text"),
        (jsonl([row()]).encode() + b'{"operation": "caf\xe9"}\n', ":2 not UTF-8 text"),
        (b"\xff\xfe\n" + jsonl([row()]).encode(), ":1 not UTF-8 text"),
    ],
)
def test_files_without_usable_rows_are_said(tmp_path: Path, content: bytes, expected: str) -> None:
    assert expected in message_of(written(tmp_path, content))


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    assert "is a folder" in message_of(tmp_path)
    assert "No such file" in message_of(tmp_path / "missing")
    assert "not a regular file" in message_of(Path("/dev/null"))


def test_a_trace_without_read_permission_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, jsonl([row()]))
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        assert "Permission denied" in message_of(path)
    else:
        pytest.skip("this user may read every file")


@given(st.binary(max_size=120))
def test_no_bytes_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise"
    for start in (b"", jsonl([HEADER]).encode(), jsonl([row()]).encode(), AZURE_HEADER.encode()):
        path.write_bytes(start + noise)
        try:
            assert read_trace(path).rows_kept
        except InputError as error:
            assert str(path) in error.message
