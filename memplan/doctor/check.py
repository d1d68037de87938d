"""What a check says of one source of truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One source of truth. ``means`` says what its state lets memplan claim, or not."""

    name: str
    state: Literal["yes", "no", "note"]
    """note: nothing is lost, or nothing that this machine could have had."""
    found: str
    means: str
    remedy: str = ""
    """What would mend it; empty where nothing needs mending."""
