"""Small valid inputs that the fuzzers start from."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import gguf
import msgspec
import numpy as np
from safetensors.numpy import save

from minisgl.ipc import messages
from minisgl.sampling_params import SamplingParams
from minisgl.server.message_schemas import Block, MessagesRequest
from minisgl.server.schemas import ChatRequest, CompletionRequest, DetokenizeRequest, Message
from minisgl.text import messages as text_messages
from minisgl.text import template_messages
from minisgl.tokenizer import DetokenizerOptions, TemplateSource

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
    "eos_token_id": [1, 2],
}


def write_seeds(target: str, folder: Path) -> None:
    """Fills an empty folder for one of the targets."""
    for number, data in enumerate(SEEDS[target](folder)):
        (folder / f"seed-{number}").write_bytes(data)


def _gguf(folder: Path) -> list[bytes]:
    path = folder / "seed.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv([2, 2])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(2.0)
    writer.add_custom_alignment(32)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_eos_token_id(2)
    writer.add_tensor("token_embd.weight", np.zeros((3, 64), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((2, 8), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = path.read_bytes()
    path.unlink()
    return [data]


def _safetensors(_: Path) -> list[bytes]:
    return [
        save({"a.weight": np.zeros((2, 3), np.float32), "b": np.zeros(4, np.float16)}),
        struct.pack("<Q", 2) + b"{}",
    ]


def _config(_: Path) -> list[bytes]:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 1.0}
    window = {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1}
    return [
        json.dumps(CONFIG | changes).encode()
        for changes in (
            {},
            {"rope_scaling": rope, "generation_config": {"eos_token_id": 3}},
            {"architectures": ["Qwen3ForCausalLM"], "rope_parameters": yarn},
            {"architectures": ["Qwen2ForCausalLM"], **window},
            {"architectures": ["MistralForCausalLM"], "head_dim": 16, "sliding_window": None},
        )
    ]


def _plan(_: Path) -> list[bytes]:
    # Frames of cpp/engine/plan_encoder.cpp: a sequence, tokens for it, steps of it, its end.
    header = b"MSP\x02"
    params = struct.pack("<fifffffQ", 0.5, 5, 0.9, 0.1, 1.1, 0.5, 0.5, 7)
    bias, stops = struct.pack("<Iif", 1, 4, 0.5), struct.pack("<Ii", 1, 2)
    add = struct.pack("<BQ", 1, 7) + params + bias
    add += struct.pack("<qI3iIiq", 3, 3, 1, 2, 3, 1, 5, 1) + stops + struct.pack("<ii", 2, 2)
    append = struct.pack("<BQI2i", 5, 7, 2, 4, 5)
    rows = struct.pack("<B", 3) + struct.pack("<I3i", 3, 1, 2, 3)
    pages = struct.pack("<Ii", 1, 5)
    # A score, an adapter and a copied page; two drafts; hidden states.
    step = rows + struct.pack("<IIIiiiii", 1, 7, 0, 3, 0, 0, 1, 1) + pages
    step += struct.pack("<B", 1 | 4 | 8) + struct.pack("<I2i", 1, 1, 3)
    step += struct.pack("<I2i", 1, 0, 2) + struct.pack("<I3i", 1, 3, 5, 0)
    drafts = rows + struct.pack("<IIIiiiii", 1, 7, 0, 3, 0, 0, 1, 3) + pages + b"\x00"
    hidden = rows + struct.pack("<IIIiiiii", 1, 7, 0, 3, 0, 0, 1, 0) + pages
    hidden += b"\x02" + struct.pack("<I2i", 1, 0, 2)
    remove, shut_down = struct.pack("<BQ", 2, 7), b"\x04"
    messages_ = (add, append, step, drafts, hidden, remove)
    return [
        *(header + message for message in messages_),
        header + b"".join((*messages_, shut_down)),
    ]


def _wire(_: Path) -> list[bytes]:
    output = messages.Output(
        3, [5], "length", "", "", [(-0.5, [(5, -0.5)])], [(3, None, [])], (0.0, 1.0, 2.0)
    )
    submit = messages.Submit(
        id=1, prompt=[1, 2], params=SamplingParams(max_tokens=5, seed=7, logit_bias={1: 0.5})
    )
    info = messages.EngineInfo(vocab_size=10, max_model_len=20)
    return [
        msgspec.msgpack.encode(message)
        for message in (
            submit,
            messages.Abort([1, 2]),
            messages.Shutdown(),
            messages.Start(messages.EngineOptions(model_path="m"), messages.Place()),
            messages.StepOutputs([output, messages.Output(4, [])], messages.EngineStats()),
            messages.PhaseReport(phase="p", done=1, total=2),
            messages.Ready(info),
            messages.Failed("no"),
            text_messages.TextOptions(path="p"),
            text_messages.Encode(1, "text"),
            text_messages.OpenText(3, DetokenizerOptions(stop=["a", "b"])),
            text_messages.PushTokens(3, [1, 2], True),
            text_messages.CloseText(3),
            text_messages.TextReady(),
            text_messages.Encoded(1, [1, 2]),
            text_messages.Refused(1, "no"),
            text_messages.Text(3, "text", "a", 4),
            template_messages.LoadTemplate(TemplateSource({"default": "a"}, {"bos_token": "b"})),
            template_messages.Render(messages=[{"role": "user", "content": "hi"}], tools=[{}]),
            template_messages.Loaded(),
            template_messages.Rendered("a"),
            template_messages.TemplateRefused("memory", "no"),
        )
    ]


def _bodies(_: Path) -> list[bytes]:
    sampling = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": -1}
    sampling |= {"stop": ["a"], "stop_token_ids": [1], "logit_bias": {"5": -1.5}, "n": 2}
    message = {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    history = [
        message,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": "1"},
    ]
    words = {"type": "text", "text": "hi"}
    turns = [
        {"role": "user", "content": [words]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "a", "signature": "b"},
                {"type": "tool_use", "id": "a", "name": "f", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "a", "content": [words]}],
        },
        {"role": "system", "content": "b"},
    ]
    return [
        json.dumps(body).encode()
        for body in (
            {"messages": [message], "max_tokens": 5, **sampling},
            {"messages": history, "tools": [{"a": {}}], "tool_choice": "none", "logprobs": True},
            {"messages": [message], "stream": True, "stream_options": {"include_usage": True}},
            {"messages": [message], "response_format": {"type": "text"}, "top_logprobs": 3},
            {
                "messages": [message],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True},
                },
            },
            {"messages": [message], "guided_json": {"enum": [1]}, "guided_choice": ["a"]},
            {"prompt": "a", "structured_outputs": {"regex": "a+", "json_object": False}},
            {"prompt": ["a", "b"], "echo": True, "logprobs": 2, **sampling},
            {"prompt": [[1, 2], [3]], "max_tokens": 0, "best_of": 1, "suffix": ""},
            {"prompt": [1, 2, 3], "min_tokens": 2, "ignore_eos": True, "frequency_penalty": 1.0},
            {"tokens": [1, 2], "skip_special_tokens": True},
            {"messages": turns, "max_tokens": 9, "system": [words], "stop_sequences": ["a"]},
            {
                "messages": turns[:1],
                "max_tokens": 9,
                "tools": [{"name": "f", "input_schema": {"type": "object"}}],
                "tool_choice": {"type": "tool", "name": "f"},
                "thinking": {"type": "enabled", "budget_tokens": 5},
                "output_config": {"format": {"type": "json_schema", "schema": {}}},
            },
        )
    ]


SEEDS = {
    "gguf": _gguf,
    "safetensors": _safetensors,
    "config": _config,
    "gguf_metadata": _gguf,
    "plan": _plan,
    "wire": _wire,
    "bodies": _bodies,
}

_GGUF_WORDS = ["general.architecture", "general.alignment", "llama.block_count", "split.count"]

# Words of the formats, for libFuzzer's dictionary.
WORDS = {
    "gguf": _GGUF_WORDS,
    "gguf_metadata": _GGUF_WORDS,
    "plan": ["MSP\\x02", "\\x01", "\\x02", "\\x03", "\\x04", "\\x05", "\\xff\\xff\\xff\\xff"],
    "wire": ["type", "submit", "abort", "step", "outputs", "stats", "chat", "push", "refused"],
    "config": [*CONFIG, "rope_scaling", "rope_theta", "head_dim", "factor", "1e308", "-1", "null"],
    "safetensors": ["dtype", "shape", "data_offsets", "__metadata__", "BF16", "I64", "F8_E4M3"],
    "bodies": [
        field.name
        for request in (
            ChatRequest,
            CompletionRequest,
            DetokenizeRequest,
            Message,
            MessagesRequest,
            Block,
        )
        for field in msgspec.structs.fields(request)
    ],
}
