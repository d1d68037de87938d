"""The stack of a model.yaml: steps one upon the other, each measured with all those below it."""

from __future__ import annotations

from collections.abc import Sequence

from memplan.specs.settings import Settings, Variant


def stack_variants(steps: Sequence[Variant]) -> tuple[Variant, ...]:
    """``stack-1-NAME`` and so on, in order: each replaces what its own step names and what the
    steps before it did."""
    found: list[Variant] = []
    replaced: dict[str, object] = {}
    for number, step in enumerate(steps, start=1):
        replaced |= step.replaced
        named = Variant.model_construct(name=f"stack-{number}-{step.name}")
        found.append(named.model_copy(update=dict(replaced)))
    return tuple(found)


def settings_below(settings: Settings, steps: Sequence[Variant], index: int) -> Settings:
    """What the step at ``index`` starts from."""
    for step in steps[:index]:
        settings = settings.model_copy(update=dict(step.replaced))
    return settings
