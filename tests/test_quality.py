"""Scores into a Quality, and a Quality, or why there is none, into a run folder."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from builders import quality, request, scripted, workload

from memplan.engines.torch.quality import Reference, Scores
from memplan.errors import EngineError, InputError
from memplan.jobs import text_to_score
from memplan.measure import Job, measure, stopping_on_signals
from memplan.quality import QualityMeter, quality_of_scores
from memplan.recording import read_run
from memplan.records import Quality, Recording, Request, Sample
from memplan.specs import Deployment
from memplan.workload.ladder import Wave
from memplan.workload.scored_text import ScoredText

TEXT = ScoredText(name="mine.jsonl", sha256="ab", passages=("a",), are_prompts=True)


def reference(*, is_whole: bool = True) -> Reference:
    return Reference(
        windows=[[1, 2, 3]],
        prompts=[[1], [2]],
        is_whole=is_whole,
        answers=[[5, 6, 7, 8], [5, 6, 7, 8]],
        logits=io.BytesIO(),
    )


def scores(**changes: object) -> Scores:
    made = Scores(
        kl=[0.25, 0.0],
        lost=[0.5, -0.1],
        surprise=[1.5, 2.5],
        reference_surprise=[1.0, 2.6],
        top1_same=1,
        answers=[[5, 6, 7, 8], [5, 6, 0, 8]],
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_perplexity_is_the_exponential_of_the_mean_surprise() -> None:
    made = quality_of_scores(TEXT, reference(), scores())
    assert made.perplexity == pytest.approx(7.38905609893065)  # e^2
    assert made.reference_perplexity == pytest.approx(6.049647464412946)  # e^1.8
    assert (made.kl_mean, made.kl_p99) == (0.125, 0.25)
    assert (made.tokens, made.top1_same) == (2, 1)
    assert made.kl_by_position == (0.25, 0.0)
    assert made.lost_by_position == (0.5, -0.1)


def test_answers_agree_up_to_the_first_token_that_differs() -> None:
    made = quality_of_scores(TEXT, reference(), scores())
    assert (made.answers, made.answer_tokens) == (2, 4)
    assert (made.same_answers, made.same_tokens) == (1, 6)


def test_positions_keep_six_digits() -> None:
    made = quality_of_scores(TEXT, reference(), scores(kl=[1.23456789e-5, 0.0]))
    assert made.kl_by_position == (1.23457e-5, 0.0)


def test_a_text_that_was_scored_in_part_says_so() -> None:
    assert quality_of_scores(TEXT, reference(), scores()).text == "mine.jsonl"
    told = quality_of_scores(TEXT, reference(is_whole=False), scores()).text
    assert told == "part of mine.jsonl"


# --- what is to be scored --------------------------------------------------------------------


def test_only_an_engine_with_a_model_has_answers(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("Some words.")
    torch = replace(scripted(), engine="torch")
    found = text_to_score(torch, None, is_wanted=True, builtin=text)
    assert found is not None
    assert found.passages == ("Some words.",)
    assert text_to_score(torch, None, is_wanted=False, builtin=text) is None
    assert text_to_score(scripted(), None, is_wanted=True, builtin=text) is None
    with pytest.raises(InputError, match="engine scripted gives no real answers"):
        text_to_score(scripted(), text, is_wanted=True, builtin=text)
    with pytest.raises(InputError, match="with --no-quality nothing is scored"):
        text_to_score(torch, text, is_wanted=False, builtin=text)


# --- into the run ----------------------------------------------------------------------------


class Meter(QualityMeter):
    """Says what it was made with."""

    def __init__(self, outcome: Quality | EngineError | None) -> None:
        super().__init__(TEXT)
        self._outcome = outcome

    def quality_of(
        self, deployment: Deployment, told: Callable[[int, int], bool]
    ) -> Quality | None:
        assert told(1, 2)
        if isinstance(self._outcome, EngineError):
            raise self._outcome
        return self._outcome


class Silent:
    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def engine_starting(self, wave: str) -> None: ...

    def wave_started(self, wave: Wave) -> None: ...

    def request_ended(self, request: Request) -> None: ...

    def sampled(self, sample: Sample, in_flight: int) -> None: ...

    def scored(self, done: int, total: int) -> None:
        self.seen.append((done, total))


def measured(folder: Path, outcome: Quality | EngineError | None) -> Recording:
    job = Job(
        kind="profile",
        deployment=scripted(),
        waves=(Wave(name="trace", fresh=False, requests=(request(),)),),
        workload=workload(),
        folder=folder,
        command=("profile",),
        sample_period_s=0.05,
        quality=Meter(outcome),
    )
    watcher = Silent()
    with stopping_on_signals() as stop:
        try:
            measure(job, watcher=watcher, stop=stop)
        finally:
            assert watcher.seen == [(1, 2)]
    return read_run(folder)


def test_a_run_holds_the_quality_that_was_measured(tmp_path: Path) -> None:
    read = measured(tmp_path / "run", quality())
    assert read.quality == quality()
    assert read.end is not None
    assert not [one for one in read.findings if one.code == "quality_not_measured"]


def test_why_it_could_not_be_measured_is_a_finding_of_a_whole_run(tmp_path: Path) -> None:
    read = measured(tmp_path / "run", EngineError("no tokenizer", hint="put one there"))
    (finding,) = [one for one in read.findings if one.code == "quality_not_measured"]
    assert "no tokenizer" in finding.text
    assert finding.hint == "put one there"
    assert read.quality is None
    assert read.end is not None
    assert read.end.reason == "finished"


def test_a_ctrl_c_while_it_is_measured_leaves_a_whole_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        measured(tmp_path / "run", None)
    read = read_run(tmp_path / "run")
    assert read.end is not None
    assert [one.code for one in read.findings] == ["quality_not_measured"]
