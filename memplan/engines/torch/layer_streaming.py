"""Decoder layers that are in memory only while they compute: read before use, given back after it.

The first layers stay. Of the others, one computes and the next is on its way. On the host they are
pages of the weight files; for a GPU they stay in host memory and are copied.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import torch
from torch import nn

from memplan.engines.meter import DevicePeaks
from memplan.pages import PAGE_BYTES, Area, file_areas

_PAGEOUT, _POPULATE_READ = 21, 22
"""madvise(2), Linux 5.4 and 5.14; Python 3.11's mmap knows neither. With MADV_DONTNEED alone the pages
would stay in the page cache, charged to the engine, and nothing would be saved on the machine: 176 MiB
a step then cost 23 ms, and 102 to 117 where they are paged out and read from the disk again. Pages
that another process maps too stay in memory for it, and are not paged out."""
_AHEAD_BYTES = 512 << 10
"""The kernel reads no more than the device's readahead for one MADV_WILLNEED (mm/readahead.c). Reading
ahead gains where the disk works beside the processor; on a virtual disk that does not it cost 8 %."""


class Streaming(Protocol):
    layers: int
    """That stay in memory."""
    streamed_bytes: int
    """Of the layers that do not."""

    def take(self) -> Mapping[str, int]:
        """Gauges of the time since the last call: ``engine.weights_streamed``, bytes brought in;
        ``engine.weights_stream_us``, microseconds that steps waited for them or gave them back; and
        ``engine.weights_passing``, host memory of one such layer while it computes, the largest."""
        ...


def place(
    model: nn.Module, *, layer_count: int, keep: int | None, device: torch.device, folder: str
) -> Streaming | None:
    """Brings the model to the device, but for layers that shall be streamed; None where all stay.

    Raises RuntimeError where the weights of streamed layers are no pages of files, on the host.
    """
    if keep is None or keep >= layer_count:
        model.to(device)
        return None
    layers = decoder_layers(model, layer_count)
    if device.type == "cpu":
        return HostStreaming(layers, keep=keep, areas=file_areas(folder))
    streaming = DeviceStreaming(layers, keep=keep, device=device)
    streamed = {id(tensor) for layer in layers[keep:] for tensor in _of(layer)}
    for tensor in _of(model):
        if id(tensor) not in streamed:
            tensor.data = tensor.data.to(device)
    return streaming


def with_streaming(device: DevicePeaks | None, streaming: Streaming | None) -> DevicePeaks | None:
    """What a device tells of a segment, and what streaming tells of it."""
    if streaming is None:
        return device

    def take() -> tuple[Mapping[str, int], Mapping[str, int]]:
        peak, gauges = device() if device is not None else ({}, {})
        return peak, {**gauges, **streaming.take()}

    return take


def decoder_layers(model: nn.Module, layer_count: int) -> list[nn.Module]:
    """Raises RuntimeError where the model has no such list."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == layer_count:
            return list(module)
    raise RuntimeError(f"settings.resident_layers: the model has no list of {layer_count} layers")


class HostStreaming:
    """Layers whose weights are pages of files that this process maps."""

    def __init__(self, layers: list[nn.Module], *, keep: int, areas: tuple[Area, ...]) -> None:
        self.layers = keep
        self._ranges = [_ranges_of(layer, areas) for layer in layers[keep:]]
        self._layer_bytes = [_bytes_of(layer.parameters()) for layer in layers[keep:]]
        self.streamed_bytes = sum(self._layer_bytes)
        self._streamed_bytes, self._waited_s = 0, 0.0
        self._libc = ctypes.CDLL(None, use_errno=True)
        _hook(layers, keep, self._bring, self._give_back, self._ahead)

    def take(self) -> Mapping[str, int]:
        passing_bytes = max(self._layer_bytes) if self._streamed_bytes else 0
        taken = _gauges(self._streamed_bytes, self._waited_s)
        self._streamed_bytes, self._waited_s = 0, 0.0
        return {**taken, "engine.weights_passing": passing_bytes}

    def _bring(self, index: int) -> None:
        began_s = time.perf_counter()
        for start, end in self._ranges[index]:
            # Before Linux 5.14 the pages come as they are touched, and count as computing.
            self._advise(_first_page(start), _page_after(end), _POPULATE_READ)
        self._ahead(index + 1)
        self._streamed_bytes += self._layer_bytes[index]
        self._waited_s += time.perf_counter() - began_s

    def _ahead(self, index: int) -> None:
        for start, end in self._ranges[index] if index < len(self._ranges) else ():
            for at in range(_first_page(start), end, _AHEAD_BYTES):
                self._advise(at, min(at + _AHEAD_BYTES, _page_after(end)), mmap.MADV_WILLNEED)

    def _give_back(self, index: int) -> None:
        """Whole pages only: what shares a page with other weights stays with them."""
        began_s = time.perf_counter()
        for start, end in self._ranges[index]:
            first, last = _page_after(start), _first_page(end)
            if first < last:
                self._advise(first, last, _PAGEOUT)
                self._advise(first, last, mmap.MADV_DONTNEED)  # what another replica maps too
        self._waited_s += time.perf_counter() - began_s

    def _advise(self, start: int, end: int, advice: int) -> None:
        code = self._libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)
        error = ctypes.get_errno() if code != 0 else 0
        if error and (error != errno.EINVAL or advice == mmap.MADV_DONTNEED):
            raise OSError(error, f"madvise of a layer's weights: {os.strerror(error)}")


class DeviceStreaming:
    """Layers whose weights stay in host memory, copied to the GPU one layer ahead of the computation.

    Not run on a GPU yet.
    """

    def __init__(self, layers: list[nn.Module], *, keep: int, device: torch.device) -> None:
        self.layers = keep
        self._tensors = [list(_of(layer)) for layer in layers[keep:]]
        self._hosts = [[tensor.data for tensor in tensors] for tensors in self._tensors]
        self._layer_bytes = [_bytes_of(tensors) for tensors in self._tensors]
        self.streamed_bytes = sum(self._layer_bytes)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._device = device
        self._coming: dict[int, list[torch.Tensor]] = {}
        self._streamed_bytes, self._waited_s = 0, 0.0
        _hook(layers, keep, self._bring, self._give_back, self._ahead)

    def take(self) -> Mapping[str, int]:
        taken = _gauges(self._streamed_bytes, self._waited_s)
        self._streamed_bytes, self._waited_s = 0, 0.0
        return taken

    def _bring(self, index: int) -> None:
        began_s = time.perf_counter()
        self._ahead(index)
        self._stream.synchronize()  # the copies are what this step waits for, and is told of
        computing = torch.cuda.current_stream(self._device)
        for tensor, copy in zip(self._tensors[index], self._coming.pop(index), strict=True):
            copy.record_stream(computing)  # made on another stream than the one that uses it
            tensor.data = copy
        self._ahead(index + 1)
        self._streamed_bytes += self._layer_bytes[index]
        self._waited_s += time.perf_counter() - began_s

    def _ahead(self, index: int) -> None:
        if index >= len(self._hosts) or index in self._coming:
            return
        with torch.cuda.stream(self._stream):
            self._coming[index] = [
                host.to(self._device, non_blocking=True) for host in self._hosts[index]
            ]

    def _give_back(self, index: int) -> None:
        for tensor, host in zip(self._tensors[index], self._hosts[index], strict=True):
            tensor.data = host


def _of(layer: nn.Module) -> list[torch.Tensor]:
    return [*layer.parameters(), *layer.buffers()]


def _bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _hook(
    layers: list[nn.Module],
    keep: int,
    bring: Callable[[int], None],
    give_back: Callable[[int], None],
    ahead: Callable[[int], None],
) -> None:
    """Calls ``bring`` before a layer beyond the first ``keep`` and ``give_back`` after it, and ``ahead``
    for the first of them when a step begins. Layers are counted from there."""

    def before(index: int) -> Callable[..., None]:
        return lambda *_: bring(index)

    def after(index: int) -> Callable[..., None]:
        return lambda *_: give_back(index)

    for index, layer in enumerate(layers[keep:]):
        layer.register_forward_pre_hook(before(index))
        layer.register_forward_hook(after(index))
    if keep:
        layers[0].register_forward_pre_hook(lambda *_: ahead(0))


def _ranges_of(layer: nn.Module, areas: tuple[Area, ...]) -> list[tuple[int, int]]:
    """The addresses of its weights, ascending, with neighbours joined. Raises RuntimeError where one is
    not in a file: given back, it would be gone."""
    found: list[tuple[int, int]] = []
    held = [tensor for tensor in layer.parameters() if tensor.nbytes]
    for tensor in sorted(held, key=lambda one: one.data_ptr()):
        start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        if not any(area.start <= start and end <= area.end for area in areas):
            raise RuntimeError(
                "settings.resident_layers needs weights that are pages of files, and load is read"
            )
        if found and start - found[-1][1] < PAGE_BYTES:
            start = found.pop()[0]
        found.append((start, end))
    return found


def _gauges(streamed_bytes: int, waited_s: float) -> Mapping[str, int]:
    return {
        "engine.weights_streamed": streamed_bytes,
        "engine.weights_stream_us": round(waited_s * 1e6),
    }


def _first_page(address: int) -> int:
    return address - address % PAGE_BYTES


def _page_after(address: int) -> int:
    return address + -address % PAGE_BYTES
