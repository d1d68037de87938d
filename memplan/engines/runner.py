"""The seam inside the worker: what computes, behind the scheduler that says which tokens run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from memplan.engines.composition import HostComposition
from memplan.engines.lazy_parts import LazyParts
from memplan.engines.meter import DevicePeaks, TensorCounter
from memplan.engines.sequence import Move, Row


class Runner(Protocol):
    """What computes. It owns weights and KV bytes; the scheduler owns which tokens run."""

    version: str
    device: str
    device_name: str | None
    vocab_tokens: int
    context_tokens: int
    weights_bytes: int
    weights_mapped_bytes: int
    kv_bytes_per_token: int
    kv_is_reserved: bool

    def load(self) -> None:
        """Loads the weights."""
        ...

    block_bytes: int
    """Host memory or device memory of one block of the pool, once it is open."""

    def open_pool(self, blocks: int, *, offload_bytes: int = 0) -> int:
        """Sets the KV pool up, and an offload tier of at most so many bytes; returns how many blocks
        the tier takes. Raises RuntimeError where there cannot be one."""
        ...

    def run(self, rows: tuple[Row, ...]) -> list[int]:
        """Computes a step; returns the next token id of each row that wants one, in order."""
        ...

    def log_probabilities(self) -> list[float]:
        """Of the tokens that ``run`` chose last; empty unless ``settings.confidence``."""
        ...

    def move(self, moves: tuple[Move, ...]) -> None:
        """Moves KV bytes, in this order, before the next step. Raises OSError when a tier is full."""
        ...

    def release(self, blocks: tuple[int, ...]) -> None:
        """These blocks hold nothing any more."""
        ...

    def device_peaks(self) -> DevicePeaks | None:
        """What a device tells of each segment, and what streaming its layers cost; None where there is
        neither."""
        ...

    def tensors(self) -> TensorCounter | None:
        """None where live host tensors cannot be counted."""
        ...

    def lazy_parts(self) -> LazyParts:
        """What is loaded when it is first needed, once the model is there."""
        ...

    def composition(self) -> HostComposition:
        """What host memory is made of, once the pool is open. Raises OSError where pages cannot be
        counted."""
        ...

    def weights_resident(self) -> Mapping[str, int]:
        """``engine.weights_resident``; of it, ``…_mapped`` from files and ``…_heap`` in malloc's; and
        what else is known of where weights are."""
        ...

    def settings(self) -> Mapping[str, str]:
        """What else moves bytes, as text."""
        ...


def open_runner(config: Mapping[str, Any]) -> Runner:
    """The runner that the deployment names; imports what it needs and loads nothing yet."""
    match config["engine"]:
        case "torch":
            from memplan.engines.torch.live_tensors import count_interpreter

            count_interpreter()
            from memplan.engines.torch.runner import TorchRunner

            return TorchRunner(config["settings"], config["model_folder"])
        case "ballast":
            from memplan.engines.ballast import BallastRunner

            return BallastRunner(config["settings"], config["script"])
        case other:
            raise ValueError(f"no embedded engine is called {other!r}")
