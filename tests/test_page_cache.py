"""What the page cache holds of a file, against a file whose pages were put in and thrown out."""

import os
from pathlib import Path

import pytest

from memplan.page_cache import PAGE_BYTES, cached_bytes
from memplan.units import MIB


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    with path.open("wb") as out:
        out.write(os.urandom(8 * MIB + 100))
        out.flush()
        os.fsync(out.fileno())
    return path


def dropped(path: Path) -> Path:
    with path.open("rb") as data:
        os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached_bytes([path]):
        pytest.skip("this file system keeps its files in memory")
    return path


def test_a_file_just_written_is_cached_whole(file: Path) -> None:
    assert cached_bytes([file]) == 8 * MIB + 100


def test_a_dropped_file_is_not_cached_and_looking_does_not_bring_it_back(file: Path) -> None:
    assert cached_bytes([dropped(file)]) == 0
    assert cached_bytes([file]) == 0


def test_only_the_pages_that_were_read_are_cached(file: Path) -> None:
    with dropped(file).open("rb", buffering=0) as data:
        os.posix_fadvise(data.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
        data.seek(4 * MIB)
        data.read(MIB)
    assert cached_bytes([file]) == MIB


def test_files_are_added_up_and_an_empty_or_missing_one_has_nothing(
    file: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").touch()
    small = tmp_path / "small"
    small.write_bytes(b"x" * (PAGE_BYTES + 1))
    files = [file, small, tmp_path / "empty", tmp_path / "missing"]
    assert cached_bytes(files) == 8 * MIB + 100 + PAGE_BYTES + 1
    assert cached_bytes([]) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a moment")
def test_a_file_that_the_kernel_does_not_tell_us_of_is_unknown() -> None:
    shell = Path("/bin/sh").resolve()
    assert cached_bytes([shell]) is not None
    os.seteuid(65534)
    try:
        found = cached_bytes([shell])
    finally:
        os.seteuid(0)
    assert found is None
