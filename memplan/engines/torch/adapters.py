"""LoRA adapters inside the engine: which are resident, and what they add to the rows of their requests.

hot: its matrices are in memory of its own, in the compute dtype. warm: its file is mapped, and none of
the mapping is resident. cold: nothing of it is there. One step may hold rows of several adapters: every
module that one of them targets adds to each row what the row's adapter says.
"""

from __future__ import annotations

import mmap
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from memplan.engines.sequence import Row
from memplan.engines.torch.adapter_files import AdapterFile, StoredTensor
from memplan.engines.torch.quantized_modules import INT4_GROUP, Int4Linear, Int8Linear
from memplan.engines.torch.wide_products import is_slow_in, tiled_product
from memplan.pages import PAGE_BYTES
from memplan.units import bytes_text

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ALIGNMENT_BYTES = 64
_MOST_FAULTS = 3

Matrices = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


class AdapterSet:
    """At most ``most`` of ``files`` are hot at once; the one that was unused the longest goes.

    Raises RuntimeError where one does not fit the model.
    """

    def __init__(
        self,
        model: nn.Module,
        files: Sequence[AdapterFile],
        *,
        most: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._files = {file.name: file for file in files}
        self._most = most
        self._dtype = dtype
        self._device = device
        self._compute = torch.float32 if is_slow_in(dtype, device) else dtype
        self._mappings: dict[str, mmap.mmap] = {}
        self._hot: OrderedDict[str, _Hot] = OrderedDict()
        """The one that was unused the longest first."""
        self._active: list[tuple[Matrices, slice | torch.Tensor]] = []
        self._tokens = 0
        self._reached: set[str] | None = set()
        faults = [fault for file in files for fault in _misfits(file, model)]
        if faults:
            more = f" and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
            raise RuntimeError("settings.adapters: " + "; ".join(faults[:_MOST_FAULTS]) + more)
        self._targets = {module for file in files for module in file.matrices}
        for name in self._targets:
            model.get_submodule(name).register_forward_hook(self._adding(name))

    @property
    def names(self) -> Collection[str]:
        return self._files.keys()

    @property
    def resident_bytes(self) -> int:
        return sum(hot.size_bytes for hot in self._hot.values())

    @property
    def most_bytes(self) -> int:
        """Of the largest that may be hot together."""
        sizes = sorted((self._bytes_of(file) for file in self._files.values()), reverse=True)
        return sum(sizes[: self._most])

    def start(self, state: str) -> None:
        """Brings them to where ``settings.adapters_start`` wants them; of hot ones, the first."""
        if state == "hot":
            first = list(self._files)[: self._most]
            self.bring(first, running=first)
        elif state == "warm":
            for name in self._files:
                self._mapping(name)

    def bring(self, names: Collection[str], *, running: Collection[str]) -> Mapping[str, float]:
        """Makes these hot; others go, but none of ``running``. Seconds that each took which was not."""
        took = {}
        for name in names:
            if name in self._hot:
                self._hot.move_to_end(name)
                continue
            began_s = time.monotonic()
            if len(self._hot) >= self._most:
                idle = next((one for one in self._hot if one not in running), None)
                assert idle is not None, "the scheduler lets no more in than may be hot"
                del self._hot[idle]
            self._hot[name] = self._heated(self._files[name])
            took[name] = time.monotonic() - began_s
        return took

    def begin_step(self, rows: Iterable[Row]) -> None:
        """What each packed token of the step that is about to run belongs to."""
        places: dict[str, list[int]] = {}
        self._tokens = 0
        for row in rows:
            if row.sequence.adapter:
                span = range(self._tokens, self._tokens + row.count)
                places.setdefault(row.sequence.adapter, []).extend(span)
            self._tokens += row.count
        self._active = [
            (self._hot[name].matrices, _place(tokens, self._device))
            for name, tokens in places.items()
        ]

    def end_step(self) -> None:
        """After the first step: raises RuntimeError where the model's code went around a module."""
        missed = self._targets - self._reached if self._reached is not None else ()
        self._active, self._reached = [], None
        if missed:
            raise RuntimeError(
                f"settings.adapters: {min(missed)} is a target of an adapter, and this model's code "
                "does not call it"
            )

    def text(self) -> str:
        """What there is, for the recording."""
        each = ", ".join(
            f"{file.name} (rank {file.rank}, {bytes_text(self._bytes_of(file))})"
            for file in self._files.values()
        )
        return f"{each}; {min(self._most, len(self._files))} resident at most"

    # --- steps -----------------------------------------------------------------------------

    def _adding(self, name: str) -> Any:
        """A hook that adds to the output of one module, row by row."""

        def add(_: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
            if self._reached is not None:
                self._reached.add(name)
                if args[0].shape[:2] != (1, self._tokens):
                    raise RuntimeError(
                        f"settings.adapters: {name} does not see the tokens of a step in their order"
                    )
            for matrices, place in self._active:
                if name not in matrices:
                    continue
                down, up = matrices[name]
                inner = tiled_product(args[0][0, place], down, compute=self._compute)
                added = tiled_product(inner, up, compute=self._compute).to(output.dtype)
                if isinstance(place, slice):
                    output[0, place] += added
                else:
                    output[0].index_add_(0, place, added)

        return add

    def _heated(self, file: AdapterFile) -> _Hot:
        """Its matrices in memory of their own; its file's pages are given back as they were copied."""
        mapping = self._mapping(file.name)
        shapes = [tensor.shape for pair in file.matrices.values() for tensor in pair]
        hot = _Hot(self._bytes_of(file), dtype=self._dtype, device=self._device)
        copies = iter(hot.take(shapes))
        matrices = {}
        for module, (down, up) in file.matrices.items():
            held = next(copies), next(copies)
            held[0].copy_(_stored(mapping, down))
            held[1].copy_(_stored(mapping, up).float().mul_(file.scale))
            matrices[module] = held
            mapping.madvise(mmap.MADV_DONTNEED)
        hot.matrices = matrices
        return hot

    def _mapping(self, name: str) -> mmap.mmap:
        if name not in self._mappings:
            with self._files[name].path.open("rb") as file:
                # Copy-on-write, because torch wants memory that it may write to; it never does.
                self._mappings[name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        return self._mappings[name]

    def _bytes_of(self, file: AdapterFile) -> int:
        """Of its matrices in the compute dtype, each on a border of its own."""
        item = self._dtype.itemsize
        return sum(
            _aligned(tensor.shape[0] * tensor.shape[1] * item)
            for pair in file.matrices.values()
            for tensor in pair
        )


class _Hot:
    """One piece of memory for all matrices of an adapter: a mapping of its own on the host, so that all
    of it goes back to the kernel with the adapter."""

    matrices: Matrices

    def __init__(self, size_bytes: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self.size_bytes = size_bytes
        if device.type == "cpu":
            self.size_bytes = -(-size_bytes // PAGE_BYTES) * PAGE_BYTES
            memory = mmap.mmap(-1, self.size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            self._flat = torch.frombuffer(memory, dtype=dtype)
        else:
            self._flat = torch.empty(size_bytes // dtype.itemsize, dtype=dtype, device=device)

    def take(self, shapes: Iterable[tuple[int, int]]) -> Iterable[torch.Tensor]:
        """A view for each shape, one behind the other."""
        at = 0
        for shape in shapes:
            count = shape[0] * shape[1]
            yield self._flat[at : at + count].view(shape)
            at += _aligned(count * self._dtype.itemsize) // self._dtype.itemsize


def _stored(mapping: mmap.mmap, tensor: StoredTensor) -> torch.Tensor:
    count = tensor.shape[0] * tensor.shape[1]
    dtype = _DTYPES[tensor.dtype]
    return torch.frombuffer(mapping, dtype=dtype, count=count, offset=tensor.begin).view(
        tensor.shape
    )


def _place(tokens: list[int], device: torch.device) -> slice | torch.Tensor:
    """One run of tokens is a view, and costs no copy."""
    if tokens[-1] - tokens[0] == len(tokens) - 1:
        return slice(tokens[0], tokens[-1] + 1)
    return torch.tensor(tokens, device=device)


def _misfits(file: AdapterFile, model: nn.Module) -> list[str]:
    """What of an adapter the model has no place for."""
    modules = dict(model.named_modules())
    find_head = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head is not None else None
    faults = []
    for name, (down, up) in file.matrices.items():
        module = modules.get(name)
        shape = None if module is None else _shape_of(module)
        asked = (up.shape[0], down.shape[1])
        if module is None:
            faults.append(f"{file.name}: the model has no {name}")
        elif module is head or shape is None:
            kind = "the head" if module is head else f"a {type(module).__name__}"
            faults.append(f"{file.name}: {name} is {kind}, expected a linear layer of the body")
        elif shape != asked:
            faults.append(
                f"{file.name}: {name} is {shape[0]:,} × {shape[1]:,}, and the adapter is made for "
                f"{asked[0]:,} × {asked[1]:,}"
            )
    return faults


def _shape_of(module: nn.Module) -> tuple[int, int] | None:
    """(outputs, inputs) of a linear layer, quantized or not; None for anything else."""
    match module:
        case nn.Linear():
            return module.out_features, module.in_features
        case Int8Linear():
            return module.qdata.shape[0], module.qdata.shape[1]
        case Int4Linear():
            groups, outputs = module.scale_and_zero.shape[:2]
            return outputs, groups * INT4_GROUP
        case _:
            return None


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
