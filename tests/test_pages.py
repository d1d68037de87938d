"""Pages are counted by the kernel: what was touched, and nothing else."""

import ctypes
import mmap
from itertools import pairwise
from pathlib import Path

import pytest

from memplan.pages import PAGE_BYTES, PageMap, areas, file_areas, give_back

ANONYMOUS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


def address_of(area: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(area))


@pytest.fixture(params=["scan", "read"])
def pages(request: pytest.FixtureRequest) -> PageMap:
    """Both ways to count; the second is that of kernels before 6.7."""
    found = PageMap()
    found.can_scan = request.param == "scan"
    return found


def untouched(pages: int) -> mmap.mmap:
    area = mmap.mmap(-1, pages * PAGE_BYTES, flags=ANONYMOUS)
    area.madvise(mmap.MADV_NOHUGEPAGE)
    return area


@pytest.mark.parametrize("count", [5000, 60_000])
def test_touched_pages_are_resident_and_no_others(pages: PageMap, count: int) -> None:
    """More separate runs than one call to the kernel returns, and over more than one page table: there
    it tells of some twice."""
    area = untouched(count)
    for page in range(0, count, 2):
        area[page * PAGE_BYTES] = 1
    start = address_of(area)
    assert pages.resident_bytes(start, start + len(area)) == count // 2 * PAGE_BYTES


def test_resident_regions_are_ascending_and_apart() -> None:
    area, touched = untouched(60_000), set()
    for page in range(0, 60_000, 2):
        touched.add(address_of(area) + page * PAGE_BYTES)
        area[page * PAGE_BYTES] = 1
    start = address_of(area)
    try:
        found = list(PageMap().resident_regions(start, start + len(area)))
    except OSError:
        pytest.skip("regions are told from Linux 6.7 on")
    assert all(a < b and b <= c for (a, b), (c, _) in pairwise(found))
    told = [page for first, last in found for page in range(first, last, PAGE_BYTES)]
    assert told == sorted(touched)


def test_a_range_is_widened_to_whole_pages(pages: PageMap) -> None:
    area = untouched(3)
    area[PAGE_BYTES] = 1
    start = address_of(area)
    assert pages.resident_bytes(start + PAGE_BYTES + 5, start + PAGE_BYTES + 6) == PAGE_BYTES


def test_pages_of_a_file_are_told_from_private_copies(pages: PageMap, tmp_path: object) -> None:
    path = f"{tmp_path}/weights"
    with open(path, "wb+") as file:  # noqa: PTH123 - its descriptor is what mmap wants
        file.write(bytes(4 * PAGE_BYTES))
        file.flush()
        area = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE)
    assert area[0] == area[PAGE_BYTES] == 0  # reads fault the file's pages in, neighbours too
    area[2 * PAGE_BYTES] = 1  # a write makes a copy of its own
    start = address_of(area)
    end = start + len(area)
    assert pages.resident_bytes(start, end) == 4 * PAGE_BYTES
    assert pages.resident_bytes(start, end, anonymous_only=True) == PAGE_BYTES
    (mapped,) = file_areas(str(tmp_path))
    assert (mapped.start, mapped.name, mapped.is_file) == (start, path, True)


def test_the_shared_page_of_zeros_is_not_resident() -> None:
    area = untouched(2)
    assert area[0] == 0
    start = address_of(area)
    assert PageMap().resident_bytes(start, start + len(area)) == 0


def test_what_is_given_back_is_no_longer_resident(pages: PageMap) -> None:
    area = untouched(4)
    area[:] = b"1" * len(area)
    start = address_of(area)
    give_back(start + PAGE_BYTES, PAGE_BYTES)
    assert pages.resident_bytes(start, start + len(area)) == 3 * PAGE_BYTES
    with pytest.raises(OSError, match="Invalid"):
        give_back(start + 1, PAGE_BYTES)


def test_areas_are_ascending_and_hold_the_heap() -> None:
    found = areas()
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert any(area.name == "[heap]" for area in found)


def test_a_mapped_file_is_found_below_its_folder_and_under_no_other(tmp_path: Path) -> None:
    folder, other = tmp_path / "model-2", tmp_path / "model"
    folder.mkdir()
    other.mkdir()
    path = folder / "some weights.bin"
    path.write_bytes(bytes(3 * PAGE_BYTES))
    with path.open("rb") as data, mmap.mmap(data.fileno(), 0, access=mmap.ACCESS_READ) as memory:
        (found,) = file_areas(str(folder))
        assert found.size_bytes == len(memory)
        assert file_areas(str(other)) == ()
    assert file_areas(str(folder)) == ()


def test_a_mapped_file_is_found_through_a_link_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    path = tmp_path / "real" / "weights.bin"
    path.write_bytes(bytes(PAGE_BYTES))
    with path.open("rb") as data, mmap.mmap(data.fileno(), 0, access=mmap.ACCESS_READ):
        assert len(file_areas(str(tmp_path / "link"))) == 1
