"""Which kind of server a deployment names."""

from __future__ import annotations

import importlib.util

from memplan.engines.servers.described import Server
from memplan.errors import MachineError
from memplan.specs import Deployment
from memplan.specs.values import MOST_TOKENS


def server_of(deployment: Deployment) -> Server:
    """Raises MachineError where a package is missing, InputError for a model that it cannot load."""
    if importlib.util.find_spec("httptools") is None:
        raise MachineError(
            f"engine {deployment.engine} needs the package httptools, which is not installed",
            hint="pip install 'memplan[servers]'",
        )
    match deployment.engine:
        case "llama":
            from memplan.engines.servers.llama import LlamaServer

            return LlamaServer(deployment)
        case "vllm":
            from memplan.engines.servers.vllm import VllmServer

            return VllmServer(deployment)
        case _:
            from memplan.engines.servers.endpoint import Endpoint

            return Endpoint(deployment)


def server_context_tokens(deployment: Deployment) -> int:
    """The longest request, prompt and answer together, that it takes; what it says when it has started
    may be less."""
    server_of(deployment)  # told before a run folder is made
    match deployment.engine:
        case "llama":
            from memplan.engines.servers.llama import llama_context_tokens

            most = llama_context_tokens(deployment)
        case "vllm":
            from memplan.engines.servers.vllm import vllm_context_tokens

            most = vllm_context_tokens(deployment)
        case _:
            most = MOST_TOKENS
    return min(most, deployment.settings.context_tokens or most)
