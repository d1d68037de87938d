"""How much KV a process may hold so that its peak stays within a budget.

Peak = what is resident without any request + what one step adds + KV. The first two are measured when
the engine starts, the second on the largest steps that its settings allow; what is left is for KV, and
whoever it cannot hold waits. A step that turns out larger makes the part for KV smaller from then on.
"""

from __future__ import annotations

from dataclasses import dataclass

from memplan.units import bytes_text


@dataclass(slots=True, kw_only=True)
class MemoryBudget:
    budget_bytes: int
    idle_bytes: int
    """Resident with nothing in flight."""
    step_bytes: int
    """The most that a step added to idle, besides KV, so far."""
    block_bytes: int

    @property
    def blocks(self) -> int:
        """What KV may hold; below 1 nothing can run."""
        return (self.budget_bytes - self.idle_bytes - self.step_bytes) // self.block_bytes

    def saw(self, peak_bytes: int, resident_blocks: int) -> bool:
        """Takes note of a step's peak; True: it left less for KV than was thought.

        ``resident_blocks`` may not all have been written to their end, so this asks for too little
        rather than too much.
        """
        beside_bytes = peak_bytes - resident_blocks * self.block_bytes - self.idle_bytes
        if beside_bytes <= self.step_bytes:
            return False
        self.step_bytes = beside_bytes
        return True

    def text(self) -> str:
        kv_bytes = max(0, self.blocks) * self.block_bytes
        return (
            f"{bytes_text(self.budget_bytes)} = {bytes_text(self.idle_bytes)} at idle + "
            f"{bytes_text(self.step_bytes)} in the largest step + {bytes_text(kv_bytes)} for KV"
        )
