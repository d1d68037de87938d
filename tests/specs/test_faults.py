"""Every fault of a bad model.yaml at once, each with its line, what was got and what expected."""

from pathlib import Path

import pytest
from written_model import SCRIPTED, faults_of, only_fault_of


def test_five_faults_give_five_lines(tmp_path: Path) -> None:
    text = """\
memplan: 1
name: five
engine: scripted
settings:
  weigths: int8
  max_requests: 600
  max_batch_tokens: 512
classes:
  - name: short
    when: {input_tokens: "<512"}
    budget:
      cpu: 64
  - name: short
    when: {input_tokens: ">=512"}
variants:
  - {name: Int8, weights: int8}
"""
    assert faults_of(tmp_path, text) == [
        '5 $.settings.weigths: unknown key; did you mean "weights"?',
        "7 $.settings.max_batch_tokens: max_batch_tokens 512 is less than max_requests 600, so "
        "one step could not decode them all",
        "12 $.classes[0].budget.cpu: got 64, expected a size with its unit, such as 64MiB or "
        "64MB, which differ",
        '13 $.classes[1].name: there is a class "short" above already',
        "16 $.variants[0].name: got \"Int8\", expected a name of a-z, 0-9, '.', '_' and '-' that "
        "starts with a letter or digit (it names a folder)",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("settings:\n", "4 $.settings: got nothing, expected a mapping of keys"),
        (
            "settings: {max_kv_tokens: 99999999999}\n",
            "4 $.settings.max_kv_tokens: got 99999999999, expected at most 2,147,483,647",
        ),
        (
            "settings: {max_requests: yes}\n",
            "4 $.settings.max_requests: got true, expected a whole number",
        ),
        (
            "settings: {weights: int3}\n",
            '4 $.settings.weights: got "int3", expected fp32, bf16, fp16, int8, int8_dynamic or int4',
        ),
        (
            "script: {prefill_tokens_per_s: 0}\n",
            "4 $.script.prefill_tokens_per_s: got 0, expected more than 0",
        ),
        (
            "script: {prefill_tokens_per_s: fast}\n",
            '4 $.script.prefill_tokens_per_s: got "fast", expected a number',
        ),
        (
            'script: {decode_s_per_step: "20"}\n',
            '4 $.script.decode_s_per_step: got "20", expected a duration above zero with its '
            "unit, such as 250ms or 2s",
        ),
        (
            "script: {decode_s_per_step: 0ms}\n",
            '4 $.script.decode_s_per_step: got "0ms", expected a duration above zero with its '
            "unit, such as 250ms or 2s",
        ),
        (
            f"classes: [{{name: a, budget: {{cpu: {'9' * 400}MiB}}}}]\n",
            f'4 $.classes[0].budget.cpu: got "{"9" * 56}…, expected a size with its unit, such '
            "as 64MiB or 64MB, which differ",
        ),
        ("classes: [{name: null}]\n", "4 $.classes[0].name: got nothing, expected text"),
        ("classes: [{name: 7}]\n", "4 $.classes[0].name: got 7, expected text in quotes"),
        ("classes: {}\n", "4 $.classes: got a mapping, expected a list"),
        ('"a\\nb": 1\n', '4 $["a\\nb"]: unknown key, expected one of'),
    ],
)
def test_each_fault_says_what_was_got_and_expected(tmp_path: Path, text: str, fault: str) -> None:
    assert only_fault_of(tmp_path, SCRIPTED + text).startswith(fault)


def test_a_misspelt_setting_does_not_make_the_others_look_impossible(tmp_path: Path) -> None:
    fault = only_fault_of(
        tmp_path, SCRIPTED + "settings:\n  max_requests: 600\n  max_batch_token: 1024\n"
    )
    assert 'did you mean "max_batch_tokens"?' in fault


def test_a_faulty_item_does_not_shift_the_faults_behind_it(tmp_path: Path) -> None:
    faults = faults_of(
        tmp_path,
        SCRIPTED + "classes:\n- {nam: a}\n- {name: b, budget: {cpu: 1}}\n"
        "- {name: b, slo: {ttft: 2s, e2e: 1s}}\n",
    )
    assert [line.split(":")[0] for line in faults] == [
        "5 $.classes[0].nam",
        "5 $.classes[0].name",
        "6 $.classes[1].budget.cpu",
        "7 $.classes[2].name",
        "7 $.classes[2].slo.ttft",
        "7 $.classes[2].when",
    ]


def test_a_key_written_twice_is_a_fault_at_the_second(tmp_path: Path) -> None:
    fault = only_fault_of(tmp_path, SCRIPTED + "settings:\n  threads: 1\n  threads: 2\n")
    assert fault == "6 $.settings.threads: key is also on line 5, expected once"
