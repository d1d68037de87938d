"""Computes one step with transformers' model code over our KV pool. One code path, CPU and CUDA."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from memplan.engines.allocator import trim_heap
from memplan.engines.composition import HostComposition
from memplan.engines.meter import DevicePeaks, TensorCounter
from memplan.engines.sequence import Row
from memplan.engines.torch.attention import NAME, PagedAttention
from memplan.engines.torch.cuda_memory import CudaMemory
from memplan.engines.torch.live_tensors import WEIGHTS, open_live_tensors
from memplan.engines.torch.load_mode import LOAD_MODES, copy_into_memory
from memplan.engines.torch.pool import KvPool
from memplan.pages import Area, PageMap, file_areas, give_back

_WATCHED_TOKENS = 32
"""Of a step: with fewer, next to no tensor is large enough to be told apart by its owner."""

COUNTED = "counted exactly by a hook on c10::alloc_cpu"

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class TorchRunner:
    """Weights from a prepared folder; greedy decoding; logits only where a token is due."""

    def __init__(self, settings: Mapping[str, Any], model_folder: str) -> None:
        if settings["threads"]:
            torch.set_num_threads(settings["threads"])
        self._settings = settings
        self._folder = Path(model_folder)
        self._tensors = open_live_tensors()
        self._device = torch.device(_device_of(settings["device"]))
        config = AutoConfig.from_pretrained(model_folder)
        text = config.get_text_config()
        self.version = f"torch {torch.__version__}, transformers {transformers.__version__}"
        self.device = "cpu" if self._device.type == "cpu" else f"cuda:{self._device.index or 0}"
        self.device_name = (
            None if self._device.type == "cpu" else torch.cuda.get_device_name(self._device)
        )
        self.vocab_tokens: int = text.vocab_size
        self.context_tokens: int = text.max_position_embeddings
        self._layer_count: int = text.num_hidden_layers
        heads: int = text.num_attention_heads
        self._kv_heads: int = getattr(text, "num_key_value_heads", None) or heads
        self._head_dim: int = getattr(text, "head_dim", None) or text.hidden_size // heads
        self._dtype = _DTYPES["fp32" if settings["weights"] == "fp32" else "bf16"]
        self._kv_dtype = self._dtype if settings["kv"] == "auto" else _DTYPES[settings["kv"]]
        # Keys and values of every layer: 2 · layers · kv_heads · head_dim · bytes
        # (transformers' DynamicCache holds exactly this many).
        self.kv_bytes_per_token = (
            2 * self._layer_count * self._kv_heads * self._head_dim * self._kv_dtype.itemsize
        )
        self.kv_is_reserved = self._device.type != "cpu"

    def load(self) -> None:
        if isinstance(self._tensors, str):
            self._load()
            return
        with self._tensors.owned_by(WEIGHTS):
            self._load()
        self._tensors.know_parts(self._model)

    def _load(self) -> None:
        AttentionInterface.register(NAME, self._attend)
        AttentionMaskInterface.register(NAME, _no_mask)
        model: Any = AutoModelForCausalLM.from_pretrained(
            self._folder, dtype=self._dtype, attn_implementation=NAME
        )
        model.eval()
        model.requires_grad_(False)
        if self._settings["weights"] == "int8":
            _quantize_int8(model)
            # The full-precision pages it was quantized from are clean file pages: without this
            # they stay resident, and int8 would save nothing.
            self._give_back_file_pages()
            # Quantizing leaves holes between the small tensors it made: 309 MiB of free heap for
            # a model of 156 MiB, measured, which would be charged to every replica for ever.
            trim_heap()
        if self._settings["load"] == "read":
            copy_into_memory(model, str(self._folder))
        self._model = model.to(self._device)
        self._storages = _storages(model)
        self.weights_bytes = sum(self._storages.values())
        self.weights_mapped_bytes = self._mapped(self._storages)

    def open_pool(self, blocks: int) -> None:
        block_tokens = self._settings["block_tokens"]
        self._pool = KvPool(
            blocks=blocks,
            block_tokens=block_tokens,
            layer_count=self._layer_count,
            kv_heads=self._kv_heads,
            head_dim=self._head_dim,
            dtype=self._kv_dtype,
            device=self._device,
        )
        self._attention = PagedAttention(self._pool, block_tokens=block_tokens, device=self._device)

    @torch.no_grad()
    def run(self, rows: tuple[Row, ...]) -> list[int]:
        ids: list[int] = []
        positions: list[int] = []
        newest: list[int] = []
        for row in rows:
            span = range(row.start, row.start + row.count)
            ids.extend(row.sequence.token(position) for position in span)
            positions.extend(span)
            if row.wants_token:
                newest.append(len(ids) - 1)
        self._attention.prepare(rows)
        if not isinstance(self._tensors, str):
            self._tensors.watch(is_on=len(ids) >= _WATCHED_TOKENS)
        if not newest:  # a prompt chunk in the middle: no logits, but their shape must exist
            newest_tensor = torch.tensor([len(ids) - 1], device=self._device)
        else:
            newest_tensor = torch.tensor(newest, device=self._device)
        output = self._model(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            use_cache=False,
            logits_to_keep=newest_tensor,
        )
        chosen: list[int] = output.logits[0].argmax(dim=-1).tolist()
        return chosen[: len(newest)]

    def release(self, blocks: tuple[int, ...]) -> None:
        self._pool.release(blocks)

    def device_peaks(self) -> DevicePeaks | None:
        if self._device.type == "cpu":
            if self._settings["cuda_snapshot"]:
                raise RuntimeError(
                    "settings.cuda_snapshot is on, and torch sees no CUDA device here"
                )
            return None
        snapshot = self._settings["cuda_snapshot"]
        return CudaMemory(self._device, Path(snapshot) if snapshot else None).take

    def tensors(self) -> TensorCounter | None:
        return None if isinstance(self._tensors, str) else self._tensors

    def composition(self) -> HostComposition:
        return HostComposition(
            pool=self._pool.address_range,
            interpreter_bytes=None
            if isinstance(self._tensors, str)
            else self._tensors.interpreter_bytes,
        )

    def weights_resident(self) -> Mapping[str, int]:
        pages = PageMap()
        mapped = file_areas(str(self._folder))
        on_host = self._storages if self._device.type == "cpu" else {}
        resident = {
            address: min(size, pages.resident_bytes(address, address + size))
            for address, size in on_host.items()
        }
        in_files = sum(size for address, size in resident.items() if _within(address, mapped))
        return {
            "engine.weight_files_resident": sum(
                pages.resident_bytes(area.start, area.end) for area in mapped
            ),
            "engine.weights_resident": sum(resident.values()),
            "engine.weights_resident_mapped": in_files,
            "engine.weights_resident_heap": sum(resident.values()) - in_files,
        }

    def settings(self) -> Mapping[str, str]:
        return {
            "weights": self._settings["weights"],
            "compute_dtype": str(self._dtype).removeprefix("torch."),
            "kv_dtype": str(self._kv_dtype).removeprefix("torch."),
            "load_mode": LOAD_MODES[self._settings["load"]],
            "live_tensors": self._tensors if isinstance(self._tensors, str) else COUNTED,
            "threads": str(torch.get_num_threads()),
            "model_folder": self._folder.name,
            "ld_preload": " ".join(Path(p).name for p in os.environ.get("LD_PRELOAD", "").split()),
        }

    # --- steps -----------------------------------------------------------------------------

    def _attend(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return self._attention.attend(*args, **kwargs)

    def _mapped(self, storages: Mapping[int, int]) -> int:
        mapped = file_areas(str(self._folder))
        return sum(size for address, size in storages.items() if _within(address, mapped))

    def _give_back_file_pages(self) -> None:
        for area in file_areas(str(self._folder)):
            give_back(area.start, area.size_bytes)


def _device_of(setting: str) -> str:
    if setting == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if setting == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("settings.device is cuda, and torch sees no CUDA device here")
    return "cuda:0" if setting == "cuda" else setting


def _no_mask(*_: Any, **__: Any) -> None:
    """The paged attention makes its own masks."""
    return


def _quantize_int8(model: torch.nn.Module) -> None:
    """Every linear layer but the head (often tied to the embedding), one module at a time."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def is_inner_linear(module: torch.nn.Module, name: str) -> bool:
        return isinstance(module, torch.nn.Linear) and not re.search(r"(^|\.)lm_head$", name)

    quantize_(model, Int8WeightOnlyConfig(version=2), filter_fn=is_inner_linear)


def _storages(model: torch.nn.Module) -> dict[int, int]:
    """Address → bytes of every distinct tensor that holds weights, quantized ones taken apart."""
    found: dict[int, int] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        for part in _plain(tensor):
            found[part.data_ptr()] = part.numel() * part.element_size()
    return found


def _plain(tensor: torch.Tensor) -> list[torch.Tensor]:
    """A quantized tensor is a wrapper; its bytes are in the tensors that it is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return [tensor]
    names, _ = flatten()
    return [part for name in names for part in _plain(getattr(tensor, name))]


def _within(address: int, areas: tuple[Area, ...]) -> bool:
    return any(area.start <= address < area.end for area in areas)
