"""Model code of other shapes, with random weights: good for tokens and bytes, never for quality."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memplan.cli import run
from memplan.engines.scheduler import Scheduler
from memplan.engines.sequence import Sequence
from memplan.recording import read_run

pytestmark = [pytest.mark.live, pytest.mark.filterwarnings("default")]

COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}


def saved(name: str, folder: Path, **changed: Any) -> Path:
    """A model of that transformers config class with seeded random weights, saved in fp32."""
    import torch
    import transformers

    config = getattr(transformers, name)(**{**COMMON, **changed})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ("LlamaConfig", {}),
        ("Qwen3Config", {"head_dim": 32}),
        # Every second layer looks back 16 tokens only.
        ("Gemma3TextConfig", {"head_dim": 16, "sliding_window": 16, "sliding_window_pattern": 2}),
    ],
)
def test_tokens_equal_those_of_transformers_generation(
    config: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from memplan.engines.torch.runner import TorchRunner

    folder = saved(config, tmp_path / "model", **changed)
    settings = {
        "device": "cpu",
        "weights": "fp32",
        "kv": "auto",
        "load": "mapped",
        "weights_by_module": {},
        "resident_layers": None,
        "threads": 1,
        "block_tokens": 4,
    }
    opened = TorchRunner(settings, str(folder))
    opened.load()
    opened.open_pool(128)
    scheduler = Scheduler(
        pool_blocks=128, block_tokens=4, context_tokens=512, max_requests=4, max_batch_tokens=24
    )
    asked = [
        Sequence(request_id=str(n), prompt=[3 + (7 * i) % 120 for i in range(n)], output_tokens=12)
        for n in (5, 40, 63)
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
    for sequence in asked:
        prompt = torch.tensor([sequence.prompt])
        generated = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False
        )
        assert list(sequence.output) == generated[0, len(sequence.prompt) :].tolist()


def test_a_hugging_face_folder_is_replayed_through_the_cli(tmp_path: Path) -> None:
    saved("LlamaConfig", tmp_path / "model")
    (tmp_path / "model.yaml").write_text(
        "memplan: 1\nname: tiny\nengine: torch\nmodel: {path: model}\n"
        "settings: {weights: bf16, max_kv_tokens: 1024, max_requests: 4, threads: 1}\n"
    )
    trace = tmp_path / "trace.jsonl"
    lines = [
        json.dumps({"timestamp": i * 20, "input_length": 30 + i, "output_length": 3})
        for i in range(12)
    ]
    trace.write_text("\n".join(lines))
    assert run(["replay", str(trace), "--out", str(tmp_path / "run")]) == 0
    recording = read_run(tmp_path / "run")
    assert {o.outcome for o in recording.outcomes.values()} == {"completed"}
    # 2 (key, value) x 4 layers x 2 heads x 16 elements x 2 bytes
    assert recording.engines[0].kv_bytes_per_token == 2 * 4 * 2 * 16 * 2
    assert recording.engines[0].settings["live_tensors"].startswith("counted")
    assert recording.engines[0].weights_mapped_bytes > 0


def test_a_folder_that_transformers_cannot_load_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "no-such-model"}')
    (tmp_path / "model.yaml").write_text(
        "memplan: 1\nname: odd\nengine: torch\nmodel: {path: model}\n"
    )
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 30, "output_length": 3}\n')
    assert run(["replay", str(trace), "--out", str(tmp_path / "run")]) == 4
    said = capsys.readouterr().err
    assert "cannot load this model" in said
    assert "Traceback" not in said
