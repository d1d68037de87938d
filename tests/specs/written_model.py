"""A model.yaml written for one test: what is read from it, or what is said of it."""

from pathlib import Path

import pytest

from memplan.errors import InputError
from memplan.specs import Deployment, load_deployment

SCRIPTED = "memplan: 1\nname: small\nengine: scripted\n"
TORCH = "memplan: 1\nname: small\nengine: torch\n"


def load(folder: Path, text: str) -> Deployment:
    path = folder / "model.yaml"
    path.write_text(text, encoding="utf-8")
    return load_deployment(path)


def faults_of(folder: Path, text: str) -> list[str]:
    """The lines after the head, without the folder: ``12 $.settings.x: …``."""
    with pytest.raises(InputError) as caught:
        load(folder, text)
    head, *lines = caught.value.message.split("\n")
    assert caught.value.hint
    assert head == f"{folder / 'model.yaml'}: {len(lines)} fault{'s' if len(lines) > 1 else ''}"
    return [line.replace(f"  {folder / 'model.yaml'}:", "") for line in lines]


def only_fault_of(folder: Path, text: str) -> str:
    (line,) = faults_of(folder, text)
    return line
