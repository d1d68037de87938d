"""Facts of the machine, also where a part of it does not answer."""

from collections.abc import Sequence

import pytest

from memplan.machine import gpu_names, read_machine


class Nvml:
    """As much of pynvml as is asked for names; a device without one has been lost."""

    class NVMLError(Exception): ...

    def __init__(self, names: Sequence[str | None], *, fails_at: str = "") -> None:
        self._names = names
        self._fails_at = fails_at
        self.is_open = False

    def nvmlInit(self) -> None:  # noqa: N802 - the driver's name
        self._answer("init")
        self.is_open = True

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.is_open = False

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._answer("count")
        return len(self._names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> str:  # noqa: N802
        name = self._names[handle]
        if name is None:
            raise self.NVMLError("GPU is lost")
        return name

    def _answer(self, call: str) -> None:
        if call == self._fails_at:
            raise self.NVMLError("Driver Not Loaded")


@pytest.mark.parametrize(
    ("nvml", "names"),
    [
        (Nvml(["A", "B"]), ("A", "B")),
        (Nvml(["A", None]), ("A", "unknown (GPU is lost)")),
        (Nvml(["A"], fails_at="count"), ("unknown (Driver Not Loaded)",)),
        (Nvml(["A"], fails_at="init"), ()),
    ],
)
def test_a_gpu_that_does_not_answer_is_told_from_one_that_is_absent(
    nvml: Nvml, names: tuple[str, ...]
) -> None:
    assert gpu_names(nvml) == names
    assert not nvml.is_open


def test_this_machine_has_memory_and_a_kernel() -> None:
    machine = read_machine()
    assert machine.memory_bytes > 0
    assert machine.cpu_count >= 1
    assert machine.kernel
