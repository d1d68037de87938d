"""Where a deployment's LoRA adapters are, and whether they are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from memplan.specs.model_file import ModelFile
from memplan.specs.places import Fault
from memplan.specs.settings import Settings

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
"""What PEFT writes into a folder."""

_S = TypeVar("_S", bound=Settings)


def adapter_faults(file: ModelFile, folder: Path) -> Iterator[Fault]:
    """Folders that are not there, or lack a file; paths start at ``folder``."""
    if file.engine != "torch":
        return  # which is a fault of its own
    for here, settings in file.written_settings():
        for name, path in settings.adapters.items():
            found = folder / path
            missing = [one for one in ADAPTER_FILES if not (found / one).is_file()]
            if not found.is_dir():
                yield (*here, "adapters", name), f"{found}: not found"
            elif missing:
                yield (
                    (*here, "adapters", name),
                    f"{found}: no {' and no '.join(missing)} in it, expected a folder as PEFT "
                    "saves it",
                )


def with_absolute_adapters(settings: _S, folder: Path) -> _S:
    if not settings.adapters:
        return settings
    found = {name: str((folder / path).absolute()) for name, path in settings.adapters.items()}
    return settings.model_copy(update={"adapters": found})
