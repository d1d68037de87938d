"""The real model, prepared once for all live tests."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from memplan.builtin import builtin_path
from memplan.engines.torch.prepare import prepared_folder
from memplan.specs import Deployment, load_deployment

# Before torch is imported. Two threads on two cores that other tests use too wait for each other at
# every operation: a test of 85 s takes 20 with one.
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def smollm2() -> Deployment:
    found = load_deployment(builtin_path("smollm2.yaml"))
    return replace(found, settings=found.settings.model_copy(update={"threads": 1}))


@pytest.fixture(scope="session")
def fp32_folder(smollm2: Deployment) -> Path:
    settings = smollm2.settings.model_copy(update={"weights": "fp32"})
    return prepared_folder(replace(smollm2, settings=settings))


@pytest.fixture(scope="session")
def bf16_folder(smollm2: Deployment) -> Path:
    return prepared_folder(smollm2)
