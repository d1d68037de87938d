"""Impossible combinations: each part is right by itself, and the whole cannot be meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from memplan.specs.classes import LADDER_CLASS, UNKNOWN_CLASS
from memplan.specs.matrix import (
    MOST_COMBINATIONS,
    combination_count,
    matrix_variants,
    values_of,
)
from memplan.specs.model_file import ModelFile
from memplan.specs.places import Fault, Location
from memplan.specs.policy_faults import policy_faults
from memplan.specs.pool_faults import pool_faults
from memplan.specs.pools import BY_CLASS
from memplan.specs.server_faults import has_settings, server_faults
from memplan.specs.settings import (
    BASE_VARIANT,
    MALLOC_KEYS,
    SERVER_ENGINES,
    Script,
    Settings,
    malloc_variables_in,
)
from memplan.specs.stack import settings_below, stack_variants
from memplan.specs.values import MOST_NAME_LETTERS
from memplan.units import bytes_text

_MOST_SHOWN = 8
"""Names of combinations in one fault."""


def impossible(file: ModelFile, *, settings_are_whole: bool) -> Iterator[Fault]:
    """Defaults count only where ``settings_are_whole``: no setting was left out as faulty."""
    yield from dict.fromkeys(_engine_faults(file))  # two values of a matrix may share a fault
    for keys, text in _settings_faults(file.engine, file.settings):
        named = [key for key in keys if key in file.settings.model_fields_set]
        if settings_are_whole or len(named) == len(keys):
            yield ("settings", *map(_key_of, named[:1])), text
    yield from _class_faults(file)
    yield from _variant_faults(file)
    yield from _matrix_faults(file)
    yield from _stack_faults(file)
    yield from pool_faults(file)
    yield from _pool_settings_faults(file)


def _engine_faults(file: ModelFile) -> Iterator[Fault]:
    yield from server_faults(file)
    if file.engine in SERVER_ENGINES:
        return
    if file.engine == "torch":
        if file.model is None:
            yield (), "model: missing, engine torch needs one (path, gguf or package)"
        if file.script is not None:
            yield ("script",), "only engines scripted and ballast act out a script, not torch"
        return
    if file.model is not None:
        yield ("model",), f"engine {file.engine} loads no model; leave it out, or set engine: torch"
    if file.self_test is not None and file.engine == "scripted":
        yield ("self_test",), "engine scripted allocates no memory; use torch or ballast"
    places: list[tuple[Location, Settings]] = list(file.written_settings())
    for here, settings in places:
        for key, none in _OF_A_MODEL.items():
            if getattr(settings, key) != none:
                yield (*here, key), f"engine {file.engine} loads no model; use torch"
        if settings.load != "mapped":
            yield (*here, "load"), f"engine {file.engine} loads no weights from files; use torch"
        if settings.cuda_snapshot:
            yield (*here, "cuda_snapshot"), f"engine {file.engine} uses no GPU; use torch"
        if settings.offload != "never":
            yield (*here, "offload"), f"engine {file.engine} has no KV to move; use torch"
    yield from _script_faults(file)
    if file.engine == "scripted":
        for here, settings in places:
            for key in _memory_keys_of(settings):
                yield (
                    (*here, key),
                    "engine scripted allocates no memory; use torch or ballast",
                )


def _script_faults(file: ModelFile) -> Iterator[Fault]:
    """What memory by formula cannot hold; with a model, the engine says so when it starts."""
    script = file.script or Script()
    held_bytes = script.weights_bytes + script.runtime_bytes
    for here, settings in file.written_settings():
        budget_bytes = settings.memory_budget_bytes
        if budget_bytes is not None and budget_bytes <= held_bytes:
            yield (
                (*here, "memory_budget"),
                f"{bytes_text(budget_bytes)} leaves nothing for KV: the script's weights and runtime "
                f"are {bytes_text(held_bytes)}",
            )
        # A variant that leaves block_tokens out has the default here, and not what it will run with.
        if settings is not file.settings and "block_tokens" not in settings.model_fields_set:
            continue
        block_bytes = settings.block_tokens * script.kv_bytes_per_token
        for index, spec in enumerate(file.classes or ()):
            in_flight_bytes = spec.budget.in_flight_bytes
            if in_flight_bytes is not None and in_flight_bytes < block_bytes:
                yield (
                    ("classes", index, "budget", "in_flight"),
                    f"{bytes_text(in_flight_bytes)} is less than one KV block of "
                    f"{bytes_text(block_bytes)}, so none of its requests could run",
                )


_OF_A_MODEL: Mapping[str, object] = {
    "weights_by_module": {},
    "resident_layers": None,
    "adapters": {},
    "tokenizer": "never",
    "reuse_buffers": False,
}
"""Settings that mean something only where a model is loaded, and what they are without one."""


def _memory_keys_of(settings: Settings) -> Iterator[str]:
    """The keys given that mean something only where memory is allocated."""
    given = settings.model_fields_set
    without: dict[str, object] = dict.fromkeys(
        ("memory_limit_bytes", "memory_budget_bytes", "recycle_after_bytes", *MALLOC_KEYS)
    )
    without |= {"allocator": "system", "trim": "never", "gc": "frozen", "degrade": ()}
    for field, value in without.items():
        if field in given and getattr(settings, field) != value:
            yield _key_of(field)


def _key_of(field: str) -> str:
    """A field of Settings as model.yaml spells it."""
    return Settings.model_fields[field].alias or field


def _settings_faults(engine: str, settings: Settings) -> Iterator[tuple[tuple[str, str], str]]:
    """Each with the two keys that do not go together, where the engine has both."""
    for keys, text in _contradictions(settings):
        if has_settings(engine, keys):
            yield keys, text


def _contradictions(settings: Settings) -> Iterator[tuple[tuple[str, str], str]]:
    if settings.max_kv_tokens < settings.block_tokens:
        yield (
            ("max_kv_tokens", "block_tokens"),
            f"max_kv_tokens {settings.max_kv_tokens:,} is less than one block "
            f"(block_tokens {settings.block_tokens:,}), so nothing could run",
        )
    if settings.context_tokens is not None and settings.context_tokens > settings.max_kv_tokens:
        yield (
            ("context_tokens", "max_kv_tokens"),
            f"context_tokens {settings.context_tokens:,} is more than max_kv_tokens "
            f"{settings.max_kv_tokens:,}, so the longest request could never be admitted",
        )
    if settings.max_batch_tokens < settings.max_requests:
        yield (
            ("max_batch_tokens", "max_requests"),
            f"max_batch_tokens {settings.max_batch_tokens:,} is less than max_requests "
            f"{settings.max_requests:,}, so one step could not decode them all",
        )
    if settings.cuda_snapshot and settings.device == "cpu":
        yield ("cuda_snapshot", "device"), "a snapshot of CUDA memory, but device is cpu"
    if settings.reuse_buffers and settings.device == "cuda":
        yield (
            ("reuse_buffers", "device"),
            "torch's allocator for CUDA reuses its memory by itself; leave reuse_buffers out",
        )
    yield from _weight_faults(settings)
    yield from policy_faults(settings)
    for field, word in zip(MALLOC_KEYS, malloc_variables_in(settings.env), strict=True):
        if field not in settings.model_fields_set or getattr(settings, field) is None:
            continue
        if settings.allocator != "system":
            yield (
                (field, "allocator"),
                f"{_key_of(field)} moves glibc's malloc only, and allocator is "
                f"{settings.allocator}; write {_key_of(field)}: null",
            )
        elif word is not None:
            yield (
                (field, "env"),
                f"{_key_of(field)} and {word} in env say the same; keep one of them",
            )


def _weight_faults(settings: Settings) -> Iterator[tuple[tuple[str, str], str]]:
    is_read_on_host = settings.load == "read" and settings.device == "cpu"
    if settings.resident_layers is not None and is_read_on_host:
        yield (
            ("resident_layers", "load"),
            "layers that do not stay are read from their files again, and load: read maps none; "
            "leave load out",
        )
    compute = settings.weights if settings.weights in ("fp32", "fp16") else "bf16"
    for pattern, form in settings.weights_by_module.items():
        if form in ("fp32", "bf16", "fp16") and form != compute:
            yield (
                ("weights_by_module", "weights"),
                f'"{pattern}" is {form}, and weights: {settings.weights} computes in {compute}: what '
                f"is not quantized is {compute} everywhere",
            )
        if form == "int4" and compute != "bf16":
            yield (
                ("weights_by_module", "weights"),
                f'"{pattern}" is int4, whose kernels compute in bf16, and weights: '
                f"{settings.weights} computes in {compute}",
            )


def _class_faults(file: ModelFile) -> Iterator[Fault]:
    classes = file.classes or ()
    cpu_only = all(
        settings.device == "cpu"
        for _, settings in file.written_settings()
        if settings is file.settings or "device" in settings.model_fields_set
    )
    for index, spec in enumerate(classes):
        here: Location = ("classes", index)
        if spec.name in (UNKNOWN_CLASS, LADDER_CLASS):
            yield (*here, "name"), f'"{spec.name}" is a name that memplan itself gives'
        if spec.name in (other.name for other in classes[:index]):
            yield (*here, "name"), f'there is a class "{spec.name}" above already'
        taker = next((o for o in classes[:index] if o.when.covers(spec.when)), None)
        if taker is not None:
            yield (
                (*here, "when"),
                f'class "{spec.name}" can never be chosen: "{taker.name}" above it takes '
                f"every request that it matches ({taker.rule})",
            )
        for key in ("input_tokens", "output_tokens"):
            tokens, rule = getattr(spec.typical, key), getattr(spec.when, key)
            if tokens is not None and rule is not None and not rule.contains(tokens):
                yield (*here, "typical", key), f"got {tokens}, outside the class's own rule {rule}"
        if spec.adapter is not None and file.engine in ("scripted", "ballast"):
            yield (*here, "adapter"), f"engine {file.engine} loads no model; use torch"
        elif (
            file.engine == "torch"
            and spec.adapter is not None
            and spec.adapter not in file.settings.adapters
        ):
            yield (*here, "adapter"), _no_adapter(spec.adapter, file.settings)
        if spec.budget.gpu_bytes is not None and cpu_only:
            yield (*here, "budget", "gpu"), "a GPU budget, but device is cpu: nothing would use it"
        slo = spec.slo
        if slo.ttft_s is not None and slo.e2e_s is not None and slo.ttft_s > slo.e2e_s:
            yield (
                (*here, "slo", "ttft"),
                f"ttft {slo.ttft_s:g}s is more than e2e {slo.e2e_s:g}s: "
                "the first token cannot come after the last",
            )


def _no_adapter(name: str, settings: Settings) -> str:
    names = ", ".join(sorted(settings.adapters)) or "none"
    return f'there is no adapter "{name}", expected a name in settings.adapters ({names})'


def _variant_faults(file: ModelFile) -> Iterator[Fault]:
    for index, variant in enumerate(file.variants):
        here: Location = ("variants", index)
        if variant.name == BASE_VARIANT:
            yield (*here, "name"), f'"{BASE_VARIANT}" is the name of the settings as they are'
        if variant.name in (other.name for other in file.variants[:index]):
            yield (*here, "name"), f'there is a variant "{variant.name}" above already'
        changed = {k: v for k, v in variant.replaced.items() if v != getattr(file.settings, k)}
        if not changed:
            yield here, f'variant "{variant.name}" changes nothing, expected at least one setting'
        for spec in file.classes or () if "adapters" in changed else ():
            if spec.adapter is not None and spec.adapter not in variant.adapters:
                yield (
                    (*here, "adapters"),
                    f'of class "{spec.name}" {_no_adapter(spec.adapter, variant)}',
                )
        for keys, text in _settings_faults(file.engine, file.settings.model_copy(update=changed)):
            named = [key for key in keys if key in changed]
            if named:
                yield (*here, _key_of(named[0])), text


def _matrix_faults(file: ModelFile) -> Iterator[Fault]:
    """Of all combinations at once; one that cannot be is named with each reason."""
    if file.matrix is None:
        return
    here: Location = ("matrix",)
    count = combination_count(file.matrix)
    if count > MOST_COMBINATIONS:
        lengths = " × ".join(str(len(values)) for values in values_of(file.matrix).values())
        yield here, f"{lengths} = {count:,} combinations, expected at most {MOST_COMBINATIONS}"
    names: dict[str, list[str]] = {}
    listed = {variant.name for variant in file.variants}
    for variant in matrix_variants(file.settings, file.matrix):
        if len(variant.name) > MOST_NAME_LETTERS:
            reason = (
                f"its name, of which its folder is made, is longer than {MOST_NAME_LETTERS} letters"
            )
            names.setdefault(reason, []).append(variant.name)
        if variant.name in listed:
            names.setdefault("there is another variant of this name", []).append(variant.name)
        listed.add(variant.name)
        for keys, text in _settings_faults(
            file.engine, file.settings.model_copy(update=dict(variant.replaced))
        ):
            if any(key in variant.replaced for key in keys):
                names.setdefault(text, []).append(variant.name)
    for reason, among in names.items():
        shown = ", ".join(among[:_MOST_SHOWN])
        more = f" and {len(among) - _MOST_SHOWN} more" if len(among) > _MOST_SHOWN else ""
        yield here, f"{len(among)} of {count} combinations cannot be ({shown}{more}): {reason}"


def _stack_faults(file: ModelFile) -> Iterator[Fault]:
    taken = {one.name for one in (*file.variants, *matrix_variants(file.settings, file.matrix))}
    for index, (step, whole) in enumerate(zip(file.stack, stack_variants(file.stack), strict=True)):
        here: Location = ("stack", index)
        below = settings_below(file.settings, file.stack, index)
        if whole.name in taken:
            yield (*here, "name"), f'it is measured as "{whole.name}", and a variant has that name'
        changed = {k: v for k, v in step.replaced.items() if v != getattr(below, k)}
        if not changed:
            yield here, f'step "{step.name}" changes nothing of what is below it'
        for keys, text in _settings_faults(file.engine, below.model_copy(update=changed)):
            named = [key for key in keys if key in changed]
            if named:
                yield (*here, _key_of(named[0])), text


def _pool_settings_faults(file: ModelFile) -> Iterator[Fault]:
    for index, pool in enumerate(file.pools if file.pools != BY_CLASS else ()):
        named = pool.settings.model_fields_set
        own = {key: getattr(pool.settings, key) for key in named}
        for keys, text in _settings_faults(file.engine, file.settings.model_copy(update=own)):
            given = [key for key in keys if key in named]
            if given:
                yield ("pools", index, "settings", _key_of(given[0])), text
        if pool.script is not None and file.engine not in ("scripted", "ballast"):
            yield (
                ("pools", index, "script"),
                f"only engines scripted and ballast act out a script, not {file.engine}",
            )
        if pool.model is not None and file.engine in ("scripted", "ballast", "endpoint"):
            yield ("pools", index, "model"), f"engine {file.engine} loads no model; leave it out"
