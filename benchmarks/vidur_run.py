"""One simulation by Microsoft's Vidur, for `benchmarks/simulator.py`, in the Python that has it.

Only what a step takes is ours: Vidur's own predictor downloads measurements, and the law must be the
same for both. Standard input: rules, law and requests as JSON; standard output: CPU seconds of `run`
alone and when each request ended.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

from vidur.config import (
    CacheConfig,
    ClusterConfig,
    MetricsConfig,
    ReplicaConfig,
    RoundRobinGlobalSchedulerConfig,
    SarathiSchedulerConfig,
    SimulationConfig,
    TraceRequestGeneratorConfig,
)
from vidur.execution_time_predictor import ExecutionTimePredictorRegistry
from vidur.simulator import Simulator


class Took:
    def __init__(self, seconds: float) -> None:
        self.total_time = self.model_time = seconds
        self.model_time_ms = seconds * 1e3


class Law:
    def __init__(self, law: dict) -> None:
        self.law = law

    def get_execution_time(self, batch, stage: int) -> Took:
        law, decodes = self.law, 0
        prompts = read = 0
        for query, kv in zip(batch.num_q_tokens, batch.num_kv_tokens, strict=True):
            if query == 1:
                decodes += 1
            else:
                prompts += query
            read += kv - query
        return Took(
            (
                law["step_ps"]
                + law["prompt_token_ps"] * prompts
                + law["decode_ps"] * decodes
                + law["kv_token_ps"] * read
            )
            / 1e12
        )


def main() -> None:
    asked = json.load(sys.stdin)
    rules = asked["rules"]
    law = Law(rules["law"])
    ExecutionTimePredictorRegistry.get = classmethod(lambda *_, **__: law)
    with tempfile.TemporaryDirectory() as scratch:
        trace = Path(scratch) / "trace.csv"
        columns = zip(asked["arrival_s"], asked["prompts"], asked["outputs"], strict=True)
        lines = [f"2023-11-16,{at!r},{prompt},{output}" for at, prompt, output in columns]
        head = "Date,Time,PromptTokenCount,CompletionTokenCount"
        trace.write_text("\n".join([head, *lines]) + "\n")
        metrics = MetricsConfig(
            write_metrics=False,
            enable_chrome_trace=False,
            store_plots=False,
            store_request_metrics=False,
            store_batch_metrics=False,
            store_utilization_metrics=False,
            output_dir=scratch,
        )
        config = SimulationConfig(
            log_level="error",
            metrics_config=metrics,
            cluster_config=ClusterConfig(
                num_replicas=asked["replicas"],
                replica_config=ReplicaConfig(num_pipeline_stages=1, tensor_parallel_size=1),
                cache_config=CacheConfig(
                    block_size=rules["block_tokens"],
                    num_blocks=rules["pool_blocks"],
                    watermark_blocks_fraction=0.0,
                    num_preallocate_tokens=0,
                ),
                global_scheduler_config=RoundRobinGlobalSchedulerConfig(),
                replica_scheduler_config=SarathiSchedulerConfig(
                    batch_size_cap=rules["max_requests"], chunk_size=rules["batch_tokens"]
                ),
            ),
            request_generator_config=TraceRequestGeneratorConfig(
                trace_file=str(trace),
                date="2023-11-16",
                prefill_scale_factor=1,
                decode_scale_factor=1,
                time_scale_factor=1,
                max_tokens=65_536,
            ),
        )
        simulator = Simulator(config)
        requests = [event._request for _, event in simulator._event_queue]
        requests.sort(key=lambda one: one.arrived_at)
        began_s = time.process_time()
        simulator.run()
        cpu_s = time.process_time() - began_s
    json.dump({"cpu_s": cpu_s, "end_s": [one.completed_at for one in requests]}, sys.stdout)


if __name__ == "__main__":
    main()
