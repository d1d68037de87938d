"""The real model's tokenizer: what it costs, when, and whom it keeps waiting."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from one_by_one import serve

from memplan.engines.torch.prepare import tokenizer_folder
from memplan.errors import InputError
from memplan.specs import Deployment
from memplan.specs.model_source import ModelSource
from memplan.units import MIB

pytestmark = pytest.mark.live
TWO: list[dict[str, str]] = [{}, {}]


def test_loaded_at_first_use_it_is_growth_and_the_first_request_waits(
    smollm2: Deployment, tmp_path: Path
) -> None:
    told = serve(smollm2, TWO, tmp_path / "log", tokenizer="first_use")
    first, second = told.records
    assert first.tokenizer_load_s > 0.01
    assert second.tokenizer_load_s == 0
    assert first.end_s is not None and first.first_token_s is not None
    assert "engine.tokenizer" not in told.facts.idle
    grown = [one.gauges["engine.tokenizer"] for one in told.segments if one.in_flight]
    assert min(grown) == max(grown) > MIB
    last = told.segments[-1].gauges["host.rss"]
    free = told.facts.idle["host.heap_free"]  # it is made of what malloc kept free first
    assert last - told.facts.idle["host.rss"] > grown[0] - free - MIB
    assert free < grown[0] / 2


def test_loaded_at_start_it_is_idle_and_nobody_waits(smollm2: Deployment, tmp_path: Path) -> None:
    told = serve(smollm2, TWO, tmp_path / "log", tokenizer="start")
    assert [one.tokenizer_load_s for one in told.records] == [0, 0]
    assert told.facts.idle["engine.tokenizer"] > MIB


def test_a_model_without_one_is_told_before_an_engine_starts(
    smollm2: Deployment, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    bare = replace(smollm2, model=ModelSource(path=str(tmp_path)))
    with pytest.raises(InputError, match=r"has no tokenizer, expected one of tokenizer\.json"):
        tokenizer_folder(bare)
