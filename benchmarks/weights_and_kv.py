"""What quantized weights and KV save in resident memory, mapped originals included.

Every form is a fresh engine process. Resident is the kernel's own sum over all mappings (smaps), read
with nothing in flight by this file alone; memplan's idle figures stand beside it. The pool's growth is
that of its mapping, against 2 · layers · kv_heads · bytes of a head's vector, to the byte.

    python benchmarks/weights_and_kv.py --out reports/benchmark_weights_and_kv.json
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from engine_door import (
    Mapped,
    deployment,
    machine_fields,
    mappings_of,
    plain_requests,
    serve,
)

from memplan.engines.torch.prepare import prepared_folder
from memplan.records import EngineFacts

HEAD = {"lm_head": "int8", "*.embed_tokens": "int8"}
FORMS: dict[str, Mapping[str, Any]] = {
    "fp32": {"weights": "fp32"},
    "bf16": {"weights": "bf16"},
    "int8": {"weights": "int8"},
    "int4": {"weights": "int4"},
    "int4, embeddings and head int8": {"weights": "int4", "weights_by_module": HEAD},
}
CLAIM_RATIO = 0.4
"""Of the bf16 weights' bytes: so much less is resident with int4."""
KV_FORMS = ("bf16", "int8", "int4")
EXACT_BLOCK_TOKENS = 512
"""A block of so many tokens is a whole number of pages in every form."""
BLOCK_TOKENS = (EXACT_BLOCK_TOKENS, 16)
KV_TOKENS = 2048
REQUESTS = ((64, 8), (200, 16), (31, 4), (120, 12))
THREADS = 1
MIB = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """One engine process at rest, by smaps."""

    total_bytes: int
    model_files_bytes: int
    """Of files in the folder of prepared models and of the original they were made from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightRun:
    form: str
    parameter_bytes: int
    idle_bytes: int
    """memplan's own figure."""
    weights_resident_bytes: int
    weight_files_resident_bytes: int
    load_peak_bytes: int
    before: Resident
    after: Resident
    """Once requests have run, so that every weight was used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KvRun:
    form: str
    block_tokens: int
    formula_bytes: int
    """Of one token."""
    memplan_bytes: int
    """The same, as the engine says it."""
    grown_bytes: int
    """Of the pool's mapping, by ``KV_TOKENS`` tokens."""


def settings_of(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "device": "cpu",
        "threads": THREADS,
        "max_kv_tokens": 4096,
        "context_tokens": 4096,
        **changes,
    }


def weight_run(form: str) -> WeightRun:
    def resident(facts: EngineFacts) -> Resident:
        mappings = mappings_of(facts.pids[0])
        return Resident(
            total_bytes=sum(one.resident_bytes for one in mappings),
            model_files_bytes=sum(
                one.resident_bytes
                for one in mappings
                if one.path.endswith((".safetensors", ".gguf"))
            ),
        )

    served = serve(settings_of(FORMS[form]), plain_requests(REQUESTS), watch=resident)
    idle = served.facts.idle
    before, after = served.watched
    return WeightRun(
        form=form,
        parameter_bytes=served.facts.weights_bytes,
        idle_bytes=idle["host.rss"],
        weights_resident_bytes=idle["engine.weights_resident"],
        weight_files_resident_bytes=idle["engine.weight_files_resident"],
        load_peak_bytes=served.facts.load_peak["host.hwm"],
        before=before,
        after=after,
    )


def kv_run(form: str, block_tokens: int) -> KvRun:
    """The blocks of a request that has ended stay resident, because they are kept for who begins alike:
    so the pool can be read with nothing in flight."""
    settings = settings_of(
        {"weights": "bf16", "kv": form, "block_tokens": block_tokens, "prefix_sharing": "kept"}
    )
    config = json.loads((prepared_folder(deployment(settings)) / "config.json").read_text())
    head_bytes = vector_bytes(form, head_dim(config))
    formula = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_bytes

    def pool(facts: EngineFacts) -> int:
        blocks = facts.kv_pool_tokens // block_tokens
        sizes = {blocks * -(-formula * block_tokens // 4096) * 4096}
        found: list[Mapped] = [
            one for one in mappings_of(facts.pids[0]) if not one.path and one.size_bytes in sizes
        ]
        if len(found) != 1:
            raise SystemExit(f"{len(found)} mappings of the pool's size, expected one")
        return found[0].resident_bytes

    served = serve(settings, plain_requests([(KV_TOKENS, 1)]), watch=pool)
    before, after = served.watched
    return KvRun(
        form=form,
        block_tokens=block_tokens,
        formula_bytes=formula,
        memplan_bytes=served.facts.kv_bytes_per_token,
        grown_bytes=after - before,
    )


def vector_bytes(form: str, dim: int) -> int:
    """Of one head's key or value of one token."""
    match form:
        case "bf16":
            return 2 * dim
        case "int8":
            return dim + dim // 32 * 4  # groups of 32, each with an fp16 scale and midpoint
        case _:
            return dim // 2 + dim // 32 * 4  # groups of 32, each with an fp16 scale and minimum


def head_dim(config: Mapping[str, Any]) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


# --- result -------------------------------------------------------------------------------------


def weight_row(form: str, runs: Sequence[WeightRun], base: Sequence[WeightRun]) -> dict[str, Any]:
    mine = [run for run in runs if run.form == form]
    total = median(run.after.total_bytes for run in mine)
    base_total = median(run.after.total_bytes for run in base)
    base_weights = base[0].parameter_bytes
    saved = (base_total - total) / base_weights
    return {
        "form": form,
        "runs": len(mine),
        "parameter_mib": round(mine[0].parameter_bytes / MIB, 1),
        "resident_mib": round(total / MIB, 1),
        "resident_at_idle_by_memplan_mib": round(median(r.idle_bytes for r in mine) / MIB, 1),
        "resident_at_idle_by_smaps_mib": round(median(r.before.total_bytes for r in mine) / MIB, 1),
        "model_files_mib": round(median(r.after.model_files_bytes for r in mine) / MIB, 1),
        "weights_by_memplan_mib": round(median(r.weights_resident_bytes for r in mine) / MIB, 1),
        "load_peak_mib": round(median(r.load_peak_bytes for r in mine) / MIB, 1),
        "less_than_bf16_over_bf16_weights_ratio": round(saved, 4),
    }


def kv_row(run: KvRun, base_bytes: int) -> dict[str, Any]:
    grown = run.grown_bytes / KV_TOKENS
    return {
        **asdict(run),
        "grown_bytes_a_token": grown,
        "is_formula_to_the_byte": grown == run.formula_bytes == run.memplan_bytes,
        "formula_over_bf16_ratio": run.formula_bytes / base_bytes,
        "grown_over_formula_ratio": grown / run.formula_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=argparse.FileType("w"), help="JSON file to write")
    parser.add_argument(
        "--runs", type=int, default=3, help="fresh processes of each form of weights"
    )
    parser.add_argument("--trial", action="store_true", help="bf16 and int4 once, and KV in int8")
    arguments = parser.parse_args()
    began_s = time.monotonic()
    forms, kv_forms, run_count = list(FORMS), list(KV_FORMS), arguments.runs
    if arguments.trial:
        forms, kv_forms, run_count = ["bf16", "int4"], ["bf16", "int8"], 1
    runs = [weight_run(form) for _ in range(run_count) for form in forms]
    base = [run for run in runs if run.form == "bf16"]
    weights = [weight_row(form, runs, base) for form in forms]
    for row in weights:
        print(json.dumps(row), flush=True)
    kv_runs = [kv_run(form, tokens) for tokens in BLOCK_TOKENS for form in kv_forms]
    kv = [kv_row(run, kv_runs[0].formula_bytes) for run in kv_runs]
    for kv_line in kv:
        print(json.dumps(kv_line), flush=True)
    saved = next(
        r["less_than_bf16_over_bf16_weights_ratio"] for r in weights if r["form"] == "int4"
    )
    claims = {
        "int4_saves_of_bf16_weights_ratio": saved,
        "int4_saves_at_least": CLAIM_RATIO,
        "int4_holds": saved >= CLAIM_RATIO,
        "kv_is_formula_to_the_byte": all(
            row["is_formula_to_the_byte"] for row in kv if row["block_tokens"] == EXACT_BLOCK_TOKENS
        ),
    }
    print(json.dumps(claims, indent=2))
    if arguments.out:
        document = {
            "schema": "memplan.benchmark.weights_and_kv/1",
            "model": "SmolLM2-135M-Instruct",
            "threads": THREADS,
            "weights": weights,
            "kv": kv,
            "claims": claims,
            "weight_runs": [asdict(run) for run in runs],
            "machine": machine_fields(),
            "took_s": time.monotonic() - began_s,
        }
        json.dump(document, arguments.out, indent=2)
        arguments.out.write("\n")


if __name__ == "__main__":
    main()
