"""A runner whose memory is known to the byte: it holds and touches what its script says, and sleeps.

It computes nothing. It exists so that what memplan reports can be held against a truth, in a real
process, through the same scheduler, worker and channel as the real engine.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import time
from collections.abc import Mapping
from typing import Any

from memplan.engines.composition import HostComposition
from memplan.engines.lazy_parts import LazyParts
from memplan.engines.meter import DevicePeaks, TensorCounter
from memplan.engines.sequence import Move, Row
from memplan.pages import PAGE_BYTES

_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class BallastRunner:
    """Weights, runtime, KV blocks and activations as anonymous memory, resident from first touch."""

    def __init__(self, settings: Mapping[str, Any], script: Mapping[str, Any]) -> None:
        self.version = "1"
        self.device = "cpu"
        self.device_name: str | None = None
        self.vocab_tokens: int = script["vocab_tokens"]
        self.context_tokens: int = script["context_tokens"]
        self.weights_bytes: int = script["weights_bytes"]
        self.weights_mapped_bytes = 0
        self.kv_bytes_per_token: int = script["kv_bytes_per_token"]
        self.kv_is_reserved = False
        self._script = script
        self._block_tokens: int = settings["block_tokens"]
        block_bytes = self._block_tokens * self.kv_bytes_per_token
        self.block_bytes = -(-block_bytes // PAGE_BYTES) * PAGE_BYTES
        self._runtime = _resident(script["runtime_bytes"])

    def load(self) -> None:
        self._weights = _resident(self.weights_bytes)

    def open_pool(self, blocks: int, *, offload_bytes: int = 0) -> int:
        self._pool = mmap.mmap(-1, blocks * self.block_bytes, flags=_FLAGS)
        with contextlib.suppress(OSError):  # a kernel without huge pages
            self._pool.madvise(mmap.MADV_NOHUGEPAGE)
        return 0  # what is not there cannot be moved; model.yaml refuses it

    def run(self, rows: tuple[Row, ...]) -> list[int]:
        for row in rows:
            self._touch(row)
        prefill = sum(row.count for row in rows if not row.is_decode)
        activations = _resident(
            self._script["activation_bytes_per_token"] * sum(row.count for row in rows)
        )
        decode_s = self._script["decode_s_per_step"] if any(r.is_decode for r in rows) else 0.0
        time.sleep(prefill / self._script["prefill_tokens_per_s"] + decode_s)
        activations.close()
        return [1 for row in rows if row.wants_token]

    def log_probabilities(self) -> list[float]:
        return []

    def move(self, moves: tuple[Move, ...]) -> None:
        for move in moves:
            if move.kind == "copy":
                self._touch_block(move.target)

    def release(self, blocks: tuple[int, ...]) -> None:
        for block in blocks:
            self._pool.madvise(mmap.MADV_DONTNEED, block * self.block_bytes, self.block_bytes)

    def device_peaks(self) -> DevicePeaks | None:
        return None

    def tensors(self) -> TensorCounter | None:
        return None

    def lazy_parts(self) -> LazyParts:
        return LazyParts()

    def composition(self) -> HostComposition:
        start = ctypes.addressof(ctypes.c_char.from_buffer(self._pool))
        return HostComposition(pool=(start, start + len(self._pool)), interpreter_bytes=None)

    def weights_resident(self) -> Mapping[str, int]:
        return {
            "engine.weights_resident": self.weights_bytes,
            "engine.weights_resident_mapped": 0,
            "engine.weights_resident_heap": 0,
        }

    def settings(self) -> Mapping[str, str]:
        return {"memory": "anonymous, touched; nothing is computed"}

    def _touch(self, row: Row) -> None:
        """Writes one byte a page of each block that the row's tokens fall into."""
        block_tokens = self._block_tokens
        first = row.start // block_tokens
        last = (row.start + row.count - 1) // block_tokens
        for block in row.sequence.blocks[first : last + 1]:
            self._touch_block(block)

    def _touch_block(self, block: int) -> None:
        start = block * self.block_bytes
        for page in range(start, start + self.block_bytes, PAGE_BYTES):
            self._pool[page] = 1


def _resident(size_bytes: int) -> mmap.mmap:
    return mmap.mmap(-1, max(size_bytes, PAGE_BYTES), flags=_FLAGS | mmap.MAP_POPULATE)
