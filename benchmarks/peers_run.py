"""What hf-mem, accelerate, hf-vram-calc and vramscout say of SmolLM2-135M, in the Python that has them:
for `benchmarks/predicted_peaks.py`.

Standard input: a list of ``{dtype, context_tokens, batch}``; standard output: for each what every tool
says in bytes, or why it says nothing. A checkpoint of the real shape is written first (its values
do not matter to any of them). hf-mem and accelerate read only the Hub from their command lines, so that
their own functions are called with what these would have read; the other two are run as a user would.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from accelerate.utils import calculate_maximum_sizes
from hf_mem.safetensors.kv_cache import compute_safetensors_kv_cache_size
from hf_mem.safetensors.metadata import parse_safetensors_metadata
from transformers import LlamaConfig, LlamaForCausalLM

SHAPE = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
)
TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16}
"""No checkpoint of plain int8 exists: of that the file stays bf16."""
OF_FP32 = {"fp32": 1, "bf16": 2, "int8": 4}


def hf_mem(folder: Path, asked: dict) -> int:
    raw = (folder / "model.safetensors").open("rb")
    size = int.from_bytes(raw.read(8), "little")
    metadata = parse_safetensors_metadata({"Transformer": json.loads(raw.read(size))})
    config = json.loads((folder / "config.json").read_text())
    kv = compute_safetensors_kv_cache_size(
        config,
        cache_dtype="F32" if asked["dtype"] == "fp32" else "BF16",
        max_model_len=asked["context_tokens"],
        batch_size=asked["batch"],
    )
    return metadata.bytes_count + kv


def accelerate(folder: Path, asked: dict) -> int:
    with torch.device("meta"):
        model = LlamaForCausalLM(SHAPE)
    model.tie_weights()
    return int(calculate_maximum_sizes(model)[0]) // OF_FP32[asked["dtype"]]


def hf_vram_calc(folder: Path, asked: dict) -> int:
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        run(
            "hf-vram-calc", "--model", "smollm2", "--model_path", folder,
            "--dtype", asked["dtype"], "--max_batch_size", asked["batch"],
            "--max_seq_len", asked["context_tokens"], "--output_json", out.name,
        )  # fmt: skip
        (said,) = json.loads(Path(out.name).read_text())["memory_requirements"]
    return round(said["inference_total_gib"] * 2**30)


def vramscout(folder: Path, asked: dict) -> int:
    said = run(
        "vramscout", folder, "--dtype", asked["dtype"], "--batch-size", asked["batch"],
        "--kv-dtype", "fp32" if asked["dtype"] == "fp32" else "bf16",
        "--context", asked["context_tokens"], "--vram-gib", 24, "--json",
    )  # fmt: skip
    parts = json.loads(said)["parts_gib"]
    # Its reserve is a margin, not a need.
    return round(sum(gib for name, gib in parts.items() if "reserve" not in name.lower()) * 2**30)


def run(tool: str, *arguments: object) -> str:
    done = subprocess.run(
        [str(Path(sys.executable).with_name(tool)), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    return done.stdout


def main() -> None:
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for asked in json.load(sys.stdin):
            folder = Path(scratch) / asked["dtype"]
            if not folder.exists():
                LlamaForCausalLM(SHAPE).to(TORCH[asked["dtype"]]).save_pretrained(folder)
            said = {}
            for tool in (hf_mem, accelerate, hf_vram_calc, vramscout):
                try:
                    said[tool.__name__] = tool(folder, asked)
                except Exception as error:  # a peer's fault is a result
                    said[tool.__name__] = f"{type(error).__name__}: {error}"
            found.append(said)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
