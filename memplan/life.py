"""When a request came, read its prompt, answered and went, as a fleet or an engine served it."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """One request's time in service. Its prompt is held from the start on, as an engine that takes
    blocks at admission holds it; its answer grows evenly from the end of the prefill to its end."""

    start_s: float
    prefill_s: float
    end_s: float
    input_tokens: int
    output_tokens: int

    def rest_from(self, at_s: float) -> Life:
        """What is left of it at a time at which it is in service: what it holds by then is a prompt."""
        first_s = self.start_s + self.prefill_s
        answering_s = self.end_s - first_s
        grown = 0
        if at_s > first_s and answering_s > 0:
            grown = min(
                self.output_tokens - 1,
                round(self.output_tokens * (at_s - first_s) / answering_s),
            )
        return Life(
            start_s=at_s,
            prefill_s=max(0.0, first_s - at_s),
            end_s=self.end_s,
            input_tokens=self.input_tokens + grown,
            output_tokens=self.output_tokens - grown,
        )

    def until(self, at_s: float) -> Life:
        """As it was until a time, at which it ends; its answer grows as fast as it did."""
        if self.end_s <= at_s:
            return self
        first_s = self.start_s + self.prefill_s
        if at_s <= first_s:
            return replace(self, prefill_s=at_s - self.start_s, end_s=at_s, output_tokens=1)
        grown = round(self.output_tokens * (at_s - first_s) / (self.end_s - first_s))
        return replace(self, end_s=at_s, output_tokens=max(1, grown))
