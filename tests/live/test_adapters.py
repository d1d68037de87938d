"""LoRA adapters by request on the real model: the same tokens as merged weights, paged in and out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lora import ATTENTION, MLP, merge, write_adapter
from one_by_one import Told, serve

from memplan.engines.scheduler import Policy, Scheduler
from memplan.engines.sequence import Sequence
from memplan.errors import EngineError, InputError
from memplan.specs import Deployment

pytestmark = [
    pytest.mark.live,
    # torch and transformers warn about their own internals while they are imported.
    pytest.mark.filterwarnings("default"),
]
RANK, LAYERS, HIDDEN, KV, FP32 = 8, 30, 576, 192, 4
ATTENTION_BYTES = FP32 * RANK * LAYERS * (2 * (HIDDEN + HIDDEN) + 2 * (HIDDEN + KV))
"""Queries and output are square, keys and values narrower; a whole number of pages."""
OUTPUT_TOKENS = 8
Pair = dict[str, Path]


def loaded(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def adapters(fp32_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """One of the attention, one of all linear layers and of another rank."""
    model, folder = loaded(fp32_folder), tmp_path_factory.mktemp("adapters")
    return {
        "attention": write_adapter(folder / "a", model, seed=1, rank=RANK, targets=ATTENTION),
        "whole": write_adapter(
            folder / "b", model, seed=2, rank=4, targets=(*ATTENTION, *MLP), dtype="bfloat16"
        ),
    }


def opened(folder: Path, adapters: Pair, **changed: Any) -> Any:
    from memplan.engines.torch.runner import TorchRunner

    settings = {
        "device": "cpu",
        "weights": "fp32",
        "weights_by_module": {},
        "resident_layers": None,
        "kv": "auto",
        "load": "mapped",
        "threads": 1,
        "offload": "never",
        "block_tokens": 16,
        "adapters": {name: str(path) for name, path in adapters.items()},
        "adapters_resident": 2,
        "adapters_start": "cold",
        "tokenizer": "never",
        **changed,
    }
    runner = TorchRunner(settings, str(folder))
    runner.load()
    runner.open_pool(256)
    return runner


def served(runner: Any, asked: list[Sequence], *, most: int) -> list[dict[str, float]]:
    """Runs all of them together; what was loaded before each step that loaded something."""
    lazy = runner.lazy_parts()
    scheduler = Scheduler(
        pool_blocks=256,
        block_tokens=16,
        context_tokens=runner.context_tokens,
        max_requests=3,
        max_batch_tokens=100,
        policy=Policy(sharing="kept", adapters=most),
    )
    for sequence in asked:
        assert lazy.refusal(sequence) is None
        assert scheduler.submit(sequence) is None
    loads = []
    while scheduler.has_work:
        scheduler.admit()
        rows = scheduler.next_rows()
        runner.move(scheduler.take_moves())
        took = lazy.bring_adapters(rows, scheduler.running)
        loads += [dict(took)] if took else []
        scheduler.commit(rows, runner.run(rows))
        runner.release(scheduler.retire()[1])
    return loads


def mixed() -> list[Sequence]:
    """Two prompts that begin alike, each under every adapter and under none."""
    head = [20 + 7 * i % 4000 for i in range(64)]
    prompts = ([*head, 5, 6, 7], [*head, *range(300, 340)])
    return [
        Sequence(
            request_id=f"{name or 'none'}-{number}",
            prompt=prompt,
            output_tokens=OUTPUT_TOKENS,
            adapter=name,
        )
        for number, prompt in enumerate(prompts)
        for name in ("attention", "", "whole")
    ]


@pytest.mark.parametrize("most", [2, 1])
def test_fp32_tokens_equal_those_of_merged_weights(
    fp32_folder: Path, adapters: Pair, most: int
) -> None:
    """In one batch, and with a shared prefix that must not be shared between adapters."""
    import torch

    asked = mixed()
    loads = served(opened(fp32_folder, adapters, adapters_resident=most), asked, most=most)
    assert {name for one in loads for name in one} == {"attention", "whole"}
    answers: dict[str, set[tuple[int, ...]]] = {}
    for name in ("attention", "", "whole"):
        model = loaded(fp32_folder)
        if name:
            merge(model, adapters[name])
        for sequence in (one for one in asked if one.adapter == name):
            prompt = torch.tensor([list(sequence.prompt)])
            generated = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=OUTPUT_TOKENS,
                do_sample=False,
            )[0, len(sequence.prompt) :].tolist()
            assert list(sequence.output) == generated, sequence.request_id
            answers.setdefault(sequence.request_id[-1], set()).add(tuple(generated))
    assert {len(each) for each in answers.values()} == {3}, "each adapter changes the answer"
    shared = {one.request_id: one.shared_tokens for one in asked}
    assert max(shared.values()) >= 64, "requests of one adapter do share"


def test_a_quantized_layer_takes_an_adapter_too(smollm2: Deployment, adapters: Pair) -> None:
    from memplan.engines.torch.prepare import prepared_folder

    changed = {"weights": "int8"}
    folder = prepared_folder(replace(smollm2, settings=smollm2.settings.model_copy(update=changed)))
    asked = mixed()[:3]
    served(opened(folder, adapters, **changed), asked, most=2)
    assert len({tuple(one.output) for one in asked}) == 3


def test_an_adapter_that_does_not_fit_the_model_is_refused_in_words(
    fp32_folder: Path, tmp_path: Path
) -> None:
    import torch

    other = torch.nn.Module()
    other.q_proj = torch.nn.Linear(64, 64)
    model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict({"layers": other})})
    wrong = write_adapter(tmp_path / "wrong", model, seed=1, targets=("q_proj",))
    with pytest.raises(RuntimeError, match=r"wrong: the model has no model\.layers\.q_proj"):
        opened(fp32_folder, {"wrong": wrong}).lazy_parts()


def served_one_by_one(
    deployment: Deployment, adapters: Pair, names: list[str], log: Path, **changed: Any
) -> Told:
    """Each request with the adapter of its name."""
    return serve(
        deployment,
        [{"adapter": name} if name else {} for name in names],
        log,
        weights="fp32",
        adapters={name: str(path) for name, path in adapters.items()},
        **changed,
    )


def test_adapters_are_paged_in_at_first_use_and_out_for_another(
    smollm2: Deployment, adapters: Pair, tmp_path: Path
) -> None:
    names = ["", "attention", "attention", "whole", "attention", "other"]
    told = served_one_by_one(smollm2, adapters, names, tmp_path / "log", adapters_resident=1)
    assert [one.adapter or "" for one in told.records] == names
    loaded = [one.adapter_load_s > 0 for one in told.records]
    assert loaded == [False, True, False, True, True, False]
    assert (told.records[5].outcome, told.records[5].reason) == ("rejected", "unknown_adapter")
    assert told.facts.idle["engine.adapters"] == 0
    held = [one.gauges["engine.adapters"] for one in told.segments if one.in_flight]
    assert held[0] == 0
    assert {ATTENTION_BYTES, 0} < {*held}
    assert len({*held}) == 3, "none, the one, and in its place the other"


def test_hot_adapters_are_there_before_anybody_asks(
    smollm2: Deployment, adapters: Pair, tmp_path: Path
) -> None:
    told = served_one_by_one(
        smollm2, adapters, ["attention", "whole"], tmp_path / "log", adapters_start="hot"
    )
    assert [one.adapter_load_s for one in told.records] == [0, 0]
    assert told.facts.idle["engine.adapters"] > ATTENTION_BYTES
    assert "rank 8" in told.facts.settings["adapters"]


def test_a_faulty_adapter_is_told_before_the_engine_serves(
    smollm2: Deployment, tmp_path: Path
) -> None:
    import torch

    head = torch.nn.ModuleDict({"lm_head": torch.nn.Linear(HIDDEN, 49_152, bias=False)})
    folder = write_adapter(tmp_path / "head", head, seed=1, targets=("lm_head",))
    with pytest.raises(EngineError, match="head: lm_head is the head, expected a linear layer"):
        served_one_by_one(smollm2, {"head": folder}, [], tmp_path / "log")
    (folder / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(InputError, match="peft_type is IA3, expected LORA"):
        served_one_by_one(smollm2, {"head": folder}, [], tmp_path / "log")
