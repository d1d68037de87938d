"""The tensor hook against an account of our own: sizes by malloc itself, owners by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from memplan.engines.allocator.preload import preloading
from memplan.engines.torch.live_tensors import find_hook
from memplan.engines.torch.prepare import cache_folder
from memplan.errors import MachineError

pytestmark = pytest.mark.live

BOOKKEEPING = """
import ctypes, json, random, torch
from memplan.engines.raw_segments import tensor_peaks
from memplan.engines.torch.live_tensors import open_live_tensors
hook = open_live_tensors()
take = lambda: tensor_peaks(hook.cut(), hook.names)
usable = ctypes.CDLL(None).malloc_usable_size
usable.argtypes, usable.restype = (ctypes.c_void_p,), ctypes.c_size_t
size_of = lambda tensor: usable(tensor.untyped_storage().data_ptr())
"""

RANDOM_LIVES = (
    BOOKKEEPING
    + """
SIZES = [16, 1_000, 60_000, 70_000, 3_000_000]
draw = random.Random(3)
before = take().live_bytes
held, live, most, wrong = [], 0, 0, 0
for turn in range(30_000):
    if held and draw.random() < 0.45:
        index = draw.randrange(len(held))
        live -= size_of(held[index])
        held[index] = held[-1]
        held.pop()
    else:
        held.append(torch.empty(draw.choice(SIZES), dtype=torch.uint8))
        live += size_of(held[-1])
        most = max(most, live)
    if turn % 500 == 0:
        seen = take()
        wrong += (seen.live_bytes, seen.peak_bytes) != (before + live, before + most)
        most = live
held.clear()
print(json.dumps({"wrong": wrong, "left": take().live_bytes - before}))
"""
)

CALLS = (
    BOOKKEEPING
    + """
class Part(torch.nn.Module):
    def forward(self, x, *, times, fails=False):
        made = torch.ones(len(x), 1000)
        if fails:
            raise ValueError("as asked")
        return made * times
model = torch.nn.Sequential(Part(), torch.nn.Linear(1000, 10))
hook.know_parts(model)
hook.watch(is_on=True)
x = torch.ones(100)
made = model[0](x, times=3.0)
try:
    model[0](x, times=1.0, fails=True)
    told = None
except ValueError as error:
    told = str(error)
take()
after = torch.ones(100, 1000)  # no part of the model makes it
seen = take()
hook.watch(is_on=False)
print(json.dumps({
    "sum": made.sum().item(),
    "told": told,
    "owners": sorted(name for name, size in seen.by_owner.items() if size >= 400_000),
    "module": seen.module,
    "is_as_before": model[0].forward.__func__ is Part.forward,
}))
"""
)

OWNERS = (
    BOOKKEEPING
    + """
class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.self_attn = torch.nn.Sequential(torch.nn.Linear(64, 4096, bias=False))
        self.mlp = torch.nn.Sequential(torch.nn.Linear(4096, 64, bias=False))
    def forward(self, x):
        return self.mlp(self.self_attn(x))
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer(), Layer()])
        self.head = torch.nn.Linear(64, 10_000, bias=False)
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
with hook.owned_by("weights"):
    model = Model().requires_grad_(False)
hook.know_parts(model)
hook.watch(is_on=True)
x = torch.ones(400, 64)
take()
attention = model.layers[1].self_attn(x)
at_attention = take()
del attention
take()
model(x)
whole = take()
print(json.dumps({
    "attention": [at_attention.module, dict(at_attention.by_owner)],
    "whole": [whole.module, dict(whole.by_owner)],
}))
"""
)


def run_with_hook(script: str, allocator: str = "system") -> Any:
    hook = find_hook(cache_folder())
    assert hook.library is not None, hook.reason
    env = {**os.environ, "LD_PRELOAD": str(hook.library)}
    env |= preloading(allocator, env)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True, text=True, check=True, env=env,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("allocator", ["system", "jemalloc", "tcmalloc"])
def test_random_lives_of_tensors_are_counted_to_the_byte(allocator: str) -> None:
    try:
        preloading(allocator, {})
    except MachineError as error:
        pytest.skip(str(error))
    assert run_with_hook(RANDOM_LIVES, allocator) == {"wrong": 0, "left": 0}


def test_a_part_is_called_as_it_would_be_and_owns_what_it_makes_only() -> None:
    assert run_with_hook(CALLS) == {
        "sum": 300_000,
        "told": "as asked",
        "owners": ["0", "step"],
        "module": None,
        "is_as_before": True,
    }


def test_the_peak_is_told_apart_by_the_part_of_the_model_that_made_it() -> None:
    seen = run_with_hook(OWNERS)
    floats = 4
    module, owners = seen["attention"]
    assert module == "layers.1.self_attn"
    assert owners["layers.*.self_attn"] == pytest.approx(400 * 4096 * floats, rel=0.01)
    module, owners = seen["whole"]
    assert module == "head"
    assert owners["head"] == pytest.approx(400 * 10_000 * floats, rel=0.01)
    assert owners["layers.*.mlp"] == pytest.approx(400 * 64 * floats, rel=0.01)
    assert "layers.*.self_attn" not in owners  # freed by then
    assert "weights" not in owners
