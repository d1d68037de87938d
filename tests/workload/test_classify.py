"""Rows become requests: classes, scaling, dilation."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.errors import InputError
from memplan.specs import BUILTIN_CLASSES, ClassSpec, ClassWhen, TokenRange
from memplan.workload.classify import class_of, class_rules, plan_requests
from memplan.workload.trace import Trace, TraceRow, read_trace

WORKLOADS = Path(__file__).parents[2] / "workloads"
MOONCAKE = read_trace(WORKLOADS / "mooncake_conversation.slice.jsonl")


def trace_of(*rows: TraceRow, block_size: int | None = None) -> Trace:
    return Trace(
        source="made",
        format="memplan",
        sha256="",
        rows_read=len(rows),
        dropped={},
        time_origin=None,
        block_size=block_size,
        rows=rows,
    )


def row(timestamp_s: float = 0.0, prompt: int = 10, output: int = 5, **more: object) -> TraceRow:
    return TraceRow(
        line=1,
        timestamp_s=timestamp_s,
        input_tokens=prompt,
        output_tokens=output,
        **more,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("tokens", "name"),
    [(1, "short"), (511, "short"), (512, "medium"), (4095, "medium"), (4096, "long")],
)
def test_builtin_classes_split_at_512_and_4096(tokens: int, name: str) -> None:
    assert class_of(BUILTIN_CLASSES, input_tokens=tokens, output_tokens=1) == name


def test_the_first_class_whose_conditions_all_hold_wins() -> None:
    classes = [
        ClassSpec(name="gold", when=ClassWhen(labels={"tenant": "a"}, operation=("chat",))),
        ClassSpec(name="brief", when=ClassWhen(output_tokens=TokenRange(high=8))),
        ClassSpec(name="rest", when=ClassWhen(operation=("chat",))),
    ]

    def named(output_tokens: int, operation: str = "chat", **labels: str) -> str:
        return class_of(
            classes,
            input_tokens=1,
            output_tokens=output_tokens,
            operation=operation,
            labels=labels,
        )

    assert named(5, tenant="a", zone="x") == "gold"
    assert named(5, tenant="b") == "brief"
    assert named(9) == "rest"
    assert named(9, operation="rerank", tenant="a") == "unknown"


def test_classes_follow_the_lengths_before_scaling_and_labels_of_the_trace_stand() -> None:
    trace = trace_of(row(prompt=5000), row(prompt=5000, class_label="gold"), row(prompt=100))
    requests = plan_requests(trace, classes=BUILTIN_CLASSES, length_scale=0.01)
    assert [r.class_name for r in requests] == ["long", "gold", "short"]
    assert [r.input_tokens for r in requests] == [50, 50, 1]
    assert [r.trace_input_tokens for r in requests] == [5000, 5000, 100]


def test_rules_of_every_name_in_use_are_given() -> None:
    classes = [ClassSpec(name="tiny", when=ClassWhen(input_tokens=TokenRange(high=9)))]
    trace = trace_of(row(prompt=10), row(prompt=9), row(class_label="gold"))
    assert class_rules(
        classes, [one.class_name for one in plan_requests(trace, classes=classes)]
    ) == {
        "tiny": "input_tokens <=9",
        "unknown": "no class matched",
        "gold": "named by the trace",
    }


@pytest.mark.parametrize(
    ("tokens", "scale", "expected"),
    [
        (5, 0.5, 3),
        (3, 0.5, 2),
        (100, 0.285, 29),
        (1, 0.001, 1),
        (6758, 0.125, 845),
        (7, 1.0, 7),
        (7, 2.5, 18),
    ],
)
def test_scaling_rounds_halves_up_and_leaves_a_token(
    tokens: int, scale: float, expected: int
) -> None:
    (only,) = plan_requests(
        trace_of(row(prompt=tokens, output=tokens)), classes=(), length_scale=scale
    )
    assert (only.input_tokens, only.output_tokens) == (expected, expected)


@given(
    st.lists(st.integers(1, 10**6), min_size=2, max_size=20),
    st.floats(min_value=1e-4, max_value=100),
)
def test_scaling_keeps_the_order_of_lengths(lengths: list[int], scale: float) -> None:
    trace = trace_of(*(row(prompt=n) for n in sorted(lengths)))
    scaled = [r.input_tokens for r in plan_requests(trace, classes=(), length_scale=scale)]
    assert scaled == sorted(scaled)
    assert min(scaled) >= 1


def test_a_scaled_trace_keeps_its_prefix_ids_and_scales_their_blocks() -> None:
    requests = plan_requests(MOONCAKE, classes=BUILTIN_CLASSES, length_scale=0.125)
    assert {r.prefix_block_tokens for r in requests} == {64}
    assert [r.prefix_ids for r in requests] == [r.hash_ids for r in MOONCAKE.rows]
    (tiny, bare) = plan_requests(
        trace_of(row(hash_ids=(4,)), row(), block_size=16), classes=(), length_scale=0.001
    )
    assert tiny.prefix_block_tokens == 1
    assert bare.prefix_block_tokens is None


def test_dilation_stretches_the_time_after_the_first_kept_row() -> None:
    trace = trace_of(row(0.0), row(2.0), row(2.5), row(9.0))
    requests = plan_requests(trace, classes=(), dilation=4.0, start_row=1, limit=2)
    assert [(r.request_id, r.arrival_s) for r in requests] == [("r000002", 0.0), ("r000003", 2.0)]
    assert {r.wave for r in requests} == {"trace"}


def test_ids_of_the_trace_are_kept_and_never_given_twice() -> None:
    trace = trace_of(row(), row(request_id="r000001"), row(request_id="r000003"), row())
    ids = [r.request_id for r in plan_requests(trace, classes=())]
    assert ids == ["r000001x", "r000001", "r000003", "r000004"]


def test_a_limit_renames_no_request() -> None:
    everything = plan_requests(MOONCAKE, classes=BUILTIN_CLASSES)
    assert plan_requests(MOONCAKE, classes=BUILTIN_CLASSES, limit=10) == everything[:10]


def test_wrong_options_are_all_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        plan_requests(
            MOONCAKE, classes=(), length_scale=0.0, dilation=float("nan"), limit=0, start_row=300
        )
    assert [line.split(": ")[0].strip() for line in caught.value.message.split("\n")[1:]] == [
        "length scale",
        "dilation",
        "limit",
        "start row",
    ]
