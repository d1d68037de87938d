"""Forms of weights in the real engine: what they hold, what stays resident, and what they say."""

from __future__ import annotations

import functools
import gc
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from english import TEXT
from test_load_modes import Started, started
from test_other_architectures import saved
from test_torch_engine import run_batched, runner, sequences

from memplan.builtin import builtin_path
from memplan.engines.torch.prepare import prepared_folder
from memplan.errors import EngineError
from memplan.pages import file_areas
from memplan.specs import Deployment, load_deployment
from memplan.units import MIB

pytestmark = [
    pytest.mark.live,
    # torch and transformers warn about their own internals while they are imported.
    pytest.mark.filterwarnings("default"),
]

SMALL_ENDS = {"lm_head": "int8", "*.embed_tokens": "int8"}
"""SmolLM2's head is its embedding: 54 MiB of bf16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    settings: Mapping[str, Any]
    weights_mib: float
    """Of 128.4 million weights: 106.2 in linear layers, 28.3 in the embedding that is the head too."""
    least_agreement: float
    """With fp32, of the next token, over the text: what was measured, less 0.02."""


FORMS = {
    "bf16": Form(settings={}, weights_mib=256.6, least_agreement=0.95),
    "fp16": Form(settings={"weights": "fp16"}, weights_mib=256.6, least_agreement=0.96),
    "int8": Form(settings={"weights": "int8"}, weights_mib=155.7, least_agreement=0.91),
    "int8_dynamic": Form(
        settings={"weights": "int8_dynamic"}, weights_mib=155.7, least_agreement=0.84
    ),
    "int4": Form(settings={"weights": "int4"}, weights_mib=117.4, least_agreement=0.93),
    "int4 with int8 ends": Form(
        settings={"weights": "int4", "weights_by_module": SMALL_ENDS},
        weights_mib=90.5,
        least_agreement=0.93,
    ),
}


def deployment_of(smollm2: Deployment, settings: Mapping[str, Any]) -> Deployment:
    changed = {"device": "cpu", "threads": 1, **settings}
    return replace(smollm2, settings=smollm2.settings.model_copy(update=changed))


def folder_of(smollm2: Deployment, settings: Mapping[str, Any]) -> Path:
    return prepared_folder(deployment_of(smollm2, settings))


@pytest.fixture(scope="module")
def starts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Starts an engine with settings given as keywords, once for each."""
    folder = tmp_path_factory.mktemp("weights")
    smollm2 = load_deployment(builtin_path("smollm2.yaml"))

    @functools.cache
    def start(wanted: str) -> Started:
        settings = json.loads(wanted)
        mode = settings.pop("load", "mapped")
        return started(smollm2, mode, folder / "log", **settings)

    return lambda **settings: start(json.dumps(settings))


# --- bytes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_weights_of_every_form_are_pages_of_files_and_nothing_else(starts: Any, name: str) -> None:
    facts = starts(**FORMS[name].settings).facts
    assert facts.weights_bytes / MIB == pytest.approx(FORMS[name].weights_mib, abs=0.5)
    assert facts.weights_mapped_bytes == pytest.approx(facts.weights_bytes, rel=0.001)
    assert facts.start["engine.weight_files"] == pytest.approx(facts.weights_bytes, rel=0.002)
    idle = facts.idle
    assert idle["engine.weights_resident_heap"] < MIB
    # Nothing of the originals, and nothing of the files but weights.
    assert idle["engine.weight_files_resident"] <= facts.weights_bytes + 2 * MIB


def test_int4_lowers_what_is_resident_by_more_than_two_fifths_of_the_weights(starts: Any) -> None:
    plain, small = starts().facts, starts(weights="int4").facts
    saved = plain.idle["host.rss"] - small.idle["host.rss"]
    assert saved >= 0.4 * plain.weights_bytes


@pytest.mark.parametrize("form", ["int8", "int4"])
@pytest.mark.parametrize("load", ["mapped", "read"])
def test_loading_a_quantized_form_peaks_where_it_stays(starts: Any, form: str, load: str) -> None:
    facts = starts(weights=form, load=load).facts
    assert facts.load_peak["host.hwm"] <= 1.25 * facts.idle["host.rss"]


def test_read_quantized_weights_are_private_and_answer_the_same(starts: Any) -> None:
    mapped, read = starts(weights="int4"), starts(weights="int4", load="read")
    assert read.facts.weights_mapped_bytes == read.facts.idle["engine.weight_files_resident"] == 0
    weights = read.facts.weights_bytes
    assert read.facts.idle["engine.weights_resident_heap"] == pytest.approx(weights, rel=0.001)
    # Two processes' heaps differ by some MB, and reading leaves some free.
    grown = read.facts.idle["host.anon"] - mapped.facts.idle["host.anon"]
    assert weights - 4 * MIB < grown < weights + 12 * MIB
    assert mapped.answer.output_digest == read.answer.output_digest


def test_a_head_and_an_embedding_of_one_form_share_their_bytes(
    smollm2: Deployment, starts: Any
) -> None:
    both = starts(weights="int8", weights_by_module=SMALL_ENDS).facts
    neither = starts(weights="int8").facts
    # 49,152 rows of 576 bytes and a bf16 scale each, once; in bf16 they share theirs too.
    rows_bytes = 49_152 * (576 + 2)
    assert neither.weights_bytes - both.weights_bytes == 49_152 * 576 * 2 - rows_bytes
    folder = folder_of(smollm2, {"weights": "int8", "weights_by_module": SMALL_ENDS})
    opened = runner(folder, weights="int8", weights_by_module=SMALL_ENDS)
    model = opened._model
    assert model.lm_head.qdata is model.model.embed_tokens.qdata
    assert model.lm_head.qdata.nbytes + model.lm_head.scale.nbytes == rows_bytes


# --- patterns ------------------------------------------------------------------------------


def test_the_last_pattern_that_matches_a_module_decides(smollm2: Deployment) -> None:
    from torch import nn

    settings = {
        "weights": "int8",
        "weights_by_module": {"*.mlp.*": "int4", "*.0.mlp.*": "int8", "*.down_proj": "bf16"},
    }
    folder = folder_of(smollm2, settings)
    layers = runner(folder, **settings)._model.model.layers
    up, down = (getattr(layers[0].mlp, f"{name}_proj") for name in ("up", "down"))
    assert type(up).__name__ == "Int8Linear"
    assert isinstance(down, nn.Linear)  # or what widens its products on this processor
    assert type(layers[1].mlp.up_proj).__name__ == "Int4Linear"
    assert type(layers[1].self_attn.q_proj).__name__ == "Int8Linear"


@pytest.mark.parametrize(
    ("pattern", "form", "words"),
    [
        (
            "*.mpl.*",
            "int4",
            'weights_by_module: "*.mpl.*" matches no module of this model, expected',
        ),
        ("*.embed_tokens", "int4", "is an embedding and cannot be int4, expected int8 or bf16"),
    ],
)
def test_what_does_not_fit_the_model_is_told_with_what_does(
    smollm2: Deployment, pattern: str, form: str, words: str
) -> None:
    with pytest.raises(EngineError) as caught:
        folder_of(smollm2, {"weights_by_module": {pattern: form}})
    assert words in caught.value.message
    assert "model.layers.*.mlp.down_proj" in caught.value.message or "embed" in words
    assert caught.value.hint


def test_plain_weights_do_not_pass_for_quantized_ones(bf16_folder: Path) -> None:
    with pytest.raises(EngineError, match="int8 are wanted, and these are not quantized"):
        runner(bf16_folder, weights="int8")


def test_nothing_of_the_originals_stays_mapped(smollm2: Deployment, bf16_folder: Path) -> None:
    folder = folder_of(smollm2, {"weights": "int8"})
    gc.collect()
    before = len(file_areas(str(bf16_folder)))
    opened = runner(folder, weights="int8")
    assert opened.weights_bytes > 0
    gc.collect()
    assert len(file_areas(str(bf16_folder))) == before


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        # Multiplies its embeddings by the root of their width; head and embedding are one.
        ("Gemma3TextConfig", {"head_dim": 16}),
        # Linear layers with a bias.
        ("Qwen2Config", {"tie_word_embeddings": False}),
    ],
)
@pytest.mark.parametrize(
    # Random weights forgive less than trained ones; a factor or a bias left out makes it 1.
    ("form", "most_error"),
    [("int8", 0.03), ("int8_dynamic", 0.06), ("int4", 0.5)],
)
def test_other_architectures_compute_nearly_the_same(
    config: str, changed: dict[str, Any], form: str, most_error: float, tmp_path: Path
) -> None:
    import torch

    from memplan.engines.torch.quantized_folder import load_model, write_quantized
    from memplan.engines.torch.weight_forms import WeightPlan

    base = with_random_biases(saved(config, tmp_path / "fp32", **changed), tmp_path / "bf16")
    ends = {"lm_head": "int8", "*embed_tokens": "int8"}
    plan = WeightPlan(base=form, by_module=ends)
    write_quantized(base, plan, "cpu", tmp_path / form)
    plain = load_model(base, WeightPlan(base="bf16", by_module={}), device="cpu", attention="sdpa")
    small = load_model(tmp_path / form, plan, device="cpu", attention="sdpa")
    ids = torch.arange(40).reshape(1, 40) % 120
    with torch.no_grad():
        said, nearly = plain(ids).logits.float(), small(ids).logits.float()
    error = ((nearly - said).norm() / said.norm()).item()
    assert 0 < error < most_error


def with_random_biases(source: Path, target: Path) -> Path:
    """The same model in bf16; biases are zero at first, and would not be missed."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.data.normal_()
    model.save_pretrained(target)
    return target


def test_int4_weights_packed_for_another_processor_are_refused(
    smollm2: Deployment, tmp_path: Path
) -> None:
    from memplan.engines.torch.quantized_folder import MANIFEST

    folder = folder_of(smollm2, {"weights": "int4"})
    for path in folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    manifest = json.loads((folder / MANIFEST).read_text())
    (tmp_path / MANIFEST).unlink()
    (tmp_path / MANIFEST).write_text(json.dumps({**manifest, "processor": "abacus"}))
    with pytest.raises(EngineError, match="packed for abacus, and the engine runs on"):
        runner(tmp_path, weights="int4")


# --- streaming -----------------------------------------------------------------------------


def test_streamed_layers_change_no_token(fp32_folder: Path) -> None:
    plain, streamed = sequences(), sequences()
    run_batched(runner(fp32_folder), plain, max_batch_tokens=100)
    run_batched(runner(fp32_folder, resident_layers=4), streamed, max_batch_tokens=100)
    assert [list(one.output) for one in streamed] == [list(one.output) for one in plain]


@pytest.mark.parametrize("form", ["bf16", "int4"])
def test_layers_that_do_not_stay_are_not_resident(starts: Any, form: str) -> None:
    plain = starts(weights=form)
    streamed = starts(weights=form, resident_layers=4)
    away = int(streamed.facts.settings["streamed_bytes_a_step"])
    linear = plain.facts.weights_bytes - 49_152 * 576 * 2
    assert away == pytest.approx(linear * 26 / 30, rel=0.01)
    held = [one.facts.idle["engine.weight_files_resident"] for one in (plain, streamed)]
    # int4 layers are four runs of bytes each, and the pages at their ends stay.
    assert held[0] - held[1] == pytest.approx(away, rel=0.03)
    # What malloc keeps free differs by up to 12 MB from one process to the next.
    idle = [
        one.facts.idle["host.rss"] - one.facts.idle["host.heap_free"] for one in (plain, streamed)
    ]
    assert idle[0] - idle[1] > 0.9 * away
    assert plain.answer.output_digest == streamed.answer.output_digest


def test_a_step_holds_one_streamed_layer_and_tells_what_it_cost(starts: Any) -> None:
    plain, streamed = starts(), starts(resident_layers=0)
    away = int(streamed.facts.settings["streamed_bytes_a_step"])
    steps = [one for one in streamed.segments if one.kind == "step"]
    assert {one.gauges["engine.weights_streamed"] for one in steps} == {away}
    assert all(one.gauges["engine.weights_stream_us"] > 0 for one in steps)
    (layer,) = {one.gauges["engine.weights_passing"] for one in steps}
    assert layer == pytest.approx(away / 30, rel=0.001)

    def reach(of: Started) -> int:
        """Of the highest step, without anonymous memory: two processes' heaps differ by some MB."""
        highest = max(
            (one for one in of.segments if one.kind == "step"), key=lambda one: one.peak["host.hwm"]
        )
        return highest.peak["host.hwm"] - highest.gauges["host.anon"]

    assert reach(plain) - reach(streamed) == pytest.approx(away - layer, rel=0.03)


def test_layers_in_memory_of_the_engines_own_cannot_be_streamed(bf16_folder: Path) -> None:
    with pytest.raises(RuntimeError, match="pages of files, and load is read"):
        runner(bf16_folder, weights="bf16", load="read", resident_layers=4)


# --- quality -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_ids(smollm2: Deployment) -> Any:
    """The text's token ids, as [1, tokens]."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        file = smollm2.model_file()
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    return torch.tensor([tokenizer(" ".join(TEXT.split()))["input_ids"]])


@pytest.fixture(scope="module")
def likeliest(smollm2: Deployment, text_ids: Any) -> Any:
    """The likeliest next token at each place of the text, under settings."""
    import torch

    from memplan.engines.torch.quantized_folder import load_model
    from memplan.engines.torch.weight_forms import WeightPlan

    def at_each(settings: Mapping[str, Any]) -> Any:
        deployment = deployment_of(smollm2, settings)
        plan = WeightPlan.of_settings(deployment.settings.model_dump())
        model = load_model(prepared_folder(deployment), plan, device="cpu", attention="sdpa")
        with torch.no_grad():
            return model(text_ids).logits[0].argmax(dim=-1)

    return at_each


@pytest.mark.parametrize("name", FORMS)
def test_each_form_says_what_fp32_says_nearly_always(
    likeliest: Any, fp32_choices: Any, name: str
) -> None:
    chosen = likeliest(FORMS[name].settings)
    assert len(chosen) > 500
    agreement = (chosen == fp32_choices).float().mean().item()
    assert agreement >= FORMS[name].least_agreement


@pytest.fixture(scope="module")
def fp32_choices(likeliest: Any) -> Any:
    return likeliest({"weights": "fp32"})
