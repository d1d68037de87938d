"""Random LoRA adapters of real shape, as PEFT would save them, and models with one merged in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def write_adapter(
    folder: Path,
    model: Any,
    *,
    seed: int,
    rank: int = 8,
    alpha: int = 16,
    targets: Sequence[str] = ATTENTION,
    size: float = 0.3,
    dtype: str = "float32",
    **config: Any,
) -> Path:
    """An adapter for every layer of ``model``: what it adds is about ``size`` of what is there."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if not name.endswith(tuple(targets)):
            continue
        outputs, inputs = module.weight.shape
        down = torch.randn(rank, inputs) / rank**0.5
        up = torch.randn(outputs, rank) * float(module.weight.detach().std()) * size * rank / alpha
        for side, matrix in (("A", down), ("B", up)):
            tensors[f"base_model.model.{name}.lora_{side}.weight"] = matrix.to(
                getattr(torch, dtype)
            ).contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    written = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({target.rpartition(".")[2] for target in targets}),
        "bias": "none",
        "modules_to_save": None,
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(written))
    return folder


def merge(model: Any, folder: Path) -> None:
    """Adds an adapter's product to the weights themselves."""
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    for key, down in tensors.items():
        if ".lora_A." in key:
            up = tensors[key.replace(".lora_A.", ".lora_B.")]
            name = key.removeprefix("base_model.model.").partition(".lora_")[0]
            weight = model.get_submodule(name).weight
            weight.data += config["lora_alpha"] / config["r"] * (up.float() @ down.float())
