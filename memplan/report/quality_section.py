"""What a variant's answers are worth beside the same model in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from memplan.records import Quality
from memplan.report.pieces import Cell, Column, Section, Table
from memplan.report.wording import DASH
from memplan.stats.quality import BLOCKS_METHOD, TOP1_METHOD, Estimate, QualityFigures
from memplan.stats.summary import RunSummary


def quality_section(summary: RunSummary, prefix: str) -> Section | None:
    """None where quality was not measured."""
    quality, figures = summary.quality, summary.quality_figures
    if quality is None or figures is None:
        return None
    table = Table(
        id=f"{prefix}quality-table",
        title="Answers against the reference",
        columns=(
            Column(title="figure", align="left"),
            Column(title="value"),
            Column(title="n"),
            Column(title="method", align="left", is_spare=True),
        ),
        rows=tuple(_rows(quality, figures)),
        notes=(
            f"Compared with {quality.reference}. Text: {quality.text} (SHA-256 "
            f"{quality.text_sha256[:12]}…), scored through the variant's own KV cache, each token given "
            "all before it in its window. The second line is the 95 % interval, over texts like it.",
        ),
    )
    return Section(id=f"{prefix}quality", title="Quality", blocks=(table,))


def _rows(quality: Quality, figures: QualityFigures) -> Iterator[tuple[Cell, ...]]:
    positions = f"{quality.tokens:,}"
    blocks = f"{BLOCKS_METHOD}, {figures.block_tokens} positions a block"
    yield _row("same most likely token", figures.top1_ratio, share_text, positions, TOP1_METHOD)
    yield _row("KL divergence, mean, nats", figures.kl_mean, small_text, positions, blocks)
    yield (
        Cell(text="KL divergence, p99, nats"),
        Cell(text=small_text(quality.kl_p99)),
        Cell(text=positions),
        Cell(text="nearest rank"),
    )
    yield _row("perplexity, change", figures.perplexity_ratio, change_text, positions, blocks)
    yield (
        Cell(text="perplexity"),
        Cell(
            text=f"{quality.perplexity:.3f}",
            detail=f"reference {quality.reference_perplexity:.3f}",
        ),
        Cell(text=positions),
        Cell(text=""),
    )
    if figures.same_token_ratio is not None:
        yield (
            Cell(text="answers, the same to the end"),
            Cell(
                text=f"{quality.same_answers:,} of {quality.answers:,}",
                detail=f"{share_text(figures.same_token_ratio)} of their tokens before the first "
                "that differs",
            ),
            Cell(text=f"{quality.answers:,}"),
            Cell(text=f"continued greedily by {quality.answer_tokens:,} tokens"),
        )


def _row(
    name: str, found: Estimate, text: Callable[[float], str], n: str, method: str
) -> tuple[Cell, ...]:
    bounds = ""
    if found.low is not None and found.high is not None:
        bounds = f"{text(found.low)}{DASH}{text(found.high)}"
    return (
        Cell(text=name),
        Cell(text=text(found.value), detail=bounds),
        Cell(text=n),
        Cell(text=method),
    )


def share_text(ratio: float) -> str:
    """``99.1 %``; 100 % is all of them, not nearly all."""
    rounded = min(ratio * 100, 99.9) if ratio < 1 else 100.0
    return f"{rounded:.1f} %"


def change_text(ratio: float) -> str:
    return "same" if ratio == 1 else f"{(ratio - 1) * 100:+.2f} %".replace("-", "−")


def small_text(nats: float) -> str:
    return "0" if nats == 0 else f"{nats:.2g}"
