"""The torch engine against transformers' own generation and cache, with the real model."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest

from memplan.engines.scheduler import Scheduler
from memplan.engines.sequence import Sequence

pytestmark = [
    pytest.mark.live,
    # torch and transformers warn about their own internals while they are imported.
    pytest.mark.filterwarnings("default"),
]
SHAPES = ((5, 8), (130, 6), (333, 12), (40, 1), (17, 20), (250, 5))


def sequences() -> list[Sequence]:
    draw = random.Random(1)
    return [
        Sequence(
            request_id=str(number),
            prompt=[draw.randrange(20, 49000) for _ in range(prompt_tokens)],
            output_tokens=output_tokens,
        )
        for number, (prompt_tokens, output_tokens) in enumerate(SHAPES)
    ]


def runner(folder: Path, **changed: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from memplan.engines.torch.runner import TorchRunner

        settings = {
            "device": "cpu",
            "weights": "fp32",
            "kv": "auto",
            "load": "mapped",
            "threads": 1,
            "offload": "never",
            "weights_by_module": {},
            "resident_layers": None,
        }
        opened = TorchRunner({**settings, "block_tokens": 16, **changed}, str(folder))
        opened.load()
    opened.open_pool(512)
    return opened


def run_batched(opened: Any, asked: list[Sequence], *, max_batch_tokens: int) -> int:
    """Runs all of them together and returns the number of steps."""
    scheduler = Scheduler(
        pool_blocks=512,
        block_tokens=16,
        context_tokens=opened.context_tokens,
        max_requests=4,
        max_batch_tokens=max_batch_tokens,
    )
    for sequence in asked:
        assert scheduler.submit(sequence) is None
    steps = 0
    while scheduler.has_work:
        scheduler.admit()
        rows = scheduler.next_rows()
        scheduler.commit(rows, opened.run(rows))
        opened.release(scheduler.retire()[1])
        steps += 1
    return steps


def test_fp32_tokens_equal_those_of_one_by_one_generation(fp32_folder: Path) -> None:
    """Continuous batching, chunked prompts and paged KV change no token."""
    import torch
    from transformers import AutoModelForCausalLM

    asked = sequences()
    steps = run_batched(runner(fp32_folder), asked, max_batch_tokens=100)
    model = AutoModelForCausalLM.from_pretrained(fp32_folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    for sequence in asked:
        prompt = torch.tensor([sequence.prompt])
        generated = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=sequence.output_tokens,
            do_sample=False,
        )
        assert list(sequence.output) == generated[0, len(sequence.prompt) :].tolist()
    assert steps < sum(output for _, output in SHAPES), "requests really ran together"


def test_kv_bytes_per_token_equal_those_of_transformers_cache(bf16_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    opened = runner(bf16_folder, weights="bf16")
    model = AutoModelForCausalLM.from_pretrained(bf16_folder, dtype=torch.bfloat16)
    tokens = 64
    cache = model(torch.ones((1, tokens), dtype=torch.long), use_cache=True).past_key_values
    held = sum(
        part.numel() * part.element_size()
        for layer in cache.layers
        for part in (layer.keys, layer.values)
    )
    assert opened.kv_bytes_per_token * tokens == held


def test_weights_are_mapped(bf16_folder: Path) -> None:
    plain = runner(bf16_folder, weights="bf16")
    assert plain.weights_mapped_bytes > 0.99 * plain.weights_bytes


def test_a_freed_block_is_no_longer_resident(bf16_folder: Path) -> None:
    from memplan.procfs import ProcessMemory

    opened = runner(bf16_folder, weights="bf16")
    run_batched(opened, sequences()[:1], max_batch_tokens=512)
    with ProcessMemory("self") as memory:
        long = Sequence(request_id="long", prompt=[7] * 4000, output_tokens=2)
        before = memory.read()["host.rss"]
        scheduler = Scheduler(
            pool_blocks=512, block_tokens=16, context_tokens=8192, max_requests=1,
            max_batch_tokens=512,
        )  # fmt: skip
        scheduler.submit(long)
        scheduler.admit()
        while scheduler.has_work:
            rows = scheduler.next_rows()
            scheduler.commit(rows, opened.run(rows))
            _, freed = scheduler.retire()
            if freed:
                held = memory.read()["host.rss"]
                opened.release(freed)
        after = memory.read()["host.rss"]
    known = 251 * 16 * opened.kv_bytes_per_token
    assert held - after == pytest.approx(known, rel=0.02)
    assert held - before > 0.98 * known
