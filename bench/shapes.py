"""Models that exist as shapes only: a configuration and a vocabulary, for `--load-format dummy`.

    python bench/shapes.py qwen3-0.6b FOLDER       writes a folder that --model takes

The vocabulary has the model's size, so that text has as many tokens as usual: 256 bytes, words of
two to four letters, of which each is the one before it and a letter, and an end token as the last.
What it says means nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import string
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 1024,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
    },
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
        "rope_theta": 5e5,
        "tie_word_embeddings": False,
    },
    "qwen3-32b": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 5120,
        "num_hidden_layers": 64,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 25600,
        "vocab_size": 151936,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
    },
    # The default model's size, with experts of which a token takes as much as its MLP.
    "moe-135m": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "intermediate_size": 1536,
        "num_experts": 32,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 192,
        "norm_topk_prob": True,
        "vocab_size": 49152,
        "rope_theta": 1e5,
        "tie_word_embeddings": True,
    },
    "qwen3-30b-a3b": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 6144,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "vocab_size": 151936,
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
    },
}
END_TOKEN = "<|endoftext|>"
COMMON = {"max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "hidden_act": "silu"}


def words() -> Iterator[str]:
    for length in (2, 3, 4):
        for letters in itertools.product(string.ascii_lowercase, repeat=length):
            yield "".join(letters)


def write_shape(name: str, folder: Path) -> None:
    """config.json and tokenizer.json of SHAPES[name]."""
    folder.mkdir(parents=True, exist_ok=True)
    end = SHAPES[name]["vocab_size"] - 1
    config = COMMON | SHAPES[name] | {"eos_token_id": end}
    (folder / "config.json").write_text(json.dumps(config))
    tokens = itertools.chain(sorted(pre_tokenizers.ByteLevel.alphabet()), words())
    vocabulary = {token: i for i, token in enumerate(itertools.islice(tokens, end))}
    merges = [(word[:-1], word[-1]) for word in words() if word in vocabulary]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_TOKEN])
    tokenizer.save(str(folder / "tokenizer.json"))


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--model", help="default: the default model")
    group.add_argument("--shape", choices=sorted(SHAPES), help="a shape with dummy weights")


def model_options(args: argparse.Namespace) -> tuple[str | None, str]:
    """The model and its load format that add_model_arguments' options ask for."""
    if not args.shape:
        return args.model, "auto"
    folder = Path(tempfile.gettempdir()) / f"minisgl-shape-{os.getuid()}" / args.shape
    write_shape(args.shape, folder)
    return str(folder), "dummy"


def server_command(args: argparse.Namespace, *flags: str) -> list[str]:
    """Starts a server of that model with args.tp ranks."""
    model, load_format = model_options(args)
    command = [sys.executable, "-m", "minisgl", f"--tp={args.tp}", f"--load-format={load_format}"]
    return [*command, *([f"--model={model}"] if model else []), *flags]


if __name__ == "__main__":
    write_shape(sys.argv[1], Path(sys.argv[2]))
