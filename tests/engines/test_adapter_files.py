"""What a PEFT folder may hold, and what is said of one that cannot be served; no torch is needed."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from memplan.engines.torch.adapter_files import read_adapters
from memplan.errors import InputError

PREFIX = "base_model.model.model.layers.0.self_attn"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}
TENSORS = {f"{PREFIX}.q_proj.lora_A.weight": [2, 6], f"{PREFIX}.q_proj.lora_B.weight": [4, 2]}


def written(
    folder: Path,
    tensors: dict[str, list[int]],
    *,
    dtype: str = "F32",
    cut: int = 0,
    **config: Any,
) -> dict[str, str]:
    """A folder of zeros; ``cut`` bytes short."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in tensors.items():
        size = 4 * shape[0] * shape[1]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(at)
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(data[: len(data) - cut])
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return {folder.name: str(folder)}


def faults_of(folders: dict[str, str], where: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        read_adapters(folders)
    head, *lines = caught.value.message.split("\n")
    assert head == f"settings.adapters: {len(lines)} fault{'s' if len(lines) > 1 else ''}"
    assert caught.value.hint
    return [line.strip().replace(f"{where}/", "") for line in lines]


def test_a_plain_lora_is_read_without_its_bytes(tmp_path: Path) -> None:
    (found,) = read_adapters(written(tmp_path / "sql", TENSORS))
    assert (found.name, found.rank, found.scale) == ("sql", 2, 4.0)
    ((module, (down, up)),) = found.matrices.items()
    assert module == "model.layers.0.self_attn.q_proj"
    assert (down.shape, up.shape, down.dtype) == ((2, 6), (4, 2), "F32")
    assert (down.end - down.begin, up.end - up.begin) == (48, 32)
    assert up.end == found.path.stat().st_size


def test_rank_stabilised_scaling_divides_by_the_root(tmp_path: Path) -> None:
    (found,) = read_adapters(written(tmp_path / "a", TENSORS, use_rslora=True))
    assert found.scale == pytest.approx(8 / 2**0.5)


FAULTS: dict[str, tuple[dict[str, list[int]], dict[str, Any]]] = {
    "peft_type is IA3, expected LORA": (TENSORS, {"peft_type": "IA3"}),
    "use_dora is true, which this engine does not compute": (TENSORS, {"use_dora": True}),
    'bias is "all", which this engine does not compute': (TENSORS, {"bias": "all"}),
    "lora_alpha is None, expected a number": (TENSORS, {"lora_alpha": None}),
    "model.layers.0.self_attn.q_proj has another rank than r 3": (TENSORS, {"r": 3}),
    "holds no tensors": ({}, {}),
    "model.layers.0.self_attn.q_proj has no lora_B": (
        {f"{PREFIX}.q_proj.lora_A.weight": [2, 6]},
        {},
    ),
    "base_model.model.model.embed_tokens.lora_embedding_A is no LoRA matrix": (
        {**TENSORS, "base_model.model.model.embed_tokens.lora_embedding_A": [2, 6]},
        {},
    ),
    "is F64, expected F32, F16, BF16": (TENSORS, {"dtype": "F64"}),
    "adapter_model.safetensors is cut off": (TENSORS, {"cut": 1}),
    "adapter_model.safetensors is no safetensors file": (TENSORS, {"cut": 300}),
}


@pytest.mark.parametrize(("text", "made"), FAULTS.items())
def test_what_cannot_be_served_is_told(
    tmp_path: Path, text: str, made: tuple[dict[str, list[int]], dict[str, Any]]
) -> None:
    tensors, changed = made
    (line,) = faults_of(written(tmp_path / "a", tensors, **changed), tmp_path)
    assert line.startswith("a: a: ")
    assert text in line


def test_the_faults_of_all_adapters_come_at_once(tmp_path: Path) -> None:
    folders = {
        **written(tmp_path / "a", TENSORS, use_dora=True, bias="all"),
        **written(tmp_path / "b", TENSORS),
        **written(tmp_path / "c", {}),
    }
    assert len(faults_of(folders, tmp_path)) == 3
