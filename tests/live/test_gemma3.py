"""Gemma 3 with its own weights, where they are installed: sliding windows beside full attention."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from memplan.builtin import builtin_path
from memplan.engines.scheduler import Scheduler
from memplan.engines.sequence import Sequence
from memplan.errors import MachineError
from memplan.specs import Deployment, load_deployment

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def gemma3() -> Deployment:
    base = load_deployment(builtin_path("gemma3.yaml"))
    deployment = replace(base, settings=base.settings.model_copy(update={"weights": "fp32"}))
    try:
        deployment.model_file()
    except MachineError as error:
        pytest.skip(error.message)
    return deployment


def test_tokens_behind_the_window_equal_those_of_transformers_generation(
    gemma3: Deployment,
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from memplan.engines.torch.prepare import prepared_folder
    from memplan.engines.torch.runner import TorchRunner

    folder = prepared_folder(gemma3)
    settings = gemma3.settings.model_dump(mode="json")
    opened = TorchRunner({**settings, "device": "cpu", "threads": 1}, str(folder))
    opened.load()
    opened.open_pool(128)
    scheduler = Scheduler(
        pool_blocks=128, block_tokens=16, context_tokens=2048, max_requests=4, max_batch_tokens=256
    )
    draw = random.Random(1)
    asked = [
        Sequence(
            request_id=str(count),
            prompt=[draw.randrange(1000, 200_000) for _ in range(count)],
            output_tokens=12,
        )
        for count in (40, 700)
    ]
    for sequence in asked:
        scheduler.submit(sequence)
    while scheduler.has_work:
        scheduler.admit()
        rows = scheduler.next_rows()
        scheduler.commit(rows, opened.run(rows))
        opened.release(scheduler.retire()[1])

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    assert max(len(sequence.prompt) for sequence in asked) > model.config.sliding_window
    for sequence in asked:
        prompt = torch.tensor([sequence.prompt])
        generated = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False
        )
        assert list(sequence.output) == generated[0, len(sequence.prompt) :].tolist()
