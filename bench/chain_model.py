"""A model whose answers have a form: a thought, then a call of a function, in random tokens. Its
layers add nothing to the embeddings, so that the next token's probabilities depend on the last
token alone; all else is what every model of this architecture has, keys and values included.

    python bench/chain_model.py FOLDER      writes a folder that --model takes

An answer is "<think>", about THOUGHT_TOKENS tokens, "</think>", CALL with about WORD_TOKENS tokens,
CALL_END, and the end. The vocabulary is learned from the repository's own pages; the tokens of an
answer are drawn one by one, so they are mostly not those that the tokenizer makes of its text.
"""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "CHANGELOG.md", "docs/ARCHITECTURE.md", "docs/DESIGN.md", "cpp/README.md"]
VOCABULARY = 4096
NUM_WORDS = 400  # kinds of tokens in a thought, and in what follows it
THOUGHT_TOKENS, WORD_TOKENS = 150, 60  # on average
HIDDEN, HEAD_DIM, LAYERS = 64, 32, 2
CERTAIN = 30.0  # a logit, where the others' are 0

FUNCTION = "look"
CALL = f'<tool_call>{{"name": "{FUNCTION}", "arguments": {{"words": "'
CALL_END = '"}}</tool_call>'

_SPECIAL = ["<|im_start|>", "<|im_end|>"]
_ADDED = ["<think>", "</think>", CALL, CALL_END]

# Thoughts are left out of what was said before the last user message, as many models' templates do.
TEMPLATE = """\
{%- set ns = namespace(last_user=-1, said='') -%}
{%- for message in messages -%}
  {%- if message.role == 'user' -%}{%- set ns.last_user = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
  {%- set ns.said = message.content or '' -%}
  {%- if message.role == 'assistant' and loop.index0 < ns.last_user -%}
    {%- set ns.said = ns.said.split('</think>')[-1] -%}
  {%- elif message.reasoning_content -%}
    {%- set ns.said = '<think>' + message.reasoning_content + '</think>' + ns.said -%}
  {%- endif -%}
  {%- for call in message.tool_calls or [] -%}
    {%- set ns.said = ns.said + '<tool_call>{"name": "' + call.function.name
        + '", "arguments": ' + call.function.arguments + '}</tool_call>' -%}
  {%- endfor -%}
  {%- if message.role == 'tool' -%}
    {{- '<|im_start|>user\\n<tool_response>\\n' + ns.said + '\\n</tool_response><|im_end|>\\n' -}}
  {%- else -%}
    {{- '<|im_start|>' + message.role + '\\n' + ns.said + '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def pages() -> str:
    """The text that the vocabulary is learned from."""
    return "\n".join((ROOT / name).read_text() for name in PAGES)


def _learn_vocabulary() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(_SPECIAL) - len(_ADDED),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(pages().splitlines(keepends=True), trainer)
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.add_tokens(_ADDED)
    return tokenizer


def _successors(tokenizer: tokenizers.Tokenizer) -> list[tuple[list[int], dict[int, float]]]:
    """Per class of tokens: which they are, and what comes next with which probability."""
    rng = random.Random(0)
    line_end, think, thought_end, call, call_end, end = (
        tokenizer.token_to_id(token) for token in ("Ċ", *_ADDED, "<|im_end|>")
    )
    usual = [
        token_id
        for token, token_id in sorted(tokenizer.get_vocab().items())
        if token.removeprefix("Ġ").isalnum() and token.isascii() | token.startswith("Ġ")
    ]
    drawn = rng.sample(usual, 2 * NUM_WORDS)
    thought, words = drawn[:NUM_WORDS], drawn[NUM_WORDS:]

    def one_of(tokens: list[int], share: float) -> dict[int, float]:
        return dict.fromkeys(tokens, share / len(tokens))

    return [
        ([line_end], {think: 1.0}),
        ([think], one_of(thought, 1)),
        (
            thought,
            {**one_of(thought, 1 - 1 / THOUGHT_TOKENS), thought_end: 1 / THOUGHT_TOKENS},
        ),
        ([thought_end], {call: 1.0}),
        ([call], one_of(words, 1)),
        (words, {**one_of(words, 1 - 1 / WORD_TOKENS), call_end: 1 / WORD_TOKENS}),
        ([call_end], {end: 1.0}),
    ]


def write_chain_model(folder: Path) -> None:
    """config.json, tokenizer.json, tokenizer_config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _learn_vocabulary()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HIDDEN // HEAD_DIM,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "intermediate_size": HIDDEN,
        "vocab_size": VOCABULARY,
        "rope_theta": 1e6,
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_weights(tokenizer), str(folder / "model.safetensors"))


def _weights(tokenizer: tokenizers.Tokenizer) -> dict[str, np.ndarray]:
    """A token's embedding says its class; the final norm makes sqrt(HIDDEN) of it, of which the
    last product makes the logarithms of the next token's probabilities.
    """
    embedding = np.zeros((VOCABULARY, HIDDEN), np.float32)
    head = np.zeros((VOCABULARY, HIDDEN), np.float32)
    embedding[:, 0] = 1
    for number, (tokens, nexts) in enumerate(_successors(tokenizer), start=1):
        embedding[tokens] = np.eye(HIDDEN, dtype=np.float32)[number]
        for token, probability in nexts.items():
            head[token, number] = (CERTAIN + math.log(probability)) / math.sqrt(HIDDEN)
    rng = np.random.default_rng(0)

    def random_part(rows: int) -> np.ndarray:
        return rng.normal(0, 0.1, (rows, HIDDEN)).astype(np.float32)

    weights = {
        "model.embed_tokens.weight": embedding,
        "lm_head.weight": head,
        "model.norm.weight": np.ones(HIDDEN, np.float32),
    }
    for layer in range(LAYERS):
        name = f"model.layers.{layer}."
        weights |= {
            f"{name}input_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{name}post_attention_layernorm.weight": np.ones(HIDDEN, np.float32),
            f"{name}self_attn.q_proj.weight": random_part(HIDDEN),
            f"{name}self_attn.k_proj.weight": random_part(HEAD_DIM),
            f"{name}self_attn.v_proj.weight": random_part(HEAD_DIM),
            f"{name}self_attn.o_proj.weight": np.zeros((HIDDEN, HIDDEN), np.float32),
            f"{name}mlp.gate_proj.weight": random_part(HIDDEN),
            f"{name}mlp.up_proj.weight": random_part(HIDDEN),
            f"{name}mlp.down_proj.weight": np.zeros((HIDDEN, HIDDEN), np.float32),
        }
    return weights


if __name__ == "__main__":
    write_chain_model(Path(sys.argv[1]))
