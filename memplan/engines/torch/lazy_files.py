"""The files of what an engine loads on demand, found and checked before any engine is started."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memplan.engines.torch.adapter_files import read_adapters
from memplan.engines.torch.prepare import tokenizer_folder

if TYPE_CHECKING:
    from memplan.specs import Deployment


def lazy_files(deployment: Deployment) -> dict[str, str]:
    """Settings for the engine: ``tokenizer_folder``, where it wants one.

    Raises InputError where an adapter is faulty or the model has no tokenizer.
    """
    read_adapters(deployment.settings.adapters)
    if deployment.settings.tokenizer == "never":
        return {}
    return {"tokenizer_folder": str(tokenizer_folder(deployment))}
