"""No policy changes an answer: in fp32 the real model says the same token by token as transformers'
generate, however requests are batched, cut, shared, preempted and moved."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memplan.engines.policy import open_scheduler, pool_blocks
from memplan.engines.scheduler import Scheduler
from memplan.engines.sequence import Sequence
from memplan.specs import Settings

pytestmark = [
    pytest.mark.live,
    # torch and transformers warn about their own internals while they are imported.
    pytest.mark.filterwarnings("default"),
]
BLOCK_TOKENS = 4
REQUESTS = 50
ARRIVALS = 17
"""So many come before each of the first steps, so that prompts are read while others are answered."""
LARGE, SMALL = 800, 72
"""KV tokens of a pool that has room for all that may run, and of one that has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    prompt: list[int]
    output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    answers: list[list[int]]
    sequences: list[Sequence]
    cut_prompts: int
    """Prompts that were read in more than one step."""
    most_running: int
    most_kept: int
    was_static: bool
    """A request's blocks were still held after it had ended."""


def requests() -> list[Asked]:
    """50, of 1 to 45 prompt tokens: some alone, some that begin alike at the end of a block or inside
    one, some that are the same."""
    draw = random.Random(9)

    def words(count: int) -> list[int]:
        return [draw.randrange(20, 49_000) for _ in range(count)]

    at_a_border, inside = words(3 * BLOCK_TOKENS), words(4 * BLOCK_TOKENS + 2)
    prompts = [words(draw.randint(1, 12)) for _ in range(20)]
    prompts += [at_a_border + words(draw.randint(1, 5)) for _ in range(14)]
    prompts += [inside + words(draw.randint(1, 5)) for _ in range(10)]
    prompts += [words(45), words(20), words(20)]
    prompts += [list(prompt) for prompt in prompts[-3:]]
    draw.shuffle(prompts)
    lengths = [1, 2] * 22 + [3] + [12] * 5
    draw.shuffle(lengths)
    return [
        Asked(prompt=prompt, output_tokens=output)
        for prompt, output in zip(prompts, lengths, strict=True)
    ]


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    return requests()


@pytest.fixture(scope="module")
def expected(fp32_folder: Path, asked: list[Asked]) -> list[list[int]]:
    """transformers' own answers, one request at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)  # as the engine below: two threads on cores that others use are slower
    model = AutoModelForCausalLM.from_pretrained(fp32_folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    answers = []
    for one in asked:
        prompt = torch.tensor([one.prompt])
        generated = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=one.output_tokens,
            do_sample=False,
        )
        answers.append(generated[0, len(one.prompt) :].tolist())
    return answers


Serve = Callable[..., Served]


@pytest.fixture(scope="module")
def serve(
    fp32_folder: Path, asked: list[Asked], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serve]:
    """Answers all requests under these settings, with one model for all of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from memplan.engines.torch.runner import TorchRunner

        offload_file = tmp_path_factory.mktemp("tier") / "offload"
        plain = {"weights": "fp32", "device": "cpu", "threads": 1, "block_tokens": BLOCK_TOKENS}
        plain |= {"max_requests": 16, "max_batch_tokens": 64, "max_kv_tokens": LARGE}
        told = Settings.model_validate({**plain, "offload": "disk", "prefix_sharing": "kept"})
        config = {**told.model_dump(mode="json"), "offload_file": str(offload_file)}
        runner = TorchRunner({**config, "cuda_snapshot": None}, str(fp32_folder))
        runner.load()

    def served(**changes: Any) -> Served:
        settings = Settings.model_validate({**plain, **changes}).model_dump(mode="json")
        offload_bytes = 2**25 if settings["offload"] == "disk" else 0
        slots = runner.open_pool(pool_blocks(settings), offload_bytes=offload_bytes)
        scheduler = open_scheduler(
            settings,
            context_tokens=runner.context_tokens,
            block_bytes=runner.block_bytes,
            class_bytes={},
            slots=slots,
        )
        return run(runner, scheduler, asked)

    yield served


def run(runner: Any, scheduler: Scheduler, asked: list[Asked]) -> Served:
    """As the stepper runs them, in virtual time: 50 ms a step."""
    sequences = [
        Sequence(request_id=str(number), prompt=one.prompt, output_tokens=one.output_tokens)
        for number, one in enumerate(asked)
    ]
    pending = list(sequences)
    reads: dict[str, int] = {}
    now_s, most_running, most_kept, was_static = 0.0, 0, 0, False
    while pending or scheduler.has_work:
        arrived, pending = pending[:ARRIVALS], pending[ARRIVALS:]
        for sequence in arrived:
            assert scheduler.submit(sequence, now_s) is None
        scheduler.admit(now_s)
        now_s += 0.05
        if not scheduler.running:
            continue
        rows = scheduler.next_rows(now_s)
        runner.move(scheduler.take_moves())
        runner.release(scheduler.book.take_freed())
        scheduler.commit(rows, runner.run(rows))
        for row in rows:
            if not row.is_decode and not row.sequence.preemptions:
                reads[row.sequence.request_id] = reads.get(row.sequence.request_id, 0) + 1
        most_running = max(most_running, len(scheduler.running))
        ended, freed = scheduler.retire()
        most_kept = max(most_kept, scheduler.book.kept)
        was_static |= any(one.blocks for one in ended)
        runner.release(freed)
    assert scheduler.book.held == 0
    return Served(
        answers=[list(one.output) for one in sequences],
        sequences=sequences,
        cut_prompts=sum(count > 1 for count in reads.values()),
        most_running=most_running,
        most_kept=most_kept,
        was_static=was_static,
    )


def preemptions(served: Served) -> int:
    return sum(one.preemptions for one in served.sequences)


def pulled_blocks(served: Served) -> int:
    return sum(one.pulled_blocks for one in served.sequences)


def shared_tokens(served: Served) -> int:
    return sum(one.shared_tokens for one in served.sequences)


def test_continuous_batches_of_cut_prompts(serve: Serve, expected: list[list[int]]) -> None:
    served = serve()
    assert served.answers == expected
    assert len(expected) == REQUESTS
    assert served.most_running == 16
    assert served.cut_prompts > 5
    assert (preemptions(served), shared_tokens(served)) == (0, 0)


def test_whole_prompts(serve: Serve, expected: list[list[int]]) -> None:
    served = serve(chunk_prompts=False)
    assert served.answers == expected
    assert served.cut_prompts == 0


def test_a_static_batch(serve: Serve, expected: list[list[int]]) -> None:
    served = serve(batching="static", batch_wait="100ms")
    assert served.answers == expected
    assert served.was_static


@pytest.mark.parametrize("batching", ["dynamic", "micro"])
def test_other_batches(serve: Serve, expected: list[list[int]], batching: str) -> None:
    served = serve(batching=batching, batch_prompt_tokens=48)
    assert served.answers == expected
    assert served.most_running > 1
    assert not served.was_static


def test_a_small_pool_whose_requests_are_computed_again(
    serve: Serve, expected: list[list[int]]
) -> None:
    served = serve(max_kv_tokens=SMALL, kv_reserve="prompt")
    assert served.answers == expected
    assert preemptions(served) > 0


def test_a_small_pool_whose_requests_are_moved_to_disk_and_back(
    serve: Serve, expected: list[list[int]]
) -> None:
    served = serve(max_kv_tokens=SMALL, kv_reserve="prompt", preempt="swap", offload="disk")
    assert served.answers == expected
    assert preemptions(served) > 0
    assert pulled_blocks(served) > 0


def test_prefixes_shared_while_others_run(serve: Serve, expected: list[list[int]]) -> None:
    served = serve(prefix_sharing="running")
    assert served.answers == expected
    assert shared_tokens(served) > 50
    assert any(one.shared_tokens % BLOCK_TOKENS for one in served.sequences), "a head was copied"
    assert served.most_kept == 0


def test_prefixes_that_are_kept(serve: Serve, expected: list[list[int]]) -> None:
    served = serve(prefix_sharing="kept")
    assert served.answers == expected
    # Of 25 prompts that begin alike all but the first of each kind find their beginning there.
    assert shared_tokens(served) > 200
    assert served.most_kept > 10


def test_prefixes_that_are_kept_on_disk(serve: Serve, expected: list[list[int]]) -> None:
    served = serve(prefix_sharing="kept", offload="disk", max_kv_tokens=SMALL)
    assert served.answers == expected
    assert pulled_blocks(served) > 0


def test_all_of_it_at_once(serve: Serve, expected: list[list[int]]) -> None:
    served = serve(
        max_kv_tokens=SMALL,
        kv_reserve="prompt",
        preempt="swap",
        offload="disk",
        prefix_sharing="kept",
        batching="micro",
        batch_prompt_tokens=40,
        lanes=[{"up_to_tokens": 16, "max_requests": 8}, {}],
    )
    assert served.answers == expected
    assert preemptions(served) > 0
    assert shared_tokens(served) > 100
