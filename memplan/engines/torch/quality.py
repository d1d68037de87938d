"""Our side of scoring: starts its processes, one after another, and gathers what they say.

Scoring runs outside every measured window, in a process without the tensor hook and the allocator of
the variant: neither changes an answer.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

from memplan.compiled import cache_folder
from memplan.engines.torch.prepare import prepared_folder
from memplan.engines.torch.scoring_layout import passages_to_read
from memplan.errors import EngineError, MachineError
from memplan.specs import Deployment

Told = Callable[[int, int], bool]
"""(tokens done, of how many); False ends it."""
_QUICK: Mapping[str, Any] = {
    "load": "mapped",
    "offload": "never",
    "adapters": {},
    "tokenizer": "never",
    "cuda_snapshot": None,
}
"""Settings that move memory and no answer of the model's own, as they are quickest."""
_REFERENCE = {"weights": "fp32", "weights_by_module": {}, "kv": "fp32", "block_tokens": 16}


class StoppedError(Exception):
    """Whoever was told did not want the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What a model in fp32 says of a text."""

    windows: Sequence[Sequence[int]]
    prompts: Sequence[Sequence[int]]
    is_whole: bool
    """False: the text is longer than what is scored."""
    answers: Sequence[Sequence[int]]
    logits: IO[bytes]
    """Every position's, in fp32. The file has no name: it is gone when it is closed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How a variant differs from a reference; one number a position, in nats."""

    kl: Sequence[float]
    lost: Sequence[float]
    surprise: Sequence[float]
    reference_surprise: Sequence[float]
    top1_same: int
    answers: Sequence[Sequence[int]]


def score_reference(
    deployment: Deployment,
    passages: Sequence[str | tuple[int, ...]],
    *,
    name: str,
    are_prompts: bool,
    told: Told,
) -> Reference:
    """The deployment's model with weights and KV in fp32. Raises EngineError, MachineError, InputError
    where it cannot be scored, and StoppedError."""
    settings = deployment.settings.model_copy(update=_REFERENCE)
    exact = replace(deployment, settings=settings)
    to_read = passages_to_read(passages)
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        logits = tempfile.TemporaryFile(dir=cache_folder())  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise MachineError(
            f"{cache_folder()}: cannot be written: {error.strerror}",
            hint="set XDG_CACHE_HOME to a folder of yours",
        ) from error
    try:
        config = {
            **_config(exact),
            "source": str(deployment.model_file()),
            "name": name,
            "passages": to_read,
            "is_cut": to_read != list(passages),
            "are_prompts": are_prompts,
        }
        found = _run(config, exact, logits, told)
    except BaseException:
        logits.close()
        raise
    return Reference(**found, logits=logits)


def score_variant(deployment: Deployment, reference: Reference, told: Told) -> Scores:
    """The deployment's own weights, KV format and device beside the reference. Raises EngineError,
    MachineError and StoppedError."""
    config = {
        **_config(deployment),
        "windows": reference.windows,
        "prompts": reference.prompts,
    }
    return Scores(**_run(config, deployment, reference.logits, told))


def _config(deployment: Deployment) -> dict[str, Any]:
    settings = deployment.settings.model_dump(mode="json")
    return {"settings": {**settings, **_QUICK}, "folder": str(prepared_folder(deployment))}


def _run(
    config: Mapping[str, Any], deployment: Deployment, logits: IO[bytes], told: Told
) -> dict[str, Any]:
    command = [sys.executable, "-m", "memplan.engines.torch.scoring", str(logits.fileno())]
    threads = deployment.settings.threads
    env = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **({"OMP_NUM_THREADS": str(threads)} if threads else {}),
        **deployment.settings.env,
    }
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            pass_fds=[logits.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=env,
            start_new_session=True,  # Ctrl-C is memplan's to handle
        )
        with process:
            try:
                found = _listened(process, config, told)
            finally:
                process.kill()
        if found is None:
            raise EngineError(
                f"the process that scores it ended without a result ({_last_words(process, log)})",
                hint="see whether there is memory for a second copy of the model, in fp32",
            )
    return found


def _listened(
    process: subprocess.Popen[bytes], config: Mapping[str, Any], told: Told
) -> dict[str, Any] | None:
    """The result; None where the process ended without one."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(config).encode())
        process.stdin.close()
    except BrokenPipeError:
        return None
    if not told(0, 1):
        raise StoppedError
    for line in process.stdout:
        message = json.loads(line)
        if "result" in message:
            result: dict[str, Any] = message["result"]
            return result
        if "fault" in message:
            raise EngineError(message["fault"], hint=message["hint"])
        if not told(message["done"], message["total"]):
            raise StoppedError
    process.wait()
    return None


def _last_words(process: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return (lines[-1] if lines else f"exit code {process.returncode}")[:200]
