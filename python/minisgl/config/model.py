"""What may be set of the model: where it comes from, and how its texts are read."""

from __future__ import annotations

from dataclasses import dataclass

from minisgl.config.option import option

GENERATION_CONFIGS = ("auto", "none", "vllm")


@dataclass(frozen=True)
class ModelSettings:
    """A part of ServerArgs, which is what makes and checks it."""

    model: str | None = option(
        None,
        "Hugging Face id (with :Q4_K_M for one GGUF file of several), folder (config.json + "
        "safetensors) or .gguf file",
        group="model",
    )
    revision: str | None = option(
        None, "branch, tag or commit of the Hugging Face id", group="model"
    )
    served_model_name: tuple[str, ...] = option(
        (),
        "names of the model in /v1/models; requests may say any of them, answers say the first",
        group="model",
        metavar="NAME",
    )
    lora: tuple[str, ...] = option(
        (),
        "LoRA adapters in PEFT's form (adapter_config.json, adapter_model.safetensors); requests "
        "choose one by its name as their model",
        group="model",
        metavar="NAME=FOLDER",
        alias="lora-modules",
    )
    chat_template: str | None = option(
        None,
        "Jinja file that replaces the model's chat template",
        group="model",
        metavar="FILE",
    )
    tool_call_parser: str = option(
        "auto",
        "form of the model's tool calls: auto (by the chat template), none (requests with tools "
        "are refused), or its name, such as hermes",
        group="model",
        metavar="NAME",
    )
    reasoning_parser: str = option(
        "auto",
        "form of the model's thoughts: auto (by the chat template), none (they are a part of the "
        "content), or its name, such as qwen3",
        group="model",
        metavar="NAME",
    )
    generation_config: str = option(
        "auto",
        "auto: temperature, top_p, top_k, min_p and repetition_penalty that the model publishes "
        "(generation_config.json) are a request's defaults; none (or vllm): they are not",
        group="model",
        choices=GENERATION_CONFIGS,
        metavar="WHICH",
    )
