"""Every reader of traces against damaged files, by coverage: no crash, no hang, no invented row.

Each format has its share of the time in a process of its own, under libFuzzer (Atheris), which
keeps the inputs that reach new branches. It starts from the examples in tests/workload/test_formats.py
and holds each reading to this: it ends with InputError or with a trace; within ten seconds; a trace
has no more rows than its file has lines or objects; every row has tokens on both sides, a finite time,
and the rows are in order; and a summary of the file, which may be read by columns, is of the same rows.

    pip install atheris
    python benchmarks/fuzz_readers.py --minutes 60 --out reports/fuzz_readers.json

An input that breaks a reader is kept in the folder ``--keep`` and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COLUMNS = "timestamp=at,input=prompt,output=answer,unit=s"
OWN_CSV = "at,prompt,answer\n0,5,3\n1.5,7,2\n2,9,1\n"
HANG_S, INPUT_BYTES, RSS_MB = 10, 4096, 2048
STATS = {"executions": "number_of_executed_units", "slowest_s": "slowest_unit_time_sec"}


def examples() -> dict[str, str]:
    """Format → a small file of it; ``columns`` is a CSV of the user's own."""
    sys.path.insert(0, str(ROOT / "tests" / "workload"))
    from test_formats import EXAMPLES

    return {name: content for name, (content, _) in EXAMPLES.items()} | {"columns": OWN_CSV}


def check(path: Path, content: bytes, reader: str) -> None:
    """Raises whatever a reader should not have raised, and AssertionError for a row nobody wrote, and
    where a summary, which may be read by columns, is not one of the same rows."""
    from memplan.errors import InputError
    from memplan.specs import BUILTIN_CLASSES
    from memplan.workload.summary import summarise_trace
    from memplan.workload.trace import read_trace

    path.write_bytes(content)
    columns = COLUMNS if reader == "columns" else None
    format = None if reader in ("columns", "sniffed") else reader
    try:
        trace = read_trace(path, format, columns=columns)
    except InputError as error:
        try:
            summarise_trace(path, BUILTIN_CLASSES, format, columns=columns)
        except InputError as other:
            assert other.message == error.message, (other.message, error.message)
            return
        raise AssertionError(f"a summary of what cannot be read: {error.message}") from error
    assert 0 < trace.rows_kept <= trace.rows_read, (trace.rows_kept, trace.rows_read)
    assert trace.rows_kept <= content.count(b"\n") + 1 + content.count(b"{"), trace.rows_kept
    times = [row.timestamp_s for row in trace.rows]
    assert all(map(math.isfinite, times)), times
    assert times == sorted(times) and times[0] == 0, times
    assert all(row.input_tokens > 0 and row.output_tokens > 0 for row in trace.rows)
    summary = summarise_trace(path, BUILTIN_CLASSES, format, columns=columns)
    assert summary.head.rows_kept == trace.rows_kept
    assert summary.head.sha256 == trace.sha256
    assert summary.head.time_origin == trace.time_origin
    assert math.isclose(summary.shape.span_s, trace.span_s, rel_tol=1e-9, abs_tol=1e-6)


ODD = (None, True, 0, -1, 1.5, 1e308, float("nan"), 10**400, 2**63, "", "0", "-1", "é", "{", "[0", [],
       {}, [0], [[]], {"a": 0}, "2024-02-30T25:00:00Z", "9" * 5000)  # fmt: skip


def damaged(content: bytes, seed: int) -> bytes:
    """The file with one value, field or line of it replaced, left out or written twice: it stays JSON
    or CSV, so that what reads the values is reached, which cut bytes seldom reach."""
    chance = random.Random(seed)
    lines = content.decode("utf-8", "replace").splitlines() or [""]
    at = chance.randrange(len(lines))
    if chance.random() < 0.1:
        lines[at : at + 1] = chance.choice([[], [lines[at]] * 2])
        return "\n".join(lines).encode()
    try:
        record = json.loads(lines[at])
    except (ValueError, RecursionError):
        fields = lines[at].split(",")
        fields[chance.randrange(len(fields))] = str(chance.choice(ODD))
        lines[at] = ",".join(fields)
    else:
        lines[at] = json.dumps(_damaged_value(record, chance))
    return "\n".join(lines).encode("utf-8", "replace")


def _damaged_value(value: Any, chance: random.Random) -> Any:
    keys = (
        list(value)
        if isinstance(value, dict)
        else list(range(len(value)))
        if isinstance(value, list)
        else []
    )
    if not keys or chance.random() < 0.1:
        return chance.choice(ODD)
    key = chance.choice(keys)
    if chance.random() < 0.15:
        del value[key]
    else:
        value[key] = _damaged_value(value[key], chance)
    return value


def fuzz_one(reader: str, arguments: list[str]) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["memplan.workload"]):
        import memplan.workload.trace  # noqa: F401
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        path = Path(folder) / "trace"
        atheris.Setup(
            [sys.argv[0], *arguments],
            lambda content: check(path, content, reader),
            custom_mutator=lambda content, most, seed: (
                damaged(content, seed)[:most] if seed % 2 else atheris.Mutate(content, most)
            ),
        )
        atheris.Fuzz()


def fuzz(reader: str, seeds: list[str], seconds: int, keep: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as corpus:
        for number, content in enumerate(seeds):
            (Path(corpus) / f"seed{number}").write_text(content)
        words = Path(corpus).with_suffix(".dict")
        found = sorted({word for one in seeds for word in re.findall(r"[\w.]{3,40}", one)})
        words.write_text("".join(f'"{word}"\n' for word in found))
        began = time.monotonic()
        done = subprocess.run(
            [
                sys.executable, __file__, "--reader", reader, corpus, f"-dict={words}",
                f"-max_total_time={seconds}", f"-timeout={HANG_S}", f"-max_len={INPUT_BYTES}",
                f"-rss_limit_mb={RSS_MB}", "-print_final_stats=1", f"-artifact_prefix={keep / reader}-",
            ],
            capture_output=True, text=True, check=False, errors="replace",
        )  # fmt: skip
        words.unlink()
        output = done.stdout + done.stderr
        stats = {
            name: int(match.group(1))
            if (match := re.search(rf"stat::{key}:\s*(\d+)", output))
            else None
            for name, key in STATS.items()
        }
        return {
            "reader": reader,
            "seconds": round(time.monotonic() - began, 1),
            **stats,
            "inputs_kept": len(list(Path(corpus).iterdir())),
            "exit_code": done.returncode,
            "failure": None if done.returncode == 0 else output[-3000:],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description="Fuzz every reader of traces.")
    parser.add_argument("--minutes", type=float, default=60, help="in total, shared evenly")
    parser.add_argument("--keep", type=Path, default=Path("/tmp/memplan-fuzz"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help="one reader")
    options = parser.parse_args()
    options.keep.mkdir(parents=True, exist_ok=True)
    known = examples()
    readers = [options.only] if options.only else [*known, "sniffed"]
    seconds = max(1, round(options.minutes * 60 / len(readers)))
    results = []
    for reader in readers:
        seeds = [known[reader]] if reader in known else list(known.values())
        results.append(fuzz(reader, seeds, seconds, options.keep))
        print(json.dumps(results[-1]), flush=True)
    report = {
        "minutes": round(sum(one["seconds"] for one in results) / 60, 1),
        "executions": sum(one["executions"] or 0 for one in results),
        "failed": [one["reader"] for one in results if one["failure"]],
        "readers": results,
    }
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    sys.exit(bool(report["failed"]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--reader"]:
        fuzz_one(sys.argv[2], sys.argv[3:])
    main()
