"""Where weights live after loading: pages of the file that replicas share, or memory of our own."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from memplan.pages import PAGE_BYTES, file_areas, give_back

LOAD_MODES: Mapping[str, str] = {
    "mapped": "mapped safetensors",
    "read": "safetensors read into memory",
}


def copy_into_memory(model: torch.nn.Module, folder: str) -> None:
    """Gives every weight that maps a file below ``folder`` anonymous memory of its own.

    Tensor by tensor, and each one's file pages are given back before the next is copied, so that
    loading peaks one tensor above what stays. What the page cache holds of the files stays there.
    Weights that shared their bytes (a head tied to the embedding) still do.
    """
    areas = file_areas(folder)
    copies: dict[tuple[int, torch.Size], torch.Tensor] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        address = tensor.data_ptr()
        # A quantized tensor is a wrapper without an address; its parts were made in memory.
        if not any(area.start <= address < area.end for area in areas):
            continue
        key = (address, tensor.shape)
        if key not in copies:
            copies[key] = tensor.data.clone()
            first = address - address % PAGE_BYTES
            give_back(first, address + tensor.numel() * tensor.element_size() - first)
        tensor.data = copies[key]
