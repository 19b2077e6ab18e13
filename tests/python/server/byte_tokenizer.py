"""A tokenizer for tests: token i is byte i, 256 ends a text, 257 begins a turn. Its chat template
is short.
"""

from __future__ import annotations

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from minisgl.tokenizer import TemplateSource, Tokenizer

END = 256
TURN = 257
VOCAB_SIZE = 258

TEMPLATE = (
    "{% if not nothing %}"
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ '<turn>' + message.role[0] + ':' + message.content + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<turn>a:' }}{% endif %}"
    "{% endif %}"
)


def make_tokenizer(template: str = TEMPLATE) -> Tokenizer:
    return Tokenizer(
        make_backend(), eos_token_ids=[END], chat_template=TemplateSource({"default": template})
    )


def make_backend() -> tokenizers.Tokenizer:
    """What tokenizer.json would hold."""
    alphabet = byte_alphabet()
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={alphabet[byte]: byte for byte in range(256)}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<end>", "<turn>"])
    return backend


def byte_alphabet() -> dict[int, str]:
    """The character that byte-level BPE writes for each byte (GPT-2's table)."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    table = {byte: chr(byte) for byte in visible}
    table.update({byte: chr(256 + position) for position, byte in enumerate(hidden)})
    return table
