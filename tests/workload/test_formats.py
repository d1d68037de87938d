"""Every format that memplan reads, by a few lines as its source writes them, and against noise."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memplan.errors import InputError
from memplan.workload.trace import FORMATS, Trace, read_trace, write_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
DYNAMO = {
    "timestamp": 9,
    "event": {
        "schema": "dynamo.request.trace.v1",
        "event_type": "request_end",
        "agent_context": {"session_id": "s"},
        "request": {
            "request_id": "r",
            "model": "m",
            "input_tokens": 15,
            "output_tokens": 3,
            "cached_tokens": 4,
            "request_received_ms": 1_000,
            "ttft_ms": 500.0,
            "total_time_ms": 2_000.0,
            "replay": {"trace_block_size": 16, "input_sequence_hashes": [2**63 + 1]},
        },
    },
}
TOOL = {"event": {"schema": "dynamo.request.trace.v1", "event_type": "tool_start"}}
WEKA = {
    "id": "w",
    "block_size": 64,
    "hash_id_scope": "local",
    "requests": [
        {"t": 0.0, "type": "n", "in": 100, "out": 5, "hash_ids": [1, 2], "api_time": 3.5},
        {
            "t": 9.0,
            "type": "subagent",
            "requests": [{"t": 1.0, "in": 30, "out": 2, "hash_ids": [1]}],
        },
        {"t": 20.0, "type": "n", "in": 130, "out": 7, "hash_ids": [1, 2, 3], "stop": "tool_use"},
    ],
}
SPAN = {
    "startTimeUnixNano": "1700000000000000000",
    "endTimeUnixNano": "1700000002500000000",
    "attributes": [
        {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
        {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "12"}},
        {"key": "gen_ai.usage.output_tokens", "value": {"intValue": "7"}},
        {"key": "gen_ai.conversation.id", "value": {"stringValue": "c"}},
    ],
}
AGENT = {"attributes": [{"key": "gen_ai.operation.name", "value": {"stringValue": "invoke_agent"}}]}
VLLM = {
    "start_time": "2026-01-01T00:00:00Z",
    "end_time": "2026-01-01T00:00:04Z",
    "attributes": {
        "gen_ai.usage.prompt_tokens": 12,
        "gen_ai.usage.completion_tokens": 7,
        "gen_ai.latency.time_to_first_token": 0.25,
    },
}
LITELLM = {
    "request_id": "q", "call_type": "acompletion", "startTime": "2026-01-01T00:00:00.5+01:00",
    "endTime": "2026-01-01T00:00:02.5+01:00", "prompt_tokens": 12, "completion_tokens": 7,
    "model": "m", "cache_hit": "False", "status": "success",
}  # fmt: skip
LANGFUSE = {
    "id": "o", "type": "GENERATION", "startTime": "2026-01-01T00:00:00.000Z",
    "usageDetails": {"input": 12, "output": 7}, "model": "m", "traceId": "t", "latency": 1.5,
}  # fmt: skip
TRACELAB = {
    "round_index": 0, "round_id": "x", "session_id": "s", "prefix_tokens": 5,
    "newly_append_tokens": 7, "input_tokens_total": 12, "output_tokens": 7,
    "timing_events": json.dumps([{"timestamp": "2026-06-01T05:40:20.151Z"}]),
}  # fmt: skip


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


EXAMPLES: dict[str, tuple[str, list[tuple[float, int, int]]]] = {
    "memplan": (
        lines({"memplan_trace": 1, "source": "a.csv", "source_sha256": "0" * 64, "time_unit": "ms",
               "time_origin": "2026-01-01T00:00:00.0Z", "block_size": 16, "hash_id_scope": "global",
               "rows_read": 2, "rows_kept": 2, "dropped": {}},
              {"timestamp": 0, "input_length": 40, "output_length": 3, "hash_ids": [1, 2, 3]},
              {"timestamp": 1500, "input_length": 20, "output_length": 5, "session_id": "s"}),
        [(0.0, 40, 3), (1.5, 20, 5)],
    ),
    "mooncake": (
        lines({"timestamp": 27, "input_length": 600, "output_length": 52, "hash_ids": [46, 47]},
              {"timestamp": 1527, "input_length": 512, "output_length": 5, "hash_ids": [46]}),
        [(0.0, 600, 52), (1.5, 512, 5)],
    ),
    "azure_2023": (
        f"{AZURE}\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.9799600,3180,8\n",
        [(0.0, 4808, 10), (1.0, 3180, 8)],
    ),
    "azure_2024": (
        f"{AZURE}\n2024-05-10 00:00:01.5+00:00,7,3\n2024-05-10 02:00:00+02:00,8,4\n",
        [(0.0, 8, 4), (1.5, 7, 3)],
    ),
    "azure_lmm_2025": (
        f"{AZURE},NumImages\n2025-01-01T00:00:00Z,7,3,2\n",
        [(0.0, 7, 3)],
    ),
    "burstgpt_v1": (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\r\n"
        "5,ChatGPT,472,18,490,Conversation log\r\n45,GPT-4,9,0,9,API log\r\n",
        [(0.0, 472, 18)],
    ),
    "burstgpt_v2": (
        "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Log Type\n"
        "19440110.0,s,43,GPT-4,906,446,Conversation log\n19440161.5,,2,ChatGPT,36,29,API log\n",
        [(0.0, 906, 446), (51.5, 36, 29)],
    ),
    "bailian": (
        lines(
            {"chat_id": 1, "parent_chat_id": -1, "timestamp": 2.5, "input_length": 20,
             "output_length": 3, "type": "text", "turn": 1, "hash_ids": [1, 2]},
            {"chat_id": 4, "parent_chat_id": 1, "timestamp": 4, "input_length": 40,
             "output_length": 5, "type": "text", "turn": 2, "hash_ids": [1, 2, 3]},
        ),
        [(0.0, 20, 3), (1.5, 40, 5)],
    ),
    "ragpulse": (
        lines({"timestamp": "82", "input_length": 31, "output_length": 19, "session_id": "s",
               "hash_ids": {"sys_prompt": [8302]}}),
        [(0.0, 31, 19)],
    ),
    "weka": (lines(WEKA), [(0.0, 100, 5), (10.0, 30, 2), (20.0, 130, 7)]),
    "tracelab": (lines(TRACELAB), [(0.0, 12, 7)]),
    "dynamo": (lines(TOOL, DYNAMO), [(0.0, 15, 3)]),
    "otel": (
        lines({"resourceSpans": [{"scopeSpans": [{"spans": [AGENT, SPAN]}]}]}, VLLM),
        [(0.0, 12, 7), (67_225_600.0, 12, 7)],
    ),
    "litellm": (lines(LITELLM, {**LITELLM, "cache_hit": "True"}), [(0.0, 12, 7)]),
    "langfuse": (lines(LANGFUSE, {**LANGFUSE, "type": "SPAN"}), [(0.0, 12, 7)]),
    "openai_batch": (
        lines(
            {"custom_id": "a", "error": None, "response": {"status_code": 200, "body": {
                "model": "m", "object": "chat.completion", "usage": {
                    "prompt_tokens": 12, "completion_tokens": 7,
                    "prompt_tokens_details": {"cached_tokens": 4}}}}},
            {"custom_id": "b", "response": {"status_code": 500, "body": {}}, "error": None},
            {"custom_id": "c", "response": {"status_code": 200, "body": {
                "object": "list", "usage": {"prompt_tokens": 5, "total_tokens": 5}}}},
        ),
        [(0.0, 12, 7), (0.0, 5, 1)],
    ),
    "vllm_log": (
        "INFO 11-27 09:30:00 [api_server.py:12] vLLM API server\n"
        "INFO 11-27 09:30:05 [logger.py:39] Received request cmpl-1: prompt: 'a', params: "
        "SamplingParams(n=1), prompt_token_ids: [5, 6, 7], lora_request: None.\n"
        "INFO 11-27 09:30:09 [logger.py:39] Received request cmpl-2: params: SamplingParams(n=1)\n"
        "INFO 11-27 09:30:12 [logger.py:80] Generated response cmpl-2: output: 'b', "
        "output_token_ids: [1], finish_reason: stop\n"
        "INFO 11-27 09:31:07 [logger.py:39] Received request cmpl-3: prompt: 'a', params: "
        "SamplingParams(n=1), prompt_token_ids: [5], lora_request: None.\n"
        "INFO 11-27 09:31:09 [logger.py:80] Generated response cmpl-1: output: 'b', "
        "output_token_ids: [1, 2], finish_reason: stop\n",
        [(0.0, 3, 2)],
    ),
    "vidur": (
        "num_prefill_tokens,num_decode_tokens,arrived_at\n3772,54,0.5\n2015,156,2\n",
        [(0.0, 3772, 54), (1.5, 2015, 156)],
    ),
}  # fmt: skip


def read(folder: Path, content: str | bytes, format: str | None = None) -> Trace:
    path = folder / "trace"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_trace(path, format)


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_file_is_recognised_by_exactly_one_rule_and_read(tmp_path: Path, name: str) -> None:
    content, rows = EXAMPLES[name]
    fitting = [one.name for one in FORMATS if one.fits(content.splitlines()[:2])]
    assert fitting == [name]
    trace = read(tmp_path, content)
    assert trace.format == name
    found = [(row.timestamp_s, row.input_tokens, row.output_tokens) for row in trace.rows]
    assert found == [pytest.approx(row) for row in rows]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_canonical_form_keeps_every_row(tmp_path: Path, name: str) -> None:
    trace = read(tmp_path, EXAMPLES[name][0])
    write_trace(tmp_path / "canonical", trace)
    again = read_trace(tmp_path / "canonical")
    for before, after in zip(trace.rows, again.rows, strict=True):
        for field in ("input_tokens", "output_tokens", "session_id", "images", "hash_ids"):
            assert getattr(before, field) == getattr(after, field)
        for field in ("timestamp_s", "observed_ttft_s", "observed_e2e_s", "cached_input_tokens"):
            assert getattr(after, field) == pytest.approx(getattr(before, field))


def test_what_the_logs_say_besides_is_kept(tmp_path: Path) -> None:
    dynamo = read(tmp_path, EXAMPLES["dynamo"][0])
    (row,) = dynamo.rows
    assert (row.session_id, row.cached_input_tokens) == ("s", 4)
    assert (row.observed_ttft_s, row.observed_e2e_s) == (0.5, 2.0)
    assert row.hash_ids == (2**63 + 1,)
    assert dynamo.block_size == 16
    assert dynamo.dropped == {"tool_start": 1}
    span = read(tmp_path, EXAMPLES["otel"][0])
    assert span.dropped == {"invoke_agent": 1}
    assert span.rows[0].observed_e2e_s == 2.5
    assert span.rows[1].observed_ttft_s == 0.25
    assert read(tmp_path, EXAMPLES["litellm"][0]).dropped == {"answered_from_cache": 1}
    assert read(tmp_path, EXAMPLES["langfuse"][0]).dropped == {"type_span": 1}
    assert read(tmp_path, EXAMPLES["burstgpt_v1"][0]).dropped == {"status_error": 1}
    weka = read(tmp_path, EXAMPLES["weka"][0])
    assert [row.session_id for row in weka.rows] == ["w", "w/1", "w"]
    assert weka.rows[0].hash_ids == weka.rows[2].hash_ids[:2]
    assert [row.class_label for row in weka.rows] == [None, None, "tool"]
    batch = read(tmp_path, EXAMPLES["openai_batch"][0])
    assert batch.dropped == {"status_error": 1}
    assert [row.operation for row in batch.rows] == ["chat", "embeddings"]
    assert batch.rows[0].cached_input_tokens == 4
    log = read(tmp_path, EXAMPLES["vllm_log"][0])
    assert log.rows_read == 3
    assert log.dropped == {"no_token_counts": 1, "unknown_output_length": 1}
    bailian = read(tmp_path, EXAMPLES["bailian"][0])
    assert {row.session_id for row in bailian.rows} == {"1"}
    assert read(tmp_path, EXAMPLES["azure_lmm_2025"][0]).rows[0].images == 2


def test_packed_files_and_documents_of_many_lines_are_read(tmp_path: Path) -> None:
    content, _ = EXAMPLES["weka"]
    assert read(tmp_path, gzip.compress(content.encode())).rows_kept == 3
    assert read(tmp_path, pa.compress(content.encode(), codec="zstd", asbytes=True)).rows_kept == 3
    assert read(tmp_path, json.dumps(WEKA, indent=2)).rows_kept == 3
    assert read(tmp_path, json.dumps([LANGFUSE, LANGFUSE], indent=2)).rows_kept == 2
    with pytest.raises(InputError, match="its end is missing or broken"):
        read(tmp_path, gzip.compress(content.encode() * 50)[:-20])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("num_prefill_tokens,num_decode_tokens\n3,4\n", "holds lengths and no arrivals"),
        ("0,0,0,,0,0\n600,0,0,,0,0\n", "parameters of a generator"),
        (lines({**LANGFUSE, "usageDetails": None, "usage": {"unit": "CHARACTERS"}}), "expected TOKENS"),
        (lines({**LITELLM, "prompt_tokens": 1.5}), "prompt_tokens: got 1.5"),
        (lines({"custom_id": "a", "method": "POST", "url": "/v1", "body": {}}), "has no lengths"),
        (lines({**TRACELAB, "timing_events": "[]"}), "none of its 1 rows can be replayed"),
        (lines({**TRACELAB, "timing_events": "[0"}), "none of its 1 rows can be replayed"),
        (f"{AZURE}\n2024-05-10T00:00:00Z,7,3\n2024-05-10,7,3\n", "expected a time with its zone"),
    ],
)  # fmt: skip
def test_what_cannot_be_replayed_is_one_sentence(tmp_path: Path, content: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, content)
    assert words in caught.value.message


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(EXAMPLES)),
    st.lists(st.tuples(st.integers(0, 2000), st.text(max_size=3)), min_size=1, max_size=6),
)
def test_noise_in_a_file_never_ends_in_a_traceback_nor_invents_a_row(
    tmp_path_factory: pytest.TempPathFactory, name: str, edits: list[tuple[int, str]]
) -> None:
    content, rows = EXAMPLES[name]
    for at, text in edits:
        place = at % len(content)
        content = content[:place] + text + content[place + len(text) // 2 :]
    path = tmp_path_factory.getbasetemp() / "noise"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    try:
        trace = read_trace(path)
    except InputError:
        return
    assert trace.rows_kept <= max(len(rows), content.count("\n") + content.count("{"))
    assert all(row.input_tokens > 0 and row.output_tokens > 0 for row in trace.rows)


@pytest.mark.parametrize(
    ("name", "was", "now", "words"),
    [
        ("langfuse", '"latency": 1.5', f'"latency": {10**400}', "latency: got 1000"),
        (
            "otel",
            '"scopeSpans": [',
            '"scopeSpans": 1, "was": [',
            "scopeSpans: got 1, expected a list",
        ),
    ],
)
def test_a_value_of_another_kind_is_a_fault(
    tmp_path: Path, name: str, was: str, now: str, words: str
) -> None:
    content = EXAMPLES[name][0]
    assert was in content
    with pytest.raises(InputError, match=words):
        read(tmp_path, content.replace(was, now), format=name)


def test_a_log_with_a_long_answer_is_read_at_once(tmp_path: Path) -> None:
    content = EXAMPLES["vllm_log"][0].replace("output: 'b'", f"output: '{'b' * 50_000}'")
    began = time.process_time()
    assert read(tmp_path, content).rows_kept == 1
    assert time.process_time() - began < 2


def test_a_later_row_of_bailian_without_its_chat_is_a_fault(tmp_path: Path) -> None:
    row = {"chat_id": 1, "parent_chat_id": -1, "timestamp": 1, "input_length": 40,
           "output_length": 2, "hash_ids": [1, 2, 3]}  # fmt: skip
    lost = {key: value for key, value in row.items() if key != "chat_id"}
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in (row, lost)))
    with pytest.raises(InputError, match=":2 chat_id: missing"):
        read_trace(path)


def test_a_batch_is_joined_with_its_input_by_its_own_ids(tmp_path: Path) -> None:
    output = tmp_path / "day_output.jsonl"
    output.write_text(EXAMPLES["openai_batch"][0])
    (tmp_path / "day_input.jsonl").write_text(
        lines(*({"custom_id": one, "url": "/v1/embeddings"} for one in ("d", "a")))
    )
    trace = read_trace(output)
    assert trace.rows[0].operation == "embeddings"
    assert trace.rows_read == 4
    assert trace.dropped == {"never_answered": 1, "status_error": 1}


PARTS = ("sys_prompt", "passage", "history", "web_search", "user_input")


def ragpulse(folder: Path, *prompts: dict[str, list[int]], tokens: int = 60) -> Trace:
    """Passage n of every table has n tokens."""
    for number, part in enumerate(PARTS, start=1):
        rows = lines(*({f"{part}_id": size, "token_length": size} for size in range(50)))
        (folder / f"{number}_{part}{'s' if part == 'passage' else ''}.jsonl").write_text(rows)
    rows = [
        {"timestamp": str(at), "input_length": tokens, "output_length": 1, "hash_ids": prompt}
        for at, prompt in enumerate(prompts)
    ]
    (folder / "0_trace.jsonl").write_text(lines(*rows))
    return read_trace(folder / "0_trace.jsonl")


def test_blocks_of_ragpulse_are_the_same_where_all_passages_before_their_end_are(
    tmp_path: Path,
) -> None:
    trace = ragpulse(
        tmp_path,
        {"sys_prompt": [20], "passages_ids": [15, 20], "user_input": [5]},
        {"sys_prompt": [20], "passages_ids": [15, 21], "user_input": [4]},
        {"sys_prompt": [21], "passages_ids": [15, 20], "user_input": [4]},
    )
    assert trace.block_size == 16
    first, second, third = (row.hash_ids for row in trace.rows)
    assert len(first) == len(second) == len(third) == 4  # 60 tokens
    # Blocks end at 16, 32, 48 and 60; the first two rows are the same for 35 tokens.
    assert [a == b for a, b in zip(first, second, strict=True)] == [True, True, False, False]
    assert not set(first) & set(third)


def test_what_the_tables_do_not_cover_is_a_rows_own(tmp_path: Path) -> None:
    trace = ragpulse(tmp_path, {"sys_prompt": [20]}, {"sys_prompt": [20]})
    first, second = (row.hash_ids for row in trace.rows)
    assert first[0] == second[0]
    assert not set(first[1:]) & set(second)
    with pytest.raises(InputError, match=r"hash_ids\.history: 99 is not in its table"):
        ragpulse(tmp_path, {"history": [99]})


COLUMNS = "timestamp=when,input=in,output=out,unit=ms,session=who,e2e=took"


def test_columns_of_a_users_own_csv_are_read_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("who,out,in,when,took\nme,3,7,1500,2500\n,4,8,0,\n")
    trace = read_trace(path, columns=COLUMNS)
    found = [(r.timestamp_s, r.input_tokens, r.output_tokens, r.session_id) for r in trace.rows]
    assert found == [(0.0, 8, 4, None), (1.5, 7, 3, "me")]
    assert [row.observed_e2e_s for row in trace.rows] == [None, 2.5]
    path.write_text("when,in,out\n2026-01-01T00:00:00.25Z,7,3\n2026-01-01T00:00:00Z,8,4\n")
    dated = read_trace(path, columns="timestamp=when,input=in,output=out,unit=iso")
    assert [row.timestamp_s for row in dated.rows] == [0.0, 0.25]
    assert dated.time_origin == "2026-01-01T00:00:00.0Z"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ("timestamp=when,input=in", "output is missing"),
        ("timestamp=when,input=in,output=out", "it is never guessed"),
        (f"{COLUMNS},size=x", "got 'size=x'"),
        (f"{COLUMNS},input=x", "input is given twice"),
        ("timestamp=when,input=in,output=gone,unit=s", "expected the columns gone"),
    ],
)
def test_columns_that_cannot_be_read_are_said(tmp_path: Path, columns: str, words: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("who,out,in,when,took\nme,3,7,1500,2500\n")
    with pytest.raises(InputError) as caught:
        read_trace(path, columns=columns)
    assert words in caught.value.message
