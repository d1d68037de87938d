"""The process that is the llama.cpp server: ``python -m … OPTIONS`` with the options as JSON.

xllamacpp holds the upstream server; this gives it its parameters and waits. Nothing else is imported.
"""

from __future__ import annotations

import json
import sys
import threading


def main() -> None:
    import xllamacpp

    options = json.loads(sys.argv[1])
    kinds = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
    kv = getattr(
        xllamacpp.ggml_type, f"GGML_TYPE_{kinds.get(options['kv'], options['kv'].upper())}"
    )
    modes = {"mmap": "MMAP", "none": "NONE", "mmap+mlock": "MMAP_MLOCK"}
    params = xllamacpp.CommonParams()
    params.model.path = options["model"]
    params.port = options["port"]
    params.n_ctx = options["context"]
    params.n_parallel = options["slots"]
    params.kv_unified = options["unified"]
    params.cache_type_k = params.cache_type_v = kv
    params.n_batch = options["batch"]
    params.n_ubatch = options["micro_batch"]
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options["threads"]
    params.load_mode = getattr(
        xllamacpp.llama_load_mode, f"LLAMA_LOAD_MODE_{modes[options['load']]}"
    )
    params.cache_ram_mib = options["prompt_cache_mib"]
    params.no_extra_bufts = not options["repack"]
    params.n_gpu_layers = -1 if options["layers"] == "all" else options["layers"]
    params.no_kv_offload = options["kv_on_host"]
    params.fit_params = False
    params.endpoint_metrics = params.endpoint_slots = True
    params.ui = False
    params.sse_ping_interval = 3
    params.verbosity = 4
    server = xllamacpp.Server(params)
    print(f"listening on {server.listening_address}", flush=True)  # noqa: T201 - into engine.log
    threading.Event().wait()


if __name__ == "__main__":
    main()
