"""Weights that map a file, copied into memory of our own: same values, same sharing, no file pages."""

import ctypes
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from memplan.engines.torch.load_mode import copy_into_memory  # noqa: E402
from memplan.pages import file_areas  # noqa: E402
from memplan.procfs import ProcessMemory  # noqa: E402
from memplan.units import MIB  # noqa: E402

ROWS, COLUMNS = 4096, 1024  # 16 MiB in fp32
LAYERS = 4


class Model(torch.nn.Module):  # type: ignore[misc]
    """Four layers, a head tied to the first, a buffer; and one weight that was never in the file."""

    def __init__(self, stored: dict[str, "torch.Tensor"]) -> None:
        super().__init__()
        weights = [torch.nn.Parameter(stored[f"layer{i}"], False) for i in range(LAYERS)]
        self.layers = torch.nn.ParameterList(weights)
        self.head = torch.nn.Parameter(stored["layer0"], False)
        self.register_buffer("scale", stored["scale"])
        self.own = torch.nn.Parameter(torch.ones(8), False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    tensors = {f"layer{i}": torch.randn(ROWS, COLUMNS) for i in range(LAYERS)}
    safetensors_torch.save_file(
        {**tensors, "scale": torch.arange(7.0)}, tmp_path / "model.safetensors"
    )
    return tmp_path


def mapped(folder: Path) -> Model:
    return Model(safetensors_torch.load_file(folder / "model.safetensors"))


def is_in_file(tensor: "torch.Tensor", folder: Path) -> bool:
    address = tensor.data_ptr()
    return any(area.start <= address < area.end for area in file_areas(str(folder)))


def test_values_stay_and_no_weight_maps_the_file_any_more(folder: Path) -> None:
    model = mapped(folder)
    assert is_in_file(model.layers[0], folder)
    before = [tensor.clone() for tensor in [*model.parameters(), *model.buffers()]]
    own = model.own.data_ptr()
    copy_into_memory(model, str(folder))
    after = [*model.parameters(), *model.buffers()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(is_in_file(tensor, folder) for tensor in after)
    assert model.own.data_ptr() == own


def test_weights_that_shared_their_bytes_still_do(folder: Path) -> None:
    model = mapped(folder)
    copy_into_memory(model, str(folder))
    assert model.head.data_ptr() == model.layers[0].data_ptr()
    assert len({layer.data_ptr() for layer in model.layers}) == LAYERS


def test_loading_peaks_one_weight_above_what_stays(folder: Path) -> None:
    model = mapped(folder)
    layer_bytes = ROWS * COLUMNS * 4
    ctypes.CDLL(None).malloc_trim(0)  # what made the file left its heap behind
    with ProcessMemory() as memory:
        before = memory.read()
        memory.reset_peak()
        copy_into_memory(model, str(folder))
        after = memory.read()
    assert after["host.anon"] - before["host.anon"] == pytest.approx(LAYERS * layer_bytes, abs=MIB)
    assert after["host.hwm"] - after["host.rss"] <= layer_bytes + MIB
