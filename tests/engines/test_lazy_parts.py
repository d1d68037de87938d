"""What is loaded on demand: when, for whom, and what is told of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from memplan.engines.lazy_parts import LazyParts
from memplan.engines.sequence import Row, Sequence


class Shelf:
    """Adapters of 100 bytes; remembers who was asked for and who had to stay."""

    names = ("a", "b")
    most_bytes = 200

    def __init__(self) -> None:
        self.held: set[str] = set()
        self.asked: list[tuple[list[str], set[str]]] = []

    @property
    def resident_bytes(self) -> int:
        return 100 * len(self.held)

    def bring(self, names: Collection[str], *, running: Collection[str]) -> Mapping[str, float]:
        self.asked.append((list(names), set(running)))
        new = [name for name in names if name not in self.held]
        self.held |= set(names)
        return dict.fromkeys(new, 0.5)


class Words:
    loads = 0

    def load(self) -> None:
        self.loads += 1


def with_adapter(name: str) -> Sequence:
    return Sequence(request_id=name or "none", prompt=[1], output_tokens=1, adapter=name)


def row_of(sequence: Sequence) -> Row:
    return Row(sequence=sequence, start=0, count=1)


def test_an_adapter_that_is_not_there_is_refused_and_none_is_not() -> None:
    lazy = LazyParts(Shelf())
    refusals = [lazy.refusal(with_adapter(name)) for name in ("a", "", "c")]
    assert refusals == [None, None, "unknown_adapter"]
    assert LazyParts().refusal(with_adapter("a")) == "unknown_adapter"


def test_only_the_adapters_of_a_step_come_and_those_of_all_running_stay() -> None:
    shelf = Shelf()
    lazy = LazyParts(shelf)
    rows = [row_of(with_adapter(name)) for name in ("a", "", "a")]
    running = [with_adapter(name) for name in ("a", "b", "")]
    assert lazy.gauges() == {"engine.adapters": 0}
    assert lazy.coming_bytes == 200
    assert lazy.bring_adapters(rows, running) == {"a": 0.5}
    assert lazy.bring_adapters(rows, running) == {}
    assert shelf.asked == [(["a"], {"a", "b"})] * 2
    assert lazy.gauges() == {"engine.adapters": 100}
    assert lazy.coming_bytes == 100


def test_the_tokenizer_is_loaded_once_and_known_from_then_on() -> None:
    words = Words()
    lazy = LazyParts(tokenizer=words)
    assert lazy.gauges() == {}
    assert lazy.bring_tokenizer() > 0
    assert lazy.bring_tokenizer() == 0
    assert words.loads == 1
    assert lazy.gauges()["engine.tokenizer"] >= 0


def test_kept_buffers_are_told_of() -> None:
    shelf = Shelf()
    shelf.held = {"a"}
    assert LazyParts(buffers=shelf).gauges() == {"engine.buffers": 100}


def test_an_engine_without_either_has_nothing_to_load() -> None:
    lazy = LazyParts()
    assert lazy.bring_tokenizer() == 0
    assert lazy.bring_adapters([row_of(with_adapter(""))], []) == {}
    assert (lazy.gauges(), lazy.coming_bytes) == ({}, 0)
