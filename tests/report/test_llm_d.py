"""One run in llm-d's own format, held against llm-d's own schema."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from example_run import profile_recording, profile_summary, replay_recording, replay_summary
from llmd_benchmark_report.schema_v0_2 import BenchmarkReportV02

from memplan.cli import run
from memplan.recording import read_run
from memplan.records import Recording, Sample
from memplan.report.llm_d import VERSION, llm_d_report
from memplan.stats.summarise import summarise

RECORDING = replay_recording()
SUMMARY = replay_summary(RECORDING)


def validated(recording: Recording) -> BenchmarkReportV02:
    """Raises for a field that the schema does not know or has another unit for."""
    return BenchmarkReportV02.model_validate(llm_d_report(summarise(recording), recording))


@pytest.mark.parametrize(
    "recording",
    [
        RECORDING,
        profile_recording(),
        replace(RECORDING, end=None),
        replace(RECORDING, segments=(), samples=(), engines=()),
    ],
    ids=["replay", "profile", "cut off", "nothing served"],
)
def test_it_is_valid_by_llm_ds_own_schema(recording: Recording) -> None:
    assert validated(recording).version == VERSION


def test_memory_and_requests_are_those_of_the_run() -> None:
    read = validated(RECORDING)
    assert read.results.observability is not None
    (component,) = read.results.observability.components or ()
    assert component.aggregate is not None
    memory, running = component.aggregate.cpu_memory_usage, component.aggregate.running_requests
    assert memory is not None and running is not None
    assert component.aggregate.gpu_memory_usage is None, "nothing was measured there"
    serving = [one for one in RECORDING.segments if one.end_s > RECORDING.engines[0].ready_s]
    assert memory.max == max(one.peak["host.hwm"] for one in serving)
    assert (memory.min or 0) <= (memory.p50 or 0) <= memory.mean * 1.5
    # By time: the mean in flight is the sum of stays over the time (Little's law).
    stays = sum(len(one.in_flight) * (one.end_s - one.start_s) for one in serving)
    span = sum(one.end_s - one.start_s for one in serving)
    assert running.mean == pytest.approx(stays / span)
    performance = read.results.request_performance
    assert performance is not None and performance.aggregate is not None
    requests, latency = performance.aggregate.requests, performance.aggregate.latency
    assert requests is not None and latency is not None
    done = [one for one in RECORDING.outcomes.values() if one.outcome == "completed"]
    sent = [one for one in RECORDING.outcomes.values() if one.outcome != "not_sent"]
    assert requests.total == len(sent)
    assert len(done) + (requests.failures or 0) + (requests.incomplete or 0) == len(sent)
    assert latency.time_to_first_token is not None
    waits = sorted((one.first_token_s or 0) - (one.intended_s or 0) for one in done)
    assert latency.time_to_first_token.max == pytest.approx(waits[-1])
    assert latency.time_to_first_token.p50 == pytest.approx(waits[(len(waits) + 1) // 2 - 1])


def test_memory_by_class_stands_where_the_schema_allows_more() -> None:
    told = llm_d_report(SUMMARY, RECORDING)["results"]["observability"]["memplan"]
    assert [one["name"] for one in told["classes"]] == [one.name for one in SUMMARY.classes]
    assert told["process_peak_bytes"] == SUMMARY.peak_bytes


def test_a_devices_memory_is_what_its_driver_said() -> None:
    samples = tuple(
        Sample(t_s=float(at), values={"nvml.0.used": 100 + at, "nvml.0.total": 900})
        for at in range(5)
    )
    read = validated(replace(RECORDING, samples=samples)).results.observability
    assert read is not None and read.components is not None
    usage = read.components[0].aggregate and read.components[0].aggregate.gpu_memory_usage
    assert usage is not None and (usage.min, usage.mean, usage.max) == (100, 102, 104)


def test_it_is_written_where_the_files_ending_says_so(
    tmp_path: Path, workloads: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text('{"timestamp": 0, "input_length": 20, "output_length": 5}\n' * 3)
    for name in ("a", "b"):
        model = str(workloads / "scripted.yaml")
        assert run(["replay", str(trace), "--model", model, "--out", str(tmp_path / name)]) == 0
    target = tmp_path / "report.yaml"
    assert run(["report", str(tmp_path / "a"), "--out", str(target)]) == 0
    read = BenchmarkReportV02.model_validate(yaml.safe_load(target.read_text()))
    assert read.run.uid == read_run(tmp_path / "a").header.run_id
    capsys.readouterr()
    both = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert run(["report", *both, "--out", str(tmp_path / "both.yaml")]) == 2
    assert "is of one run, got 2" in capsys.readouterr().err
    assert run(["report", str(tmp_path / "a"), "--out", str(tmp_path / "a.txt")]) == 2
    assert "expected .html or .md, or .yaml for llm-d" in capsys.readouterr().err


def test_a_profiles_run_is_one_too() -> None:
    assert llm_d_report(profile_summary(), profile_recording())["run"]["description"].startswith(
        "memplan profile"
    )
