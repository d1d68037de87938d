"""The variants of a profile in words: what to turn on first, and what each figure rests on."""

from __future__ import annotations

from collections.abc import Iterator

from memplan.report.wording import ratio_text
from memplan.stats.first_technique import Candidate, FirstTechnique, Verdict
from memplan.stats.variants import Spread, VariantFigures
from memplan.units import bytes_text, seconds_text

NOT_MEASURED = "not measured"
VERDICTS: dict[Verdict, str] = {
    "within": "within the tolerances",
    "saves_nothing": "saves nothing beyond the spread",
    "carries_less": "carries fewer or shorter requests",
    "too_slow": "too slow",
    "latency_unknown": "latency not measured",
    "quality_lost": "loses too much quality",
    "quality_unknown": "quality not measured",
}
_MOST_REASONS = 3


def first_text(found: FirstTechnique) -> str:
    """One sentence, with its evidence."""
    if found.first is None:
        return _nothing_text(found)
    chosen, base = found.first, found.base
    sentence = (
        f"Turn on {chosen.figures.variant} first ({changes_text(chosen.figures)}): it takes "
        f"{bytes_text(chosen.saved_bytes)} off the peak ({peak_text(chosen.figures, base)}) at "
        f"{', '.join(latency_parts(chosen.figures, base))}, and {_quality_part(chosen.figures)}"
    )
    more = found.larger_unknown
    if more is not None:
        sentence += (
            f"; {more.figures.variant} takes off {bytes_text(more.saved_bytes)}, but what it costs "
            "in quality was not measured"
        )
    return f"{sentence}."


def _nothing_text(found: FirstTechnique) -> str:
    limits = found.tolerances
    asked = (
        f"at most {percent_text(limits.slower_ratio)} slower, perplexity up by at most "
        f"{percent_text(limits.perplexity_ratio)}, {percent_text(limits.top1_ratio)} of top tokens "
        "as in fp32"
    )
    ordered = sorted(found.candidates, key=lambda one: -one.saved_bytes)
    reasons = "; ".join(_reason(one) for one in ordered[:_MOST_REASONS])
    left = len(ordered) - _MOST_REASONS
    more = f"; and {left} more" if left > 0 else ""
    return f"Nothing to turn on first is shown ({asked}): {reasons}{more}."


def _reason(one: Candidate) -> str:
    name, saved = one.figures.variant, f"takes {bytes_text(one.saved_bytes)} off the peak"
    match one.verdict:
        case "saves_nothing":
            return f"{name} {VERDICTS['saves_nothing']}"
        case "too_slow":
            slower = percent_text(one.slower_ratio or 0.0)
            return f"{name} {saved} and is {slower} slower ({one.slower_in})"
        case "quality_lost":
            return f"{name} {saved}, with {quality_text(one.figures)}"
        case "quality_unknown":
            return f"{name} {saved}, but what it costs in quality was not measured"
        case "latency_unknown":
            return f"{name} {saved}, but what it costs in latency was not measured"
        case "carries_less":
            return f"{name} {saved} and {VERDICTS['carries_less']}"
        case "within":
            return f"{name} {saved}"


def changes_text(one: VariantFigures) -> str:
    """The settings that are not the base's, as model.yaml has them, but in plain bytes and seconds."""
    if not one.changes:
        return "the settings as they are"
    return ", ".join(f"{key}: {_value_text(value)}" for key, value in one.changes.items())


def _value_text(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case dict():
            return "{" + ", ".join(f"{k}: {_value_text(v)}" for k, v in value.items()) + "}"
        case list():
            return "[" + ", ".join(_value_text(item) for item in value) + "]"
        case _:
            return str(value)


def peak_text(one: VariantFigures, base: VariantFigures) -> str:
    assert one.peak is not None and base.peak is not None
    ratio = ratio_text(one.peak.value, base.peak.value)
    return f"{bytes_text(base.peak.value)} to {bytes_text(one.peak.value)}, {ratio}"


def latency_parts(one: VariantFigures, base: VariantFigures) -> Iterator[str]:
    if one.decode is not None and base.decode is not None:
        yield (
            f"{seconds_text(one.decode.value)} a step with {one.decode_requests} decoding "
            f"(base {seconds_text(base.decode.value)}, n {one.decode.n} and {base.decode.n})"
        )
    if one.prompt is not None and base.prompt is not None:
        yield (
            f"{seconds_text(one.prompt.value)} to the first token of {one.prompt_tokens:,} "
            f"(base {seconds_text(base.prompt.value)}, n {one.prompt.n} and {base.prompt.n})"
        )
    if one.batch is not None and base.batch is not None:
        yield (
            f"{seconds_text(one.batch.value)} for all of those {one.decode_requests} "
            f"(base {seconds_text(base.batch.value)}, n 1)"
        )


def _quality_part(one: VariantFigures) -> str:
    if not one.has_own_numbers:
        return "its weights and KV are base's, so its answers are too"
    return quality_text(one)


def quality_text(one: VariantFigures) -> str:
    if one.quality is None:
        return "quality not measured"
    ratio = one.quality.perplexity_ratio.value
    return (
        f"perplexity {percent_text(ratio - 1, places=2, signed=True)} and "
        f"{percent_text(one.quality.top1_ratio.value, places=1)} of top tokens as in fp32 "
        f"(n {one.quality_tokens:,} tokens)"
    )


def percent_text(ratio: float, *, places: int = 0, signed: bool = False) -> str:
    sign = "+" if signed else ""
    return f"{ratio * 100:{sign}.{places}f} %".replace("-", "−")


def reach_of(spread: Spread) -> float:
    return max(spread.high - spread.value, spread.value - spread.low)
