"""The seam inside the worker: what computes, behind the scheduler that says which tokens run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from memplan.engines.composition import HostComposition
from memplan.engines.meter import DevicePeaks, TensorCounter
from memplan.engines.sequence import Row


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

    def open_pool(self, blocks: int) -> None:
        """Sets the KV pool up."""
        ...

    def run(self, rows: tuple[Row, ...]) -> list[int]:
        """Computes a step; returns the next token id of each row that wants one, in order."""
        ...

    def release(self, blocks: tuple[int, ...]) -> None:
        """These blocks hold nothing any more."""
        ...

    def device_peaks(self) -> DevicePeaks | None:
        """None where the runner uses host memory only."""
        ...

    def tensors(self) -> TensorCounter | None:
        """None where live host tensors cannot be counted."""
        ...

    def composition(self) -> HostComposition:
        """What host memory is made of, once the pool is open. Raises OSError where pages cannot be
        counted."""
        ...

    def weights_resident(self) -> Mapping[str, int]:
        """``engine.weights_resident``; of it, ``…_mapped`` from files and ``…_heap`` in malloc's."""
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
