"""Rules on token counts: what they hold, and how they read."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from written_model import SCRIPTED, load

from memplan.specs import BUILTIN_CLASSES, ClassSpec, ClassWhen, TokenRange


@pytest.mark.parametrize(
    ("rule", "inside", "outside"),
    [
        ('"<512"', (1, 511), (512,)),
        ('"<=511"', (1, 511), (512,)),
        ('">4095"', (4096, 10**6), (4095,)),
        ('">= 4096"', (4096, 10**6), (4095,)),
        ('"512..4095"', (512, 4095), (511, 4096)),
        ("77", (77,), (76, 78)),
        ('"77"', (77,), (76, 78)),
    ],
)
def test_rules_include_their_bounds_as_written(
    tmp_path: Path, rule: str, inside: tuple[int, ...], outside: tuple[int, ...]
) -> None:
    text = SCRIPTED + f"classes: [{{name: a, when: {{output_tokens: {rule}}}}}]\n"
    tokens = load(tmp_path, text).classes[0].when.output_tokens
    assert tokens is not None
    assert all(tokens.contains(n) for n in inside)
    assert not any(tokens.contains(n) for n in outside)


@given(
    st.builds(
        lambda low, width: TokenRange(low=low, high=None if width is None else low + width),
        st.integers(1, 2000),
        st.none() | st.integers(0, 2000),
    ),
    st.builds(
        lambda low, width: TokenRange(low=low, high=None if width is None else low + width),
        st.integers(1, 2000),
        st.none() | st.integers(0, 2000),
    ),
    st.integers(1, 5000),
)
def test_a_range_that_covers_another_contains_all_of_it(
    one: TokenRange, other: TokenRange, tokens: int
) -> None:
    if one.covers(other) and other.contains(tokens):
        assert one.contains(tokens)
    assert one.contains(one.typical)


def test_typical_lengths_are_derived_from_the_rule() -> None:
    derived = [(spec.typical_input_tokens, spec.typical_output_tokens) for spec in BUILTIN_CLASSES]
    assert derived == [(256, 64), (2303, 64), (6144, 64)]
    assert ClassSpec(name="all").typical_input_tokens == 512


def test_a_rule_reads_as_a_sentence() -> None:
    when = ClassWhen(operation=("chat", "rerank"), labels={"tenant": "a"})
    assert ClassSpec(name="a", when=when).rule == "operation chat or rerank, label tenant is a"
    assert ClassSpec(name="all").rule == "every request"
