"""How much traffic a KV pool takes: chosen on one half hour of the Azure code trace, tried on the other.

The pool holds `--pool-gib` of a Llama-3-8B's KV (131,072 bytes a token: 2 x 32 layers x 8 heads x 128 x
2 bytes). A token takes `--token-ms`, whoever else runs, so that nothing but memory limits the traffic; a
second law, of one accelerator, is beside it. Each direction: fit on one half, tested on the other.

Rules that admit by tokens are given a backlog, the whole half at once: what they complete a second is
their capacity, and their overflow is the share of time in which what is held is more than the pool. Each
request is admitted for its prompt, which is known, and for so many output tokens as the rule says:

- memplan: the smallest quantile of the outputs of the half that it was fitted on, which there never
  overflowed in any of the `PARTS` contiguous parts of it, and one rank of `QUANTILES` more: the margin.
  It is tried on the other half in `--orders` random orders of blocks of `BLOCK` requests too.
- slots: the longest context for each. VPA-like: p90 of requests x 1.15. KRR-like: the largest x 1.15.
- mean: as many as the mean request allows.
- Poisson: as many as keep a normal sum of independent requests below the pool but for the target.
- oracle: knows every output, and admits, in order of arrival, whoever still fits at each moment until
  all have ended (the future peak of Gong et al., ASPLOS 2025, with true lengths).

Rules without admission choose a rate of arrivals (thinned at random, `--seeds` times) whose overflow on
the half that they were fitted on is at the target; their oracle is that choice on the half that they are
tested on.

    python benchmarks/held_out_density.py azure_code.csv --out reports/benchmark_held_out_density.json
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from memplan.plan.node_memory import upper_bound
from memplan.plan.simulation import (
    NEVER,
    PS_PER_S,
    PlainReplica,
    PlainRequest,
    ReplicaRules,
    Served,
    StepLaw,
    Traffic,
)
from memplan.simulator import simulate

SEED = 20261127
KV_BYTES_PER_TOKEN = 2 * 32 * 8 * 128 * 2
BLOCK_TOKENS = 16
CONTEXT_TOKENS = 8192
TARGET = 1e-4
CLAIM_OF_ORACLE = 0.9
PARTS = 10
BLOCK = 50
QUANTILES = (0.5, 0.75, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999, 1.0)
Z = 3.719
"""Of the normal distribution, at 1 - 1e-4."""
NO_LIMIT = 10**9
Columns = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Arrivals in seconds from the start of the half, prompts, outputs."""
ACCELERATOR = StepLaw(
    step_ps=5_000_000_000, prompt_token_ps=40_000_000, decode_ps=10_000_000, kv_token_ps=40_000
)


def halves_of(trace: Path) -> tuple[Columns, Columns]:
    with trace.open() as file:
        rows = list(csv.DictReader(file))
    at = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    at_s = np.array(at) - at[0]
    prompts = np.array([int(row["ContextTokens"]) for row in rows])
    outputs = np.array([max(1, int(row["GeneratedTokens"])) for row in rows])
    middle_s = 1800.0
    first = at_s < middle_s
    return (
        (at_s[first], prompts[first], outputs[first]),
        (at_s[~first] - middle_s, prompts[~first], outputs[~first]),
    )


# --- rules that admit -----------------------------------------------------------------------------


class Setting:
    def __init__(self, pool_blocks: int, law: StepLaw, batch_tokens: int) -> None:
        self.pool_blocks, self.law, self.batch_tokens = pool_blocks, law, batch_tokens

    def rules(self, *, most: int = 4096, admitted_blocks: int | None = None) -> ReplicaRules:
        """Blocks may be held beyond the pool, so that what a rule lets in is seen; ``admitted_blocks``
        is what it admits for."""
        return ReplicaRules(
            pool_blocks=NO_LIMIT if admitted_blocks is None else admitted_blocks,
            block_tokens=BLOCK_TOKENS,
            max_requests=most,
            batch_tokens=self.batch_tokens,
            law=self.law,
            over_blocks=self.pool_blocks,
        )


def backlog(half: Columns, reserved: npt.NDArray[np.int64]) -> Traffic:
    _, prompts, outputs = half
    zero = np.zeros(len(prompts), dtype=np.int64)
    return Traffic(
        arrival_ps=zero,
        prompt_tokens=prompts,
        output_tokens=outputs,
        reserved_tokens=reserved,
        replica=zero,
    )


def measured(served: Served, count: int) -> dict[str, float]:
    """The end, when nobody waits any more, belongs to no backlog and is left out."""
    last_in_ps = int(served.admitted_ps.max())
    done = int(np.sum((served.end_ps != NEVER) & (served.end_ps <= last_in_ps)))
    held_ps = float(np.sum(np.minimum(served.end_ps, last_in_ps) - served.admitted_ps))
    return {
        "completed_per_s": done / (last_in_ps / PS_PER_S),
        "in_flight_mean": held_ps / last_in_ps,
        "overflow": float(served.over_ps[0] / served.last_ps[0]),
        "peak_of_pool": float(served.peak_blocks[0]),
        "requests": count,
    }


class ByTokens(PlainReplica):
    """Admits for reserved tokens within the pool, while blocks beyond it can be held and are counted."""

    def __init__(self, *case: Any, pool_blocks: int, knows: bool) -> None:
        super().__init__(*case)
        self.pool_blocks, self.knows = pool_blocks, knows

    def admit(self) -> None:
        while self.waiting and len(self.running) < self.rules.max_requests:
            if self.running and self.wanted(self.waiting[0]) > self.pool_blocks:
                break
            one = self.waiting.pop(0)
            self.running.append(one)
            if self.served.admitted_ps[one.at] == NEVER:
                self.served.admitted_ps[one.at] = self.now_ps

    def wanted(self, newcomer: PlainRequest) -> int:
        if not self.knows:
            return sum(self.claim(one) for one in [*self.running, newcomer])
        both = [*self.running, newcomer]
        # In so many steps from now each holds so many tokens more, and a prompt is read in the first.
        held = np.array([one.computed if one.is_decoding else one.known - 1 for one in both])
        left = np.array([one.output - one.out for one in both])
        ends = np.unique(left)
        still = left[None, :] >= ends[:, None]
        blocks = -(-(held[None, :] + ends[:, None]) // BLOCK_TOKENS)
        return int((still * blocks).sum(axis=1).max())


def by_tokens(half: Columns, allowed: int, setting: Setting, *, knows: bool = False) -> Served:
    """``allowed``: output tokens that each request is admitted for."""
    traffic = backlog(half, half[1] + allowed - 1)
    served = Served.empty(len(traffic), 1)
    replica = ByTokens(
        traffic, setting.rules(), served, 0, pool_blocks=setting.pool_blocks, knows=knows
    )
    replica.run(list(range(len(traffic))))
    return served


def by_slots(half: Columns, slots: int, setting: Setting) -> Served:
    traffic = backlog(half, np.zeros(len(half[0]), dtype=np.int64))
    return simulate(traffic, setting.rules(most=max(1, slots)), 1)


def part(half: Columns, at: int) -> Columns:
    here = slice(at * len(half[0]) // PARTS, (at + 1) * len(half[0]) // PARTS)
    return half[0][here], half[1][here], half[2][here]


def learned(half: Columns, setting: Setting) -> tuple[int, float]:
    """Output tokens to admit for, and the quantile that they are."""
    fits = len(QUANTILES) - 1
    for at, quantile in enumerate(QUANTILES):
        allowed = int(np.quantile(half[2], quantile, method="higher"))
        parts = [by_tokens(part(half, one), allowed, setting) for one in range(PARTS)]
        if not any(int(one.over_ps[0]) for one in parts):
            fits = at
            break
    quantile = QUANTILES[min(fits + 1, len(QUANTILES) - 1)]
    return int(np.quantile(half[2], quantile, method="higher")), quantile


def slots_of(half: Columns, setting: Setting) -> dict[str, int]:
    """By each rule that counts requests, from what the half shows of one request."""
    whole = half[1] + half[2] - 1
    pool = setting.pool_blocks * BLOCK_TOKENS
    mean, spread = float(whole.mean()), float(whole.std())
    # n requests hold n mean + z spread sqrt(n) but for the target: a quadratic in sqrt(n).
    root = (-Z * spread + math.sqrt((Z * spread) ** 2 + 4 * mean * pool)) / (2 * mean)
    return {
        "slots of the longest context": pool // CONTEXT_TOKENS,
        "KRR-like: largest request x 1.15": int(pool // (whole.max() * 1.15)),
        "VPA-like: p90 of requests x 1.15": int(pool // (np.quantile(whole, 0.9) * 1.15)),
        "Poisson: normal sum at the target": int(root * root),
        "mean request": int(pool // mean),
    }


# --- rates without admission ----------------------------------------------------------------------


def overflow_at(half: Columns, kept: float, setting: Setting, seeds: int) -> float:
    """Mean share of the half hour over the pool, where each request stays with this chance."""
    shares = []
    for seed in range(seeds):
        chance = np.random.default_rng((SEED, seed)).random(len(half[0]))
        stays = chance < kept
        if not stays.any():
            shares.append(0.0)
            continue
        traffic = Traffic(
            arrival_ps=(half[0][stays] * PS_PER_S).astype(np.int64),
            prompt_tokens=half[1][stays],
            output_tokens=half[2][stays],
            reserved_tokens=np.zeros(int(stays.sum()), dtype=np.int64),
            replica=np.zeros(int(stays.sum()), dtype=np.int64),
        )
        served = simulate(traffic, setting.rules(most=20_000), 1)
        shares.append(float(served.over_ps[0]) / (1800 * PS_PER_S))
    return float(np.mean(shares))


def rate_at(half: Columns, setting: Setting, seeds: int) -> float:
    """The largest share of the half's requests whose overflow is at most the target."""
    low, high = 0.0, 1.0
    if overflow_at(half, 1.0, setting, seeds) <= TARGET:
        return 1.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if overflow_at(half, middle, setting, seeds) <= TARGET else (low, middle)
        )
    return low


# --- both directions ------------------------------------------------------------------------------


def direction(
    fit: Columns, tested: Columns, setting: Setting, seeds: int, orders: int
) -> dict[str, Any]:
    count = len(tested[0])
    oracle = measured(by_tokens(tested, 0, setting, knows=True), count)
    allowed, quantile = learned(fit, setting)
    rows: dict[str, dict[str, float]] = {
        "oracle": oracle,
        "memplan": measured(by_tokens(tested, allowed, setting), count),
        "every output known, whole reserved": measured(known_whole(tested, setting), count),
    }
    for name, slots in slots_of(fit, setting).items():
        rows[name] = measured(by_slots(tested, slots, setting), count)
        rows[name]["slots"] = slots
    for row in rows.values():
        row["of_oracle"] = row["completed_per_s"] / oracle["completed_per_s"]
        row["peak_of_pool"] /= setting.pool_blocks
    others = [
        measured(by_tokens(shuffled(tested, seed), allowed, setting), count)["overflow"]
        for seed in range(orders)
    ]
    kept, best = rate_at(fit, setting, seeds), rate_at(tested, setting, seeds)
    per_s = len(tested[0]) / 1800
    return {
        "allowed_output_tokens": allowed,
        "quantile": quantile,
        "by_admission": rows,
        "by_rate": {
            "chosen_per_s": kept * len(fit[0]) / 1800,
            "oracle_per_s": best * per_s,
            "overflow": overflow_at(tested, min(1.0, kept * len(fit[0]) / count), setting, seeds),
            "of_oracle": kept * len(fit[0]) / (best * count),
        },
        "memplan_over_rate_oracle": rows["memplan"]["completed_per_s"] / (best * per_s),
        "overflow_upper_of_memplan": upper_bound(rows["memplan"]["overflow"], PARTS),
        "overflow_in_other_orders": {
            "orders": orders,
            "mean": float(np.mean(others)),
            "most": max(others),
            "without_any": sum(one == 0 for one in others),
        },
        "holds": rows["memplan"]["overflow"] <= TARGET
        and float(np.mean(others)) <= TARGET
        and rows["memplan"]["of_oracle"] >= CLAIM_OF_ORACLE,
    }


def shuffled(half: Columns, seed: int) -> Columns:
    """In blocks of `BLOCK` requests, so that what comes together stays together."""
    blocks = np.array_split(np.arange(len(half[0])), max(1, len(half[0]) // BLOCK))
    np.random.default_rng((SEED, seed)).shuffle(blocks)  # type: ignore[arg-type]
    order = np.concatenate(blocks)
    return half[0], half[1][order], half[2][order]


def known_whole(half: Columns, setting: Setting) -> Served:
    traffic = backlog(half, half[1] + half[2] - 1)
    return simulate(traffic, setting.rules(admitted_blocks=setting.pool_blocks), 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--pool-gib", type=float, default=8.0)
    parser.add_argument("--token-ms", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--orders", type=int, default=20, help="of the tested half, at random")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    blocks = int(asked.pool_gib * 2**30 // KV_BYTES_PER_TOKEN // BLOCK_TOKENS)
    fixed = StepLaw(
        step_ps=int(asked.token_ms * 1e9), prompt_token_ps=0, decode_ps=0, kv_token_ps=0
    )
    settings: dict[str, Callable[[], Setting]] = {
        "memory alone limits": lambda: Setting(blocks, fixed, NO_LIMIT),
        "one accelerator": lambda: Setting(blocks, ACCELERATOR, 2048),
    }
    first, second = halves_of(asked.trace)
    found: dict[str, Any] = {}
    for law, made in settings.items():
        found[law] = {
            "fit 0-30, tested 30-60": direction(first, second, made(), asked.seeds, asked.orders),
            "fit 30-60, tested 0-30": direction(second, first, made(), asked.seeds, asked.orders),
        }
        for name, one in found[law].items():
            print(
                f"{law}, {name}: {one['allowed_output_tokens']} output tokens (p{one['quantile']:.1%})"
            )
            for rule, row in one["by_admission"].items():
                print(
                    f"  {rule:38} {row['completed_per_s']:6.2f}/s {row['of_oracle']:6.1%} of oracle, "
                    f"overflow {row['overflow']:.2g}, peak {row['peak_of_pool']:.2f} of pool"
                )
            print(f"  in other orders: {one['overflow_in_other_orders']}")
            print(f"  by rate: {one['by_rate']}; memplan x {one['memplan_over_rate_oracle']:.2f}")
    result = {
        "benchmark": "held_out_density",
        "pool_blocks": blocks,
        "kv_bytes_per_token": KV_BYTES_PER_TOKEN,
        "target_overflow": TARGET,
        "requests": [len(first[0]), len(second[0])],
        "laws": found,
        "holds": all(one["holds"] for law in found.values() for one in law.values()),
    }
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=2) + "\n")
    return 0 if result["holds"] else 1


if __name__ == "__main__":
    sys.exit(main())
