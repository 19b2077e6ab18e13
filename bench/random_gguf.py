"""Writes a GGUF file of random weights, for comparisons with programs that read such files only.

    python bench/random_gguf.py FILE.gguf --format Q4_0 --vocabulary MODEL.gguf [--layers 16]

The shape of a Llama with 1 billion parameters: hidden 2048, 32 heads over 8, intermediate 8192. The
vocabulary is the one of MODEL.gguf; its text means nothing. Every matrix is in the format;
embeddings are the head as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType as ValueType

HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE = 2048, 32, 8, 64, 8192
MATRICES = {
    "attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "ffn_gate": (INTERMEDIATE, HIDDEN),
    "ffn_up": (INTERMEDIATE, HIDDEN),
    "ffn_down": (HIDDEN, INTERMEDIATE),
}
# Where the f16 scales of a block are, and what centres the weights around zero at about 1/50.
SCALES: dict[Type, tuple[tuple[int, float], ...]] = {
    Type.Q4_0: ((0, 4e-3),),
    Type.Q8_0: ((0, 2.5e-4),),
    Type.Q4_K: ((0, 1e-4), (2, 7.5e-4)),
}


def random_matrix(
    shape: tuple[int, int], quantization: Type, rng: np.random.Generator
) -> np.ndarray:
    if quantization == Type.BF16:
        values = rng.standard_normal(shape, np.float32) * np.float32(0.02)
        bits: np.ndarray = (values.view(np.uint32) >> 16).astype(np.uint16)
        return bits.view(np.uint8)
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
    count = shape[0] * shape[1] // block_size
    blocks: np.ndarray = rng.integers(0, 256, (count, block_bytes), dtype=np.uint8)
    for place, scale in SCALES[quantization]:
        blocks[:, place : place + 2] = np.array([scale], np.float16).view(np.uint8)
    return blocks.reshape(shape[0], -1)


def copy_vocabulary(writer: gguf.GGUFWriter, model: Path) -> int:
    """The tokenizer of `model`; how many tokens it has."""
    fields = gguf.GGUFReader(model).fields
    for name, field in fields.items():
        if name.startswith("tokenizer."):
            inner = field.types[1] if field.types[0] == ValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    return len(fields["tokenizer.ggml.tokens"].data)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--format", required=True, choices=[*(one.name for one in SCALES), "BF16"])
    parser.add_argument("--vocabulary", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=16)
    args = parser.parse_args()

    quantization = Type[args.format]
    unfinished = args.file.with_suffix(".partial")
    writer = gguf.GGUFWriter(unfinished, "llama", use_temp_file=True)
    writer.add_name(f"random 1B {args.format}")
    writer.add_context_length(16384)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(args.layers)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    rng = np.random.default_rng(0)
    vocabulary = copy_vocabulary(writer, args.vocabulary)
    writer.add_vocab_size(vocabulary)

    def add(name: str, shape: tuple[int, int]) -> None:
        writer.add_tensor(name, random_matrix(shape, quantization, rng), raw_dtype=quantization)

    add("token_embd.weight", (vocabulary, HIDDEN))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for layer in range(args.layers):
        for name, shape in MATRICES.items():
            add(f"blk.{layer}.{name}.weight", shape)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ones(HIDDEN, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(args.file)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
