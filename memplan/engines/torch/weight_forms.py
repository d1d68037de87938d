"""Which form each weight of a model shall have: ``settings.weights`` and ``weights_by_module``.

Pure: names and words in, a plan out. What a form is made of is in ``quantized_modules``.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from memplan.errors import EngineError

Kind = Literal["linear", "embedding", "head"]
QUANTIZED = ("int8", "int8_dynamic", "int4")
_OF_KIND: Mapping[Kind, tuple[str, ...]] = {
    "linear": QUANTIZED,
    "head": QUANTIZED,
    "embedding": ("int8",),
}
_MOST_NAMES = 24
FAULT_CODE = 3
"""Exit code of the process that quantizes, when it has written an EngineError to stdout, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlan:
    """``base`` for every linear layer but the head; of ``by_module`` the last pattern that matches."""

    base: str
    by_module: Mapping[str, str]

    @classmethod
    def of_settings(cls, settings: Mapping[str, Any]) -> WeightPlan:
        return cls(base=settings["weights"], by_module=settings["weights_by_module"])

    @property
    def compute(self) -> str:
        """The form in which the model computes, and of every weight that is not quantized."""
        return self.base if self.base in ("fp32", "fp16") else "bf16"

    @property
    def is_quantized(self) -> bool:
        return self.base in QUANTIZED or bool(self.by_module)  # whose patterns must be looked at


def forms_of(plan: WeightPlan, modules: Mapping[str, Kind]) -> dict[str, str]:
    """Module name → quantized form; modules that stay as they are, are left out.

    Raises EngineError for a pattern that matches no module, and for a form that a module cannot have.
    """
    for pattern in plan.by_module:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in modules):
            raise EngineError(
                f'weights_by_module: "{pattern}" matches no module of this model, expected a '
                f"pattern over {_listed(modules)}",
                hint="write the pattern over a whole name, such as *.mlp.*",
            )
    forms: dict[str, str] = {}
    for name, kind in modules.items():
        form = plan.base if kind == "linear" else plan.compute
        for pattern, wanted in plan.by_module.items():
            if fnmatch.fnmatchcase(name, pattern):
                form = wanted
        if form == plan.compute:
            continue
        if form not in _OF_KIND[kind]:
            raise EngineError(
                f"weights_by_module: {name} is an {kind} and cannot be {form}, expected "
                f"{' or '.join((*_OF_KIND[kind], plan.compute))}",
                hint=f"add a later pattern for it: {name}: {_OF_KIND[kind][0]}",
            )
        forms[name] = form
    return forms


def form_text(forms: Iterable[str]) -> str:
    """How many modules have which form, for the recording."""
    counts: dict[str, int] = {}
    for form in forms:
        counts[form] = counts.get(form, 0) + 1
    return ", ".join(f"{form} × {count}" for form, count in sorted(counts.items()))


def _listed(names: Iterable[str]) -> str:
    """Names that differ in a layer's number only are one."""
    shown = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name) for name in names))
    rest = f" and {len(shown) - _MOST_NAMES} more" if len(shown) > _MOST_NAMES else ""
    return ", ".join(shown[:_MOST_NAMES]) + rest
