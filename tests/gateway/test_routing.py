"""Which pool a request goes to: every path worked out by hand, and laws under any traffic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from memplan.gateway.routing import Gateway, Send, pools_in_use, route_of
from memplan.records import PathRecord, Request, RequestRecord
from memplan.specs.pools import PoolSpec, RouteSpec


def request(
    number: int, *, tokens: int = 100, class_name: str = "short", **more: object
) -> Request:
    values = {"output_tokens": 10, **more}
    return Request(
        request_id=f"r{number}",
        wave="trace",
        arrival_s=0.0,
        class_name=class_name,
        input_tokens=tokens,
        **values,  # type: ignore[arg-type]
    )


def routes(*written: dict[str, object]) -> tuple[RouteSpec, ...]:
    return tuple(
        RouteSpec.model_validate({"name": f"route-{n}", **one}) for n, one in enumerate(written)
    )


SMALL_THEN_LARGE = {"to": ["small", "large"]}
POOLS = (PoolSpec(name="small", max_in_flight=1), PoolSpec(name="large", max_tokens_in_flight=250))


def sent(decided: Sequence[Send | PathRecord]) -> list[tuple[str, str]]:
    return [(one.request.request_id, one.pool) for one in decided if isinstance(one, Send)]


def ended(decided: Sequence[Send | PathRecord]) -> list[tuple[str, str, str | None]]:
    return [
        (one.request_id, one.outcome, one.reason) for one in decided if isinstance(one, PathRecord)
    ]


def completed(number: int, at_s: float) -> RequestRecord:
    return RequestRecord(
        request_id=f"r{number}", outcome="completed", first_token_s=at_s - 1, end_s=at_s
    )


def test_the_first_pool_with_room_takes_it_and_who_finds_none_is_rejected() -> None:
    gateway = Gateway(routes(SMALL_THEN_LARGE), POOLS)
    for number in range(4):
        gateway.arrive(request(number), 0.0)
    decided = list(gateway.decide(0.0))
    # One fits into small; large has room for two of 110 tokens.
    assert sent(decided) == [("r0", "small"), ("r1", "large"), ("r2", "large")]
    assert ended(decided) == [("r3", "rejected", "no_room")]


def test_who_waits_is_served_in_order_of_arrival_and_its_wait_is_known() -> None:
    gateway = Gateway(routes({"to": ["small"], "wait": "10s"}), POOLS)
    for number in range(3):
        gateway.arrive(request(number), float(number))
    assert sent(list(gateway.decide(2.0))) == [("r0", "small")]
    assert gateway.due_s() == 11.0
    path = gateway.ended(completed(0, 5.0), 5.0)
    assert path is not None
    assert (path.outcome, path.intended_s, path.end_s) == ("completed", 0.0, 5.0)
    assert sent(list(gateway.decide(5.0))) == [("r1", "small")]
    assert ended(list(gateway.decide(12.0))) == [("r2", "rejected", "no_room")]
    path = gateway.ended(completed(1, 13.0), 13.0)
    assert path is not None
    assert path.waited_s == 4.0
    assert gateway.is_idle


def test_a_pool_that_refuses_or_dies_is_left_for_the_next_and_never_asked_again() -> None:
    gateway = Gateway(routes({"to": ["small", "large"], "wait": "9s"}), POOLS)
    gateway.arrive(request(1), 0.0)
    assert sent(list(gateway.decide(0.0))) == [("r1", "small")]
    refused = RequestRecord(request_id="r1", outcome="rejected", reason="queue_full", end_s=1.0)
    assert gateway.ended(refused, 1.0) is None
    assert sent(list(gateway.decide(1.0))) == [("r1", "large")]
    died = RequestRecord(request_id="r1", outcome="failed", reason="engine_died", end_s=2.0)
    path = gateway.ended(died, 2.0)
    assert path is not None
    assert (path.outcome, path.reason) == ("failed", "engine_died")
    assert [(one.pool, one.reason) for one in path.attempts] == [
        ("small", "queue_full"),
        ("large", "engine_died"),
    ]


def test_no_engine_is_asked_that_is_gone() -> None:
    gateway = Gateway(routes(SMALL_THEN_LARGE), POOLS, alive=lambda name: name == "large")
    gateway.arrive(request(1), 0.0)
    assert sent(list(gateway.decide(0.0))) == [("r1", "large")]
    gone = Gateway(routes(SMALL_THEN_LARGE), POOLS, alive=lambda _: False)
    gone.arrive(request(2), 0.0)
    assert ended(list(gone.decide(0.0))) == [("r2", "rejected", "no_engine")]


def test_put_off_once_and_tried_again_later() -> None:
    gateway = Gateway(routes({"to": ["small"], "when_full": ["deferred"], "defer": "30s"}), POOLS)
    gateway.arrive(request(1), 0.0)
    gateway.arrive(request(2), 0.0)
    assert sent(list(gateway.decide(0.0))) == [("r1", "small")]
    assert gateway.due_s() == 30.0
    assert list(gateway.decide(29.0)) == []
    gateway.ended(completed(1, 29.0), 29.0)
    assert sent(list(gateway.decide(30.0))) == [("r2", "small")]
    path = gateway.ended(completed(2, 31.0), 31.0)
    assert path is not None
    assert (path.deferred_s, path.waited_s) == (30.0, 0.0)


def test_an_equal_prompt_is_answered_with_what_was_answered_before() -> None:
    prefix = {"prefix_ids": (7, 8), "prefix_block_tokens": 50}
    gateway = Gateway(routes({"to": ["small"], "when_full": ["cached"]}), POOLS)
    gateway.arrive(request(1, **prefix), 0.0)
    list(gateway.decide(0.0))
    gateway.ended(completed(1, 5.0), 5.0)
    gateway.arrive(request(2), 6.0)  # takes the only place
    gateway.arrive(request(3, **prefix), 6.0)
    gateway.arrive(request(4), 6.0)
    decided = list(gateway.decide(6.0))
    assert sent(decided) == [("r2", "small")]
    assert ended(decided) == [("r3", "cached", None), ("r4", "rejected", "no_room")]


CASCADE = {"to": ["small", "large"], "cascade_below": 0.6}


def sure(number: int, confidence: float, at_s: float) -> RequestRecord:
    return replace(completed(number, at_s), confidence=confidence)


def test_an_answer_that_is_not_sure_enough_goes_on_to_the_next_pool() -> None:
    gateway = Gateway(routes(CASCADE), POOLS)
    gateway.arrive(request(0), 0.0)
    assert sent(list(gateway.decide(0.0))) == [("r0", "small")]
    assert gateway.ended(sure(0, 0.59, 3.0), 3.0) is None
    assert sent(list(gateway.decide(3.0))) == [("r0", "large")]
    path = gateway.ended(sure(0, 0.1, 8.0), 8.0)  # the last pool's answer is the answer
    assert path is not None
    assert (path.outcome, path.reason, path.end_s) == ("completed", "unsure", 8.0)
    assert [(one.pool, one.reason) for one in path.attempts] == [
        ("small", "unsure"),
        ("large", "unsure"),
    ]


def test_an_answer_that_is_sure_enough_stays() -> None:
    gateway = Gateway(routes(CASCADE), POOLS)
    gateway.arrive(request(0), 0.0)
    list(gateway.decide(0.0))
    path = gateway.ended(sure(0, 0.6, 3.0), 3.0)
    assert path is not None
    assert (path.outcome, path.reason, len(path.attempts)) == ("completed", None, 1)


def test_an_unsure_answer_stands_where_no_other_pool_answers() -> None:
    full = (POOLS[0], PoolSpec(name="large", max_tokens_in_flight=50))
    gateway = Gateway(routes(CASCADE), full)
    gateway.arrive(request(0), 0.0)
    list(gateway.decide(0.0))
    assert gateway.ended(sure(0, 0.2, 3.0), 3.0) is None
    (path,) = list(gateway.decide(3.0))
    assert isinstance(path, PathRecord)
    assert (path.outcome, path.reason, path.end_s) == ("completed", "unsure", 3.0)

    gateway = Gateway(routes(CASCADE), POOLS)
    gateway.arrive(request(0), 0.0)
    list(gateway.decide(0.0))
    gateway.ended(sure(0, 0.2, 3.0), 3.0)
    list(gateway.decide(3.0))
    broken = RequestRecord(request_id="r0", outcome="failed", reason="engine_died", end_s=5.0)
    after = gateway.ended(broken, 5.0)
    assert after is not None
    assert (after.outcome, after.reason, after.end_s) == ("completed", "unsure", 3.0)


def test_under_pressure_the_other_way_is_taken() -> None:
    gateway = Gateway(routes({"to": ["large"], "under_pressure": ["small"]}), POOLS)
    gateway.arrive(request(1), 0.0)
    assert sent(list(gateway.decide(0.0, under_pressure=True))) == [("r1", "small")]
    gateway.arrive(request(2), 1.0)
    assert sent(list(gateway.decide(1.0))) == [("r2", "large")]
    path = gateway.ended(completed(1, 2.0), 2.0)
    assert path is not None
    assert path.is_under_pressure


def test_a_route_matches_by_class_length_and_label_and_the_first_that_does_is_taken() -> None:
    found = routes(
        {"to": ["a"], "when": {"class": ["long"]}},
        {"to": ["b"], "when": {"labels": {"priority": "high"}}},
        {"to": ["c"], "when": {"input_tokens": "<512"}},
    )
    assert route_of(found, request(1, class_name="long")) == found[0]
    assert route_of(found, request(2, tokens=600, labels={"priority": "high"})) == found[1]
    assert route_of(found, request(3)) == found[2]
    assert route_of(found, request(4, tokens=600)) is None
    # A scaled request goes where the trace's own length would have gone.
    assert route_of(found, request(5, tokens=300, trace_input_tokens=600)) is None
    assert set(pools_in_use(found, [request(3)])) == {"c"}


def test_a_request_without_a_route_is_said() -> None:
    gateway = Gateway(routes({"to": ["small"], "when": {"class": ["long"]}}), POOLS)
    gateway.arrive(request(1), 0.0)
    assert ended(list(gateway.decide(0.0))) == [("r1", "rejected", "no_route")]


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["arrive", "complete", "refuse", "later"]), st.integers(0, 5)),
    max_size=60,
)


@given(ACTIONS, st.booleans(), st.sampled_from([[], ["deferred"], ["cached", "deferred"]]))
def test_whatever_comes_no_limit_is_passed_and_every_request_ends_once(
    actions: list[tuple[str, int]], waits: bool, when_full: list[str]
) -> None:
    written: dict[str, object] = {"to": ["small", "large"], "when_full": when_full}
    if waits:
        written["wait"] = "3s"
    gateway = Gateway(routes(written), POOLS)
    now_s, arrived = 0.0, 0
    there: dict[str, str] = {}
    over: list[PathRecord] = []

    def decide() -> None:
        for one in gateway.decide(now_s):
            if isinstance(one, Send):
                assert one.request.request_id not in there
                there[one.request.request_id] = one.pool
            else:
                over.append(one)

    for action, number in actions:
        if action == "arrive":
            gateway.arrive(request(arrived), now_s)
            arrived += 1
        elif action == "later":
            now_s += number * 10
        elif there:
            name = sorted(there)[number % len(there)]
            del there[name]
            outcome = "completed" if action == "complete" else "rejected"
            record = RequestRecord(request_id=name, outcome=outcome, end_s=now_s)  # type: ignore[arg-type]
            path = gateway.ended(record, now_s)
            over.extend([path] if path else [])
        decide()
        pools = list(there.values())
        assert pools.count("small") <= 1
        assert pools.count("large") * 110 <= 250
    over.extend(gateway.unfinished())
    assert sorted(one.request_id for one in over) == sorted(f"r{n}" for n in range(arrived))
    for one in over:
        assert one.waited_s >= 0
        assert one.deferred_s >= 0
        assert len({attempt.pool for attempt in one.attempts}) == len(one.attempts)
