"""LoRA adapters as PEFT writes them to a folder: what is in one, read without torch and without bytes.

``adapter_config.json`` says how, ``adapter_model.safetensors`` holds two matrices for each linear layer.
Everything that would change the model in another way is refused, in words, before an engine starts.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memplan.errors import InputError

ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_LENGTH = struct.Struct("<Q")
_MOST_HEADER_BYTES = 100 << 20
"""The format's own limit."""
_TENSOR = re.compile(r"^base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight$")
_NOT_COMPUTED = {
    "use_dora": False,
    "fan_in_fan_out": False,
    "lora_bias": False,
    "bias": "none",
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
}
"""Keys of PEFT's config that change what an adapter computes, with the only value served here."""
_HINT = "save it with PEFT as a plain LoRA of linear layers; docs/model-yaml.md says which"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """Where a matrix lies in its file."""

    dtype: str
    shape: tuple[int, int]
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFile:
    """``matrices``: module → (A ``[r, inputs]``, B ``[outputs, r]``); what a module puts out grows by
    ``scale`` · B A x."""

    name: str
    path: Path
    rank: int
    scale: float
    matrices: Mapping[str, tuple[StoredTensor, StoredTensor]]


def read_adapters(folders: Mapping[str, str]) -> tuple[AdapterFile, ...]:
    """Raises InputError with the faults of all of them."""
    found, faults = [], []
    for name, folder in folders.items():
        try:
            found.append(_read(name, Path(folder)))
        except (OSError, ValueError, KeyError, TypeError) as error:
            faults += [f"{name}: {folder}: {text}" for text in _texts_of(error)]
    if faults:
        raise InputError.of_faults("settings.adapters", faults, hint=_HINT)
    return tuple(found)


class _FaultyAdapterError(ValueError):
    def __init__(self, texts: list[str]) -> None:
        super().__init__(texts)
        self.texts = texts


def _texts_of(error: Exception) -> list[str]:
    if isinstance(error, _FaultyAdapterError):
        return error.texts
    if isinstance(error, OSError):
        return [f"cannot be read: {error.strerror}"]
    return [f"is no adapter that PEFT wrote ({type(error).__name__}: {error})"]


def _read(name: str, folder: Path) -> AdapterFile:
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    path = folder / "adapter_model.safetensors"
    faults = list(_config_faults(config))
    tensors = _stored_tensors(path)
    matrices: dict[str, dict[str, StoredTensor]] = {}
    for key, tensor in tensors.items():
        match = _TENSOR.match(key)
        if match is None:
            faults.append(f"{key} is no LoRA matrix of a linear layer")
            continue
        matrices.setdefault(match[1], {})[match[2]] = tensor
    rank = config.get("r")
    for module, pair in matrices.items():
        missing = [f"lora_{side}" for side in "AB" if side not in pair]
        if missing:
            faults.append(f"{module} has no {missing[0]}")
        elif pair["A"].shape[0] != rank or pair["B"].shape[1] != rank:
            faults.append(f"{module} has another rank than r {rank} of adapter_config.json")
    if not tensors:
        faults.append("holds no tensors")
    if faults:
        raise _FaultyAdapterError(faults)
    return AdapterFile(
        name=name,
        path=path,
        rank=int(rank),
        scale=config["lora_alpha"] / (rank**0.5 if config.get("use_rslora") else rank),
        matrices={module: (pair["A"], pair["B"]) for module, pair in matrices.items()},
    )


def _config_faults(config: Mapping[str, Any]) -> list[str]:
    if config.get("peft_type") != "LORA":
        return [f"peft_type is {config.get('peft_type')}, expected LORA"]
    faults = []
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1:
        faults.append(f"r is {rank}, expected a whole number above 0")
    if not isinstance(alpha, int | float):
        faults.append(f"lora_alpha is {alpha}, expected a number")
    for key, plain in _NOT_COMPUTED.items():
        if config.get(key, plain) not in (plain, None, [], {}):
            faults.append(f"{key} is {json.dumps(config[key])}, which this engine does not compute")
    return faults


def _stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Of a safetensors file: a length of 8 bytes, a header of JSON, then the bytes of all tensors."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_LENGTH.size)
        length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else size
        if length > min(size, _MOST_HEADER_BYTES):
            raise _FaultyAdapterError(
                [f"{path.name} is no safetensors file, or is cut off in its header"]
            )
        header = json.loads(file.read(length))
    data = _LENGTH.size + length
    found = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = (data + offset for offset in entry["data_offsets"])
        if end > size:
            raise _FaultyAdapterError(
                [f"{path.name} is cut off: it has {size:,} bytes, {name} ends at {end:,}"]
            )
        shape, dtype = tuple(entry["shape"]), entry["dtype"]
        if dtype not in ITEM_BYTES:
            raise _FaultyAdapterError([f"{name} is {dtype}, expected {', '.join(ITEM_BYTES)}"])
        if len(shape) != 2 or shape[0] * shape[1] * ITEM_BYTES[dtype] != end - begin:
            raise _FaultyAdapterError([f"{name} has the shape {list(shape)}, expected a matrix"])
        found[name] = StoredTensor(dtype=dtype, shape=shape, begin=begin, end=end)
    return found
