"""The engine seam: something that takes requests and says, step by step, what became of them.

Five methods. A trace is open-loop, with many requests in flight at once, so running a request is
split into ``submit`` and ``poll``; a thread per request would cost memory and time of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from memplan.clock import Clock, VirtualClock
from memplan.errors import EngineError
from memplan.records import EngineFacts, Finding, PlantedSpike, Request, RequestRecord, Segment

if TYPE_CHECKING:  # the worker imports this package, and pydantic is no part of an engine's memory
    from memplan.cgroups import Place
    from memplan.specs import Deployment


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A request is over; intended and sent times are the replay's to fill in."""

    record: RequestRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentClosed:
    segment: Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    spike: PlantedSpike


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """Something doubtful that only the driver of the engine can know."""

    finding: Finding


@dataclass(frozen=True, slots=True, kw_only=True)
class OutOfMemory:
    """The kernel killed the engine for memory, in a control group of its own."""

    limit_bytes: int | None
    """None: it was not the engine's own limit, but the machine's or a surrounding group's."""
    charged_peak_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """The engine is gone; what was in flight is lost. Nothing follows."""

    reason: str
    out_of_memory: OutOfMemory | None = None


EngineEvent = Ended | SegmentClosed | Planted | Noted | Died


class Engine(Protocol):
    """One engine process (or its stand-in). All times it reports are seconds since the epoch given."""

    def start(self) -> EngineFacts:
        """Loads the model and returns when requests can be taken. Raises EngineError."""
        ...

    def submit(self, request: Request, prompt: Sequence[int]) -> None:
        """Hands over a request with its prompt's token ids; returns at once."""
        ...

    def cancel(self, request_id: str) -> None:
        """Its user has given up: it ends as soon as the engine can end it, as ``cancelled``, and what it
        holds is free. Nothing where it has ended already."""
        ...

    def poll(self, timeout_s: float) -> tuple[EngineEvent, ...]:
        """What happened since the last call, waiting at most ``timeout_s`` for the first thing."""
        ...

    def stop(self) -> tuple[EngineEvent, ...]:
        """Ends the engine, whatever its state, and returns what it had still to say."""
        ...


def open_engine(
    deployment: Deployment,
    *,
    clock: Clock,
    epoch_s: float,
    engine_start: int,
    log: Path,
    above: Place | None = None,
) -> Engine:
    """The engine that a deployment names. ``log`` takes what the engine process prints; ``above``: the
    control group that the engine's own is to be made in, in place of memplan's."""
    match deployment.engine:
        case "scripted":
            from memplan.engines.scripted import ScriptedEngine

            if not isinstance(clock, VirtualClock):
                raise EngineError("the scripted engine needs the scripted clock", hint="a bug")
            return ScriptedEngine(deployment, clock=clock, epoch_s=epoch_s, number=engine_start)
        case "llama" | "vllm" | "endpoint":
            from memplan.engines.servers.engine import ServerEngine
            from memplan.engines.servers.kinds import server_of

            return ServerEngine(
                deployment, server_of(deployment), epoch_s=epoch_s, number=engine_start, log=log,
                above=above,
            )  # fmt: skip
        case "torch" | "ballast":
            from memplan.engines.embedded import EmbeddedEngine

            return EmbeddedEngine(
                deployment, epoch_s=epoch_s, number=engine_start, log=log, above=above
            )


def context_tokens_of(deployment: Deployment) -> int:
    """The longest request, prompt and answer together, that the deployment can take.

    Brings the model into a loadable form if it is not yet, which can take seconds on first use.
    Raises MachineError when the engine's packages, its allocator or the model's package are missing.
    """
    if deployment.settings.allocator != "system":  # told before a run folder is made
        from memplan.engines.allocator.preload import preloading

        preloading(deployment.settings.allocator, {})
    match deployment.engine:
        case "torch":
            from memplan.engines.torch.lazy_files import lazy_files
            from memplan.engines.torch.prepare import model_context_tokens

            lazy_files(deployment)  # told before a run folder is made
            model_tokens = model_context_tokens(deployment)
        case "llama" | "vllm" | "endpoint":
            from memplan.engines.servers.kinds import server_context_tokens

            return server_context_tokens(deployment)
        case "scripted" | "ballast":
            assert deployment.script is not None
            model_tokens = deployment.script.context_tokens
    return min(model_tokens, deployment.settings.context_tokens or model_tokens)
