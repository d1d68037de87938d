"""What the sampler wrote is read whole, or up to its last whole record, and never guessed at."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from builders import header

from memplan.errors import RecordingError
from memplan.recording import WITNESS, RunWriter, read_run
from memplan.witness_file import read_witness

S = 10**9
HEADER = struct.pack("<8s3q", b"MWITNSS1", 1_000_000, 100 * S, 2)
READINGS = struct.pack("<6q", 101 * S, 4096, 0, 7_000_000, 102 * S, 8192)


def written(folder: Path, data: bytes) -> Path:
    path = folder / WITNESS
    path.write_bytes(data)
    return path


def test_times_count_from_the_runs_beginning(tmp_path: Path) -> None:
    witness, is_whole = read_witness(written(tmp_path, HEADER + READINGS))
    assert witness is not None
    assert is_whole
    assert list(witness.t_s) == [1.0, 2.0]
    assert list(witness.rss_bytes) == [4096, 8192]
    assert (witness.period_s, witness.policy, witness.cpu_s) == (0.001, "real-time", 0.007)


@pytest.mark.parametrize("lost", range(1, 16))
def test_a_torn_last_record_is_dropped_wherever_it_was_torn(tmp_path: Path, lost: int) -> None:
    witness, is_whole = read_witness(written(tmp_path, (HEADER + READINGS)[:-lost]))
    assert witness is not None
    assert not is_whole
    assert list(witness.rss_bytes) == [4096]


@pytest.mark.parametrize(("data", "is_whole"), [(b"", True), (HEADER[:31], False)])
def test_without_a_header_there_is_no_witness(tmp_path: Path, data: bytes, is_whole: bool) -> None:
    assert read_witness(written(tmp_path, data)) == (None, is_whole)


def test_no_file_is_no_witness_and_no_fault(tmp_path: Path) -> None:
    assert read_witness(tmp_path / WITNESS) == (None, True)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a witness file"):
        read_witness(written(tmp_path, b"x" * 64))


def run_folder(folder: Path, data: bytes) -> Path:
    RunWriter(folder, header()).close()
    written(folder, data)
    return folder


def test_a_run_has_its_witness_and_says_when_its_tail_is_torn(tmp_path: Path) -> None:
    run = read_run(run_folder(tmp_path / "run", (HEADER + READINGS)[:-1]))
    assert run.witness is not None
    assert list(run.witness.rss_bytes) == [4096]
    assert any(f.code == "torn_tail" and WITNESS in f.text for f in run.findings)


def test_a_run_whose_witness_is_no_witness_says_what_to_do(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", b"x" * 64)
    with pytest.raises(RecordingError, match=r"witness\.bin: cannot be read") as told:
        read_run(folder)
    assert "remove witness.bin" in told.value.hint


def test_force_replaces_the_witness_of_the_run_before(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run", HEADER + READINGS)
    RunWriter(folder, header(), force=True).close()
    assert read_run(folder).witness is None
