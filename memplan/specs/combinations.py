"""Impossible combinations: each part is right by itself, and the whole cannot be meant."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.specs.classes import LADDER_CLASS, UNKNOWN_CLASS
from memplan.specs.model_file import ModelFile
from memplan.specs.places import Fault, Location
from memplan.specs.settings import BASE_VARIANT, MALLOC_KEYS, Settings, malloc_variables_in


def impossible(file: ModelFile, *, settings_are_whole: bool) -> Iterator[Fault]:
    """Defaults count only where ``settings_are_whole``: no setting was left out as faulty."""
    yield from _engine_faults(file)
    for keys, text in _settings_faults(file.settings):
        named = [key for key in keys if key in file.settings.model_fields_set]
        if settings_are_whole or len(named) == len(keys):
            yield ("settings", *map(_key_of, named[:1])), text
    yield from _class_faults(file)
    yield from _variant_faults(file)


def _engine_faults(file: ModelFile) -> Iterator[Fault]:
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
    places: list[tuple[Location, Settings]] = [(("settings",), file.settings)]
    places += [(("variants", index), variant) for index, variant in enumerate(file.variants)]
    for here, settings in places:
        if settings.load != "mapped":
            yield (*here, "load"), f"engine {file.engine} loads no weights from files; use torch"
        if settings.cuda_snapshot:
            yield (*here, "cuda_snapshot"), f"engine {file.engine} uses no GPU; use torch"
    if file.engine == "scripted":
        for here, settings in places:
            for key in _memory_keys_of(settings):
                yield (
                    (*here, key),
                    "engine scripted allocates no memory; use torch or ballast",
                )


def _memory_keys_of(settings: Settings) -> Iterator[str]:
    """The keys given that mean something only where memory is allocated."""
    given = settings.model_fields_set
    without = {"allocator": "system", "trim": "never"} | dict.fromkeys(
        ("memory_limit_bytes", *MALLOC_KEYS)
    )
    for field, value in without.items():
        if field in given and getattr(settings, field) != value:
            yield _key_of(field)


def _key_of(field: str) -> str:
    """A field of Settings as model.yaml spells it."""
    return Settings.model_fields[field].alias or field


def _settings_faults(settings: Settings) -> Iterator[tuple[tuple[str, str], str]]:
    """Each with the two keys that do not go together."""
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


def _class_faults(file: ModelFile) -> Iterator[Fault]:
    classes = file.classes or ()
    cpu_only = all(
        settings.device == "cpu"
        for settings in (file.settings, *(v for v in file.variants if "device" in v.replaced))
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
        if spec.budget.gpu_bytes is not None and cpu_only:
            yield (*here, "budget", "gpu"), "a GPU budget, but device is cpu: nothing would use it"
        slo = spec.slo
        if slo.ttft_s is not None and slo.e2e_s is not None and slo.ttft_s > slo.e2e_s:
            yield (
                (*here, "slo", "ttft"),
                f"ttft {slo.ttft_s:g}s is more than e2e {slo.e2e_s:g}s: "
                "the first token cannot come after the last",
            )


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
        for keys, text in _settings_faults(file.settings.model_copy(update=changed)):
            named = [key for key in keys if key in changed]
            if named:
                yield (*here, _key_of(named[0])), text
