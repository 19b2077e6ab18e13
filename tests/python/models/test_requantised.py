"""What each block format costs: perplexity of the default model with some matrices requantised, and
the divergence of its distributions, which orders the formats with fewer tokens.

MINISGL_TEST_MODEL may name its .gguf file.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from gguf import GGMLQuantizationType as Type

from minisgl._native import Model
from minisgl.tokenizer import load_tokenizer
from tests.python.models.block_encoders import encode

PROSE = Path(__file__).parents[2] / "reference" / "prose.txt"
NUM_TOKENS = 200
# The most perplexity, over that of the file as it is.
MOST_PERPLEXITY: dict[Type, float] = {
    Type.Q5_0: 1.03,
    Type.Q5_1: 1.03,
    Type.Q5_K: 1.03,
    Type.IQ4_NL: 1.03,
    Type.IQ4_XS: 1.03,
    Type.MXFP4: 1.05,
    Type.Q3_K: 1.1,
    Type.Q2_K: 1.3,
}
METADATA = (
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
)


def requantise(reader: gguf.GGUFReader, file: Path, quantization: Type) -> None:
    """The model again, every third layer's ffn_down in another format: the one matrix whose rows
    are whole blocks of 256.
    """
    writer = gguf.GGUFWriter(file, "llama")
    for key in (f"llama.{name}" for name in METADATA):
        value = reader.fields[key].contents()
        (writer.add_uint32 if isinstance(value, int) else writer.add_float32)(key, value)
    for tensor in reader.tensors:
        if tensor.name.endswith("ffn_down.weight") and int(tensor.name.split(".")[1]) % 3 == 0:
            data = encode(gguf.dequantize(tensor.data, tensor.tensor_type), quantization)
            writer.add_tensor(tensor.name, data, raw_dtype=quantization)
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def log_probs(model: Model, ids: list[int]) -> torch.Tensor:
    return torch.from_numpy(model.forward(ids[:-1])).log_softmax(-1)


def test_what_formats_cost(default_gguf: Path, tmp_path: Path) -> None:
    ids = load_tokenizer(str(default_gguf)).encode(PROSE.read_text())[:NUM_TOKENS]
    targets = torch.tensor(ids[1:])
    reader = gguf.GGUFReader(default_gguf)
    own = log_probs(Model(str(default_gguf), max_tokens=NUM_TOKENS), ids)
    entropy = torch.nn.functional.nll_loss(own, targets)
    divergence: dict[str, float] = {}
    for quantization, most in MOST_PERPLEXITY.items():
        file = tmp_path / "m.gguf"
        requantise(reader, file, quantization)
        theirs = log_probs(Model(str(file), max_tokens=NUM_TOKENS), ids)
        file.unlink()
        perplexity = (torch.nn.functional.nll_loss(theirs, targets) - entropy).exp()
        divergence[quantization.name] = float((own.exp() * (own - theirs)).sum(-1).mean())
        assert 1 / most < perplexity < most, quantization
    five = [divergence[name] for name in ("Q5_0", "Q5_1", "Q5_K")]
    four = [divergence[name] for name in ("IQ4_NL", "IQ4_XS")]
    rest = [divergence[name] for name in ("MXFP4", "Q3_K", "Q2_K")]
    groups = [min(five), max(five), min(four), max(four), *rest]
    assert groups == sorted(groups), divergence
