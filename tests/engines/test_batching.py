"""When a batching policy lets the waiting ones in."""

import pytest

from memplan.engines.batching import BATCH_WAIT_S, Batching, Kind
from memplan.engines.sequence import Sequence


def waiting(*queued_s: float, tokens: int = 3) -> list[Sequence]:
    return [
        Sequence(request_id=str(at_s), prompt=[0] * tokens, output_tokens=1, queued_s=at_s)
        for at_s in queued_s
    ]


def opens(kind: Kind, *queued_s: float, now_s: float = 10.0, running: int = 0) -> float | None:
    batching = Batching(kind=kind, most=3, wait_s=2.0, tokens=9)
    return batching.opens_in_s(now_s, running=running, waiting=waiting(*queued_s))


@pytest.mark.parametrize(
    ("kind", "queued_s", "running", "expected"),
    [
        ("continuous", (10,), 5, 0.0),
        ("static", (), 0, 0.0),
        ("static", (9.5,), 0, 1.5),
        ("static", (10, 9.5), 0, 1.5),  # the first counts, wherever it stands
        ("static", (10, 10, 10), 0, 0.0),  # full
        ("static", (7,), 0, 0.0),  # waited enough
        ("static", (7, 7, 7), 1, None),
        ("dynamic", (9.5,), 0, 1.5),
        ("dynamic", (7, 7, 7), 1, None),
        ("micro", (9.5,), 1, 1.5),  # whoever else runs
        ("micro", (10, 10, 10), 1, 0.0),  # 9 prompt tokens
        ("micro", (8,), 1, 0.0),
    ],
)
def test_who_waits_enters(
    kind: Kind, queued_s: tuple[float, ...], running: int, expected: float | None
) -> None:
    assert opens(kind, *queued_s, running=running) == expected


def test_only_a_static_batch_holds_what_has_ended_and_only_micro_has_groups() -> None:
    made = {kind: Batching(kind=kind, most=3, tokens=9) for kind in BATCH_WAIT_S}
    assert [kind for kind, one in made.items() if one.holds_finished] == ["static"]
    assert {kind: one.group_tokens for kind, one in made.items()} == {
        "continuous": None, "static": None, "dynamic": None, "micro": 9,
    }  # fmt: skip
