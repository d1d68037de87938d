"""Request classes: which requests each one matches, and what it may cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from memplan.specs.values import Bytes, Count, Name, Operations, Part, Range, Seconds, TokenRange

UNKNOWN_CLASS = "unknown"
"""The class of a request that no rule matches."""
LADDER_CLASS = "ladder"
"""The class of a profile's synthetic requests that stand for no class of the user."""


class ClassWhen(Part):
    """All of the given conditions must hold; none given matches every request."""

    input_tokens: Range | None = None
    output_tokens: Range | None = None
    operation: Operations | None = None
    labels: dict[str, str] = Field(default_factory=dict)

    def covers(self, other: ClassWhen) -> bool:
        """Every request that ``other`` matches is matched here too."""
        ranges = (
            (self.input_tokens, other.input_tokens),
            (self.output_tokens, other.output_tokens),
        )
        return (
            all(ours is None or ours.covers(theirs or TokenRange()) for ours, theirs in ranges)
            and (
                self.operation is None
                or (other.operation is not None and set(other.operation) <= set(self.operation))
            )
            and self.labels.items() <= other.labels.items()
        )


class Typical(Part):
    input_tokens: Count | None = None
    output_tokens: Count | None = None


class Budget(Part):
    """Bytes that one request of the class may own (attributed, p99); ``in_flight``: KV that all of its
    running requests may need together, which the engine holds them to."""

    cpu_bytes: Bytes | None = Field(default=None, alias="cpu")
    gpu_bytes: Bytes | None = Field(default=None, alias="gpu")
    in_flight_bytes: Bytes | None = Field(default=None, alias="in_flight")


class Slo(Part):
    """Latency that 95 % of the requests keep."""

    ttft_s: Seconds | None = Field(default=None, alias="ttft")
    tpot_s: Seconds | None = Field(default=None, alias="tpot")
    e2e_s: Seconds | None = Field(default=None, alias="e2e")


class ClassSpec(Part):
    """One request class; the first that matches a request names it."""

    name: Name
    when: ClassWhen = Field(default_factory=ClassWhen)
    typical: Typical = Field(default_factory=Typical)
    budget: Budget = Field(default_factory=Budget)
    slo: Slo = Field(default_factory=Slo)
    adapter: Name | None = None
    """Of its requests that name none themselves."""

    @property
    def typical_input_tokens(self) -> int:
        derived = self.when.input_tokens.typical if self.when.input_tokens else 512
        return self.typical.input_tokens or derived

    @property
    def typical_output_tokens(self) -> int:
        derived = self.when.output_tokens.typical if self.when.output_tokens else 64
        return self.typical.output_tokens or derived

    @property
    def rule(self) -> str:
        """The rule as a report prints it: ``input_tokens 512..4095, operation chat``."""
        parts = [
            *(
                f"{name} {tokens}"
                for name in ("input_tokens", "output_tokens")
                if (tokens := getattr(self.when, name)) is not None
            ),
            *([f"operation {' or '.join(self.when.operation)}"] if self.when.operation else ()),
            *(f"label {key} is {value}" for key, value in self.when.labels.items()),
        ]
        return ", ".join(parts) or "every request"


def classes_of_record(deployment: Mapping[str, Any]) -> tuple[ClassSpec, ...]:
    """Names and rules of a recording's classes; of a recording without any, those built in."""
    found = deployment.get("classes") or ()
    return (
        tuple(
            ClassSpec(
                name=one["name"],
                when=ClassWhen.model_validate(
                    {key: value for key, value in one.get("when", {}).items() if value}
                ),
            )
            for one in found
        )
        or BUILTIN_CLASSES
    )


BUILTIN_CLASSES = (
    ClassSpec(name="short", when=ClassWhen(input_tokens=TokenRange(high=511))),
    ClassSpec(name="medium", when=ClassWhen(input_tokens=TokenRange(low=512, high=4095))),
    ClassSpec(name="long", when=ClassWhen(input_tokens=TokenRange(low=4096))),
)
