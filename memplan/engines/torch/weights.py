"""The weights of a loaded model: how many bytes they are, where they lie, how many are resident."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from memplan.engines.torch.layer_streaming import Streaming
from memplan.engines.torch.quantized_folder import read_manifest
from memplan.engines.torch.weight_forms import form_text
from memplan.pages import Area, PageMap, file_areas


class Weights:
    """Counts every distinct tensor of ``model`` once; files are those below ``folder``."""

    def __init__(self, model: torch.nn.Module, folder: Path, streaming: Streaming | None) -> None:
        self._folder = str(folder)
        self._streaming = streaming
        sizes: dict[tuple[bool, int], int] = {}
        for tensor in [*model.parameters(), *model.buffers()]:
            place = (tensor.device.type == "cpu", tensor.data_ptr())
            sizes[place] = max(sizes.get(place, 0), tensor.nbytes)
        self._on_host = {address: size for (is_host, address), size in sizes.items() if is_host}
        mapped = file_areas(self._folder)
        self.total_bytes = sum(sizes.values())
        self.mapped_bytes = sum(
            size for address, size in self._on_host.items() if _within(address, mapped)
        )

    def resident(self) -> Mapping[str, int]:
        """``engine.weights_resident``; of it ``…_mapped`` from files and ``…_heap``; and
        ``engine.weight_files_resident``: all pages of the files."""
        pages = PageMap()
        mapped = file_areas(self._folder)
        resident = {
            address: min(size, pages.resident_bytes(address, address + size))
            for address, size in self._on_host.items()
        }
        in_files = sum(size for address, size in resident.items() if _within(address, mapped))
        return {
            "engine.weight_files_resident": sum(
                pages.resident_bytes(area.start, area.end) for area in mapped
            ),
            "engine.weights_resident": sum(resident.values()),
            "engine.weights_resident_mapped": in_files,
            "engine.weights_resident_heap": sum(resident.values()) - in_files,
        }

    def settings(self) -> Mapping[str, str]:
        """The forms of a model that is quantized, and what of a streamed one stays in memory."""
        manifest = read_manifest(Path(self._folder))
        told = {} if manifest is None else {"weight_forms": form_text(manifest.forms.values())}
        if self._streaming is not None:
            told["resident_layers"] = str(self._streaming.layers)
            told["streamed_bytes_a_step"] = str(self._streaming.streamed_bytes)
        return told


def _within(address: int, areas: tuple[Area, ...]) -> bool:
    return any(area.start <= address < area.end for area in areas)
