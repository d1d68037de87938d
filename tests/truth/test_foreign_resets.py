"""Another process that resets the engine's high-water mark is noticed, and only then."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memplan.cli import run
from memplan.recording import read_run
from memplan.stats.findings import findings_of

MB = 10**6
# Steps of 20 ms under spikes that live for 10: resets fall into what is left of a step after one.
MODEL = """\
memplan: 1
name: ballast
engine: ballast
settings: {max_requests: 4, max_kv_tokens: 8192, device: cpu, block_tokens: 16}
script: {weights: 100MiB, runtime: 20MiB, kv_bytes_per_token: 16, prefill_tokens_per_s: 20000,
         decode_s_per_step: 20ms, activation_bytes_per_token: 64, vocab_tokens: 1000,
         context_tokens: 4096}
self_test: {spike: 50MB, hold: 10ms, count: 15, every: 100ms, seed: 7}
"""
TRACE = '{"timestamp": 0, "input_length": 100, "output_length": 150}\n'
RESETTER = """
import os, pathlib, sys, time
ENGINE = b"memplan.engines" + b".worker"  # in two parts, or it would find itself
def engine():
    for children in pathlib.Path(f"/proc/{sys.argv[1]}/task").glob("*/children"):
        for pid in children.read_text().split():
            if ENGINE in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
while True:
    time.sleep(0.002)
    try:
        pid = engine()
        if pid:
            pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        continue
"""


def codes_of(folder: Path) -> dict[str, str]:
    folder.mkdir()
    (folder / "model.yaml").write_text(MODEL)
    (folder / "trace.jsonl").write_text(TRACE)
    assert run(["replay", str(folder / "trace.jsonl"), "--out", str(folder / "run")]) == 0
    return {f.code: f.text for f in findings_of(read_run(folder / "run"), (), ())}


@contextmanager
def somebody_resets_the_mark() -> Iterator[None]:
    with subprocess.Popen([sys.executable, "-c", RESETTER, str(os.getpid())]) as resetter:
        try:
            yield
        finally:
            resetter.kill()


def test_a_foreign_reset_is_named_with_what_it_took_and_there_is_none_without_it(
    tmp_path: Path,
) -> None:
    alone = codes_of(tmp_path / "alone")
    with somebody_resets_the_mark():
        disturbed = codes_of(tmp_path / "disturbed")

    assert not {"foreign_reset", "peak_below_sample", "no_witness"} & set(alone)
    assert "self_test" in alone
    assert "something else reset the kernel's high-water mark" in disturbed["peak_below_sample"]
    assert "below what was resident when they began" in disturbed["foreign_reset"]
    for text in (disturbed["peak_below_sample"], disturbed["foreign_reset"]):
        told = re.search(r"by ([\d,]+) bytes at most", text)
        assert told is not None
        assert 5 * MB < int(told[1].replace(",", "")) < 51 * MB
