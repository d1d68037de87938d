"""The weights of a model in quantized forms, as files that an engine maps: written once, loaded often.

Written module by module by ``prepare``, in a process of its own. An engine that quantized while it
loaded would hold the result in memory of its own, which replicas cannot share, and peak above it.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from memplan.engines.torch.quantized_modules import quantized_module, quantized_parts
from memplan.engines.torch.weight_forms import FAULT_CODE, Kind, WeightPlan, forms_of
from memplan.errors import EngineError
from memplan.pages import PAGE_BYTES, file_areas, give_back

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MANIFEST = "memplan-weights.json"
DATA_ALIGNMENT = 64
"""A cache line, and the widest vector of any kernel here."""
_COPY_BYTES = 1 << 20
_COPIED = (".json", ".jinja", ".model", ".txt")
_SHARD_BYTES = 512 << 20
"""Quantized bytes that are kept before they are written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a folder of quantized weights holds beside its tensors."""

    base: str
    """The folder whose model they belong to; its weights are mapped while loading, and not read."""
    forms: Mapping[str, str]
    shared: Mapping[str, str]
    """Module → the module whose tensors it uses too."""
    processor: str
    """What int4 weights are packed for."""


def read_manifest(folder: Path) -> Manifest | None:
    """None for a folder of plain weights."""
    path = folder / MANIFEST
    return Manifest(**json.loads(path.read_text())) if path.exists() else None


def load_model(folder: Path, plan: WeightPlan, *, device: str, attention: str) -> Any:
    """The model in ``folder`` with every weight a page of its files.

    Raises EngineError where they are packed for another processor, or not in the forms of the plan.
    """
    from transformers import AutoModelForCausalLM

    manifest = read_manifest(folder)
    if plan.is_quantized and manifest is None:
        raise EngineError(
            f"{folder}: weights {plan.base} are wanted, and these are not quantized",
            hint="load the folder that prepared_folder returns",
        )
    model: Any = AutoModelForCausalLM.from_pretrained(
        manifest.base if manifest else folder,
        dtype=DTYPES[plan.compute],
        attn_implementation=attention,
    )
    model.eval()
    model.requires_grad_(False)
    if manifest is not None:
        _check_processor(manifest, folder, device)
        _put(model, manifest, _mapped_tensors(folder))
    return model


def write_quantized(base: Path, plan: WeightPlan, device: str, target: Path) -> None:
    """Raises EngineError where the plan does not fit the model."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    plain = WeightPlan(base=plan.compute, by_module={})
    model = load_model(base, plain, device=device, attention="eager")
    forms = forms_of(plan, _kinds(model))
    target.mkdir(parents=True, exist_ok=True)
    shards = _Shards(target)
    shared: dict[str, str] = {}
    written: dict[tuple[int, bool], str] = {}
    for name, form in forms.items():
        module = model.get_submodule(name)
        first = written.setdefault((module.weight.data_ptr(), form == "int4"), name)
        if first != name:
            shared[name] = first
            continue
        try:
            parts = quantized_parts(module.weight, form, device)
        except ValueError as error:
            raise EngineError(
                f"weights: {name} cannot be {form}: {error}",
                hint=f"give it another form with weights_by_module, such as {name}: int8",
            ) from error
        if getattr(module, "bias", None) is not None:
            parts["bias"] = module.bias
        shards.add({f"{name}.{part}": tensor for part, tensor in parts.items()})
        _give_back_pages(module.weight, base)
    for name, tensor in _plain_tensors(model, forms):
        shards.add({name: tensor})
    shards.close()
    for path in base.iterdir():  # its config, and a tokenizer if there is one
        if path.suffix in _COPIED and not path.name.endswith(".index.json"):
            shutil.copy(path, target)
    manifest = Manifest(
        base=str(base.resolve()), forms=forms, shared=shared, processor=_processor(device)
    )
    (target / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))


# --- writing -------------------------------------------------------------------------------


class _Shards:
    """Safetensors files of at most ``_SHARD_BYTES`` and one module."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tensors: dict[str, torch.Tensor] = {}
        self._count = 0

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors |= {name: tensor.contiguous() for name, tensor in tensors.items()}
        if sum(tensor.nbytes for tensor in self._tensors.values()) >= _SHARD_BYTES:
            self.close()

    def close(self) -> None:
        from safetensors.torch import save_file

        if self._tensors:
            path = self._folder / f"weights-{self._count:05}.safetensors"
            save_file(self._tensors, path)
            align_data(path)
        self._tensors, self._count = {}, self._count + 1


def align_data(path: Path) -> None:
    """Moves a safetensors file's data to the next multiple of ``DATA_ALIGNMENT``, by spaces behind its
    header, which the format allows. Its own writer aligns to 8 bytes, and aten's int8 kernel dies of
    weights that lie at no multiple of 16 in memory."""
    with path.open("rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        missing = -(8 + len(header)) % DATA_ALIGNMENT
        if not missing:
            return
        moved = path.with_suffix(".moved")
        with moved.open("wb") as target:
            target.write((len(header) + missing).to_bytes(8, "little") + header + b" " * missing)
            shutil.copyfileobj(file, target, _COPY_BYTES)
    moved.replace(path)


def _kinds(model: Any) -> dict[str, Kind]:
    """The modules whose weights can have a form of their own."""
    kinds: dict[str, Kind] = {}
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        if type(module) is nn.Linear:
            kinds[name] = "head" if module is head else "linear"
        elif type(module) is nn.Embedding or hasattr(module, "scalar_embed_scale"):
            kinds[name] = "embedding"
    return kinds


def _plain_tensors(
    model: nn.Module, forms: Mapping[str, str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights that no quantized module holds, each under the first of its names."""
    seen: set[int] = set()
    for owner, module in model.named_modules():
        if owner in forms:
            continue
        held = [*module.named_parameters(recurse=False)]
        held += [
            (name, buffer)
            for name, buffer in module.named_buffers(recurse=False)
            if name not in module._non_persistent_buffers_set
        ]
        for name, tensor in held:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{owner}.{name}".removeprefix("."), tensor.data


def _give_back_pages(tensor: torch.Tensor, folder: Path) -> None:
    address = tensor.data_ptr()
    if any(area.start <= address < area.end for area in file_areas(str(folder))):
        first = address - address % PAGE_BYTES
        give_back(first, address + tensor.nbytes - first)


# --- loading -------------------------------------------------------------------------------


def _mapped_tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors


def _put(model: nn.Module, manifest: Manifest, tensors: dict[str, torch.Tensor]) -> None:
    """Quantized modules in their places, and every other weight from the same files."""
    made: dict[str, dict[str, torch.Tensor]] = {}
    for name, form in manifest.forms.items():
        owner = manifest.shared.get(name, name)
        if owner not in made:
            names = [key for key in tensors if key.rpartition(".")[0] == owner]
            made[owner] = {
                key.rpartition(".")[2]: nn.Parameter(tensors.pop(key), requires_grad=False)
                for key in names
            }
        parts = {part: tensor for part, tensor in made[owner].items() if part != "bias"}
        bias = made[owner].get("bias") if owner == name else None
        model.set_submodule(
            name, quantized_module(model.get_submodule(name), form, parts, bias), strict=True
        )
    held = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    for name, tensor in tensors.items():
        held[name].data = tensor


def _check_processor(manifest: Manifest, folder: Path, device: str) -> None:
    here = _processor(device)
    if "int4" in manifest.forms.values() and manifest.processor != here:
        raise EngineError(
            f"{folder}: its int4 weights are packed for {manifest.processor}, and the engine runs on "
            f"{here}; remove that folder, and they are packed anew",
            hint=f"rm -r {folder}",
        )


def _processor(device: str) -> str:
    return torch.backends.cpu.get_cpu_capability() if device == "cpu" else "CUDA"


def _main(base: Path, settings: str, target: Path) -> None:
    wanted = json.loads(settings)
    try:
        write_quantized(base, WeightPlan.of_settings(wanted), wanted["device"], target)
    except EngineError as error:
        sys.stdout.write(json.dumps({"message": error.message, "hint": error.hint}))
        sys.exit(FAULT_CODE)


if __name__ == "__main__":
    _main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
