"""Computes one step with transformers' model code over our KV pool. One code path, CPU and CUDA."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_utils import AttentionInterface

from memplan.engines.composition import HostComposition
from memplan.engines.lazy_parts import LazyParts
from memplan.engines.meter import DevicePeaks, TensorCounter
from memplan.engines.sequence import Move, Row
from memplan.engines.torch.adapter_files import read_adapters
from memplan.engines.torch.adapters import AdapterSet
from memplan.engines.torch.attention import NAME, PagedAttention
from memplan.engines.torch.cuda_memory import CudaMemory
from memplan.engines.torch.gather_buffers import GatherBuffers
from memplan.engines.torch.kv_format import kv_format
from memplan.engines.torch.layer_streaming import place, with_streaming
from memplan.engines.torch.live_tensors import WEIGHTS, open_live_tensors
from memplan.engines.torch.load_mode import LOAD_MODES, copy_into_memory
from memplan.engines.torch.pool import KvPool
from memplan.engines.torch.quantized_folder import DTYPES, load_model
from memplan.engines.torch.tier import DiskTier, HostTier, KvTier
from memplan.engines.torch.tokenizer import FolderTokenizer
from memplan.engines.torch.weight_forms import WeightPlan
from memplan.engines.torch.weights import Weights
from memplan.engines.torch.wide_products import tile_products, widen_products
from memplan.units import bytes_text

_WATCHED_TOKENS = 32
"""Of a step: with fewer, next to no tensor is large enough to be told apart by its owner."""

COUNTED = "counted exactly by a hook on c10::alloc_cpu"


class TorchRunner:
    """Weights from a prepared folder; greedy decoding; logits only where a token is due."""

    def __init__(self, settings: Mapping[str, Any], model_folder: str) -> None:
        if settings["threads"]:
            torch.set_num_threads(settings["threads"])
        self._settings = settings
        self._folder = Path(model_folder)
        self._tensors = open_live_tensors()
        self._log_probabilities: list[float] = []
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
        self._plan = WeightPlan.of_settings(settings)
        self._dtype = DTYPES[self._plan.compute]
        kv = str(self._dtype).removeprefix("torch.") if settings["kv"] == "auto" else settings["kv"]
        self._kv_format = kv_format(kv, self._head_dim)
        # Keys and values of every layer: 2 · layers · kv_heads · bytes of a head's vector
        # (transformers' DynamicCache holds exactly this many, of float types).
        row_bytes = self._kv_format.width * self._kv_format.storage.itemsize
        self.kv_bytes_per_token = 2 * self._layer_count * self._kv_heads * row_bytes
        self.kv_is_reserved = self._device.type != "cpu"
        self._adapters: AdapterSet | None = None
        self._buffers: GatherBuffers | None = None

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
        model = load_model(self._folder, self._plan, device=self._device.type, attention=NAME)
        if self._settings["load"] == "read":
            copy_into_memory(model, str(self._folder))
        self._widened = widen_products(model) if self._device.type == "cpu" else 0
        if self._device.type == "cpu":
            tile_products(model)
        self._model = model
        self._streaming = place(
            model,
            layer_count=self._layer_count,
            keep=self._settings["resident_layers"],
            device=self._device,
            folder=str(self._folder),
        )
        self._weights = Weights(model, self._folder, self._streaming)
        self.weights_bytes = self._weights.total_bytes
        self.weights_mapped_bytes = self._weights.mapped_bytes

    def open_pool(self, blocks: int, *, offload_bytes: int = 0) -> int:
        block_tokens = self._settings["block_tokens"]
        if self._settings.get("reuse_buffers") and self._device.type == "cpu":
            self._buffers = GatherBuffers()
        self._pool = KvPool(
            blocks=blocks,
            block_tokens=block_tokens,
            layer_count=self._layer_count,
            kv_heads=self._kv_heads,
            kv_format=self._kv_format,
            device=self._device,
            buffers=self._buffers,
        )
        self.block_bytes = self._pool.stride_bytes
        slots = offload_bytes // self.block_bytes
        if offload_bytes and not slots:
            raise RuntimeError(
                f"settings.offload_limit is {bytes_text(offload_bytes)}, less than one KV block of "
                f"{bytes_text(self.block_bytes)}"
            )
        self._tier = self._open_tier(slots) if slots else None
        self._attention = PagedAttention(self._pool, block_tokens=block_tokens, device=self._device)
        return slots

    def run(self, rows: tuple[Row, ...]) -> list[int]:
        newest: list[int] = []
        count = 0
        for row in rows:
            count += row.count
            if row.wants_token:
                newest.append(count - 1)
        # Of a prompt chunk in the middle no logits are wanted, but their shape must exist.
        logits = self.logits(rows, newest or [count - 1])
        chosen: list[int] = logits.argmax(dim=-1).tolist()
        if self._settings.get("confidence"):
            sure = logits.float().log_softmax(dim=-1).amax(dim=-1)
            self._log_probabilities = sure.tolist()[: len(newest)]
        return chosen[: len(newest)]

    def log_probabilities(self) -> list[float]:
        return self._log_probabilities

    @torch.no_grad()
    def logits(self, rows: tuple[Row, ...], wanted: list[int]) -> torch.Tensor:
        """``[wanted, vocabulary]``, behind the tokens at these places of the rows put end to end."""
        ids: list[int] = []
        positions: list[int] = []
        for row in rows:
            span = range(row.start, row.start + row.count)
            ids.extend(row.sequence.tokens(span.start, span.stop))
            positions.extend(span)
        self._attention.prepare(rows)
        if self._adapters is not None:
            self._adapters.begin_step(rows)
        if not isinstance(self._tensors, str):
            self._tensors.watch(is_on=len(ids) >= _WATCHED_TOKENS)
        output = self._model(
            input_ids=torch.tensor([ids], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            use_cache=False,
            logits_to_keep=torch.tensor(wanted, device=self._device),
        )
        if self._adapters is not None:
            self._adapters.end_step()
        found: torch.Tensor = output.logits[0]
        return found

    def move(self, moves: tuple[Move, ...]) -> None:
        self._pool.move(moves, self._tier)

    def release(self, blocks: tuple[int, ...]) -> None:
        self._pool.release(blocks)

    def device_peaks(self) -> DevicePeaks | None:
        if self._device.type == "cpu":
            if self._settings["cuda_snapshot"]:
                raise RuntimeError(
                    "settings.cuda_snapshot is on, and torch sees no CUDA device here"
                )
            return with_streaming(None, self._streaming)
        snapshot = self._settings["cuda_snapshot"]
        memory = CudaMemory(self._device, Path(snapshot) if snapshot else None)
        return with_streaming(memory.take, self._streaming)

    def tensors(self) -> TensorCounter | None:
        return None if isinstance(self._tensors, str) else self._tensors

    def lazy_parts(self) -> LazyParts:
        settings = self._settings
        if settings["adapters"]:
            self._adapters = AdapterSet(
                self._model,
                read_adapters(settings["adapters"]),
                most=settings["adapters_resident"],
                dtype=self._dtype,
                device=self._device,
            )
            self._adapters.start(settings["adapters_start"])
        tokenizer = None
        if settings["tokenizer"] != "never":
            tokenizer = FolderTokenizer(Path(settings["tokenizer_folder"]))
        return LazyParts(self._adapters, tokenizer, self._buffers)

    def composition(self) -> HostComposition:
        return HostComposition(
            pool=self._pool.address_range,
            interpreter_bytes=None
            if isinstance(self._tensors, str)
            else self._tensors.interpreter_bytes,
        )

    def weights_resident(self) -> Mapping[str, int]:
        return self._weights.resident()

    def settings(self) -> Mapping[str, str]:
        return {
            "weights": self._settings["weights"],
            **self._weights.settings(),
            "compute_dtype": str(self._dtype).removeprefix("torch."),
            **({"products": "16-bit weights, widened to fp32"} if self._widened else {}),
            "kv_format": self._kv_format.name,
            **({"adapters": self._adapters.text()} if self._adapters is not None else {}),
            **(
                {"reuse_buffers": "keys and values are gathered into memory that is kept"}
                if self._buffers is not None
                else {}
            ),
            **({"offload": self._tier.kind} if self._tier is not None else {}),
            "load_mode": LOAD_MODES[self._settings["load"]],
            "live_tensors": self._tensors if isinstance(self._tensors, str) else COUNTED,
            "threads": str(torch.get_num_threads()),
            "model_folder": self._folder.name,
            "ld_preload": " ".join(Path(p).name for p in os.environ.get("LD_PRELOAD", "").split()),
        }

    # --- steps -----------------------------------------------------------------------------

    def _open_tier(self, slots: int) -> KvTier:
        slot_bytes = self._pool.stride_bytes
        if self._settings["offload"] == "host":
            if self._device.type == "cpu":
                raise RuntimeError("settings.offload is host, and the KV pool is in host memory")
            return HostTier(slots=slots, slot_bytes=slot_bytes)
        return DiskTier(Path(self._settings["offload_file"]), slots=slots, slot_bytes=slot_bytes)

    def _attend(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return self._attention.attend(*args, **kwargs)


def _device_of(setting: str) -> str:
    if setting == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if setting == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("settings.device is cuda, and torch sees no CUDA device here")
    return "cuda:0" if setting == "cuda" else setting


def _no_mask(*_: Any, **__: Any) -> None:
    """The paged attention makes its own masks."""
    return
