"""What may be set of the engine."""

from __future__ import annotations

from dataclasses import dataclass, fields

from minisgl.config.option import OptionError, check_bounds, check_choice, check_text, option

KV_DTYPES = ("auto", "f32", "f16", "bf16", "int8", "fp8")
DEVICES = ("auto", "cpu", "cuda")
LOAD_FORMATS = ("auto", "dummy")
SPECULATIONS = ("none", "ngram")
QUANTIZATIONS = ("none", "fp8", "int4", "q4_1")
MAX_WAITING = 2**20


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What may be set of the engine, described once: the flags of `minisgl-serve`, the arguments of
    LLM and the messages to the ranks are these fields. 0 and "auto" are chosen at start.

    Raises OptionError with the field, its range and the value when something is out of bounds.
    """

    num_threads: int = option(
        0,
        "engine threads; 0: one for each core that this process may use",
        bounds=(0, 1024),
        flag="threads",
    )
    kv_dtype: str = option(
        "auto",
        "KV cache type: "
        + ", ".join(KV_DTYPES)
        + "; int8 (CPU) and fp8 (GPU) take half of f16's memory",
        choices=KV_DTYPES,
        metavar="TYPE",
    )
    kv_cache_tokens: int = option(0, "tokens that the KV cache holds; 0: as many as memory allows")
    kv_host_bytes: int = option(
        0,
        "pinned memory of each host for cached prefixes that GPUs have no room for, divided evenly "
        "among the replicas and ranks there; they come back faster than they are computed",
        bounds=(0, 2**44),
        metavar="BYTES",
    )
    max_model_len: int = option(
        0, "most tokens of a request, prompt and output, at least 2; 0: the model's limit"
    )
    page_size: int = option(16, "tokens per KV page", bounds=(1, 1024))
    max_running: int = option(256, "most sequences in one step", bounds=(1, 65536))
    max_penalized: int = option(
        0,
        "most sequences with penalties in one step, whose counts take 4 bytes for each token of "
        "the vocabulary; 0: as many as --max-running, within 256 MiB",
        bounds=(0, 65536),
    )
    max_batch_tokens: int = option(
        0, "most tokens in one step; 0: 512 on a CPU, 8192 on a GPU", bounds=(0, 65536)
    )
    device: str = option(
        "auto",
        ", ".join(DEVICES) + "; auto: a GPU where there is one",
        choices=DEVICES,
        metavar="DEVICE",
    )
    memory_fraction: float = option(
        0.9,
        "share of the memory left by the weights that KV cache and workspace may take",
        bounds=(0.01, 1.0),
        metavar="SHARE",
    )
    num_pages: int = option(0, "pages of the KV cache, in place of --kv-cache-tokens")
    disable_cuda_graph: bool = option(False, "don't record decode steps as CUDA graphs")
    disable_overlap: bool = option(
        False, "plan each step after the end of the one before (for debugging)"
    )
    disable_prefix_cache: bool = option(
        False, "compute every prompt anew, also where requests begin alike"
    )
    deterministic: bool = option(
        False,
        "a request's tokens depend on nothing but itself, not on what runs beside it, a restart or "
        "the replica, also on GPUs (of compute capability 9.0); CPUs have that in any case",
    )
    load_format: str = option(
        "auto",
        "auto, or dummy: random weights (for measuring)",
        choices=LOAD_FORMATS,
        metavar="FORMAT",
    )
    expert_parallel: bool = option(
        False,
        "give each rank whole experts, in place of a part of each (for mixtures of experts with "
        "--tp)",
    )
    expert_folder: str = option(
        "",
        "on CPUs: the experts of a mixture lie in a file in this folder, which has no name and "
        "goes with the engine; memory holds as many of them as it has room for",
        metavar="FOLDER",
    )
    packed_cache_bytes: int = option(
        2**35,
        "on CPUs: disk that the packed weights of models of 256 MiB and more may take in the cache "
        "folder; later starts map them, and processes share them; those that were used longest ago "
        "make room; 0: nothing is kept",
        bounds=(0, 2**50),
        metavar="BYTES",
    )
    quantize: str = option(
        "none",
        "what the weights of linear layers become at load, on a GPU: fp8, with a scale for each "
        "output feature (compute capability 9.0); int4, in groups of 128; q4_1, the block format",
        choices=QUANTIZATIONS,
        metavar="FORMAT",
    )
    speculate: str = option(
        "none",
        "none, or ngram: tokens that stood behind the same ones before, in a request or in earlier "
        "answers of the same key, are tried as drafts where that is faster; they change no token",
        choices=SPECULATIONS,
        metavar="HOW",
    )
    target_itl_ms: float = option(
        0.0,
        "milliseconds between two tokens of an answer, which long prompts beside it are cut for; "
        "0: prompts are computed as fast as possible",
        bounds=(0, 60_000),
        metavar="MS",
    )
    enable_lora: bool = option(
        False, "take LoRA adapters while the server runs (/v1/load_lora_adapter); --lora does, too"
    )
    max_loras: int = option(
        8,
        "most different adapters in one step; a request with another one waits",
        bounds=(1, 1024),
    )
    max_lora_rank: int = option(64, "highest rank of an adapter", bounds=(1, 256))
    max_waiting: int = option(
        1024,
        "requests that may wait; one more is refused with 429, but for a quarter more of API keys "
        "that have less than their part",
        bounds=(0, MAX_WAITING),
    )

    def __post_init__(self) -> None:
        for described in fields(self):
            value, metadata = getattr(self, described.name), described.metadata
            check_text(described.name, value, shown=described.repr)
            if "bounds" in metadata:
                check_bounds(described.name, value, *metadata["bounds"])
            elif "choices" in metadata:
                check_choice(described.name, value, metadata["choices"])
        if self.page_size & (self.page_size - 1):
            raise OptionError("page_size", f"must be a power of two, got {self.page_size}")
        if self.max_model_len == 1:  # no room for a prompt and a token of output
            raise OptionError("max_model_len", "must be 0 or at least 2, got 1")
        for name in ("kv_cache_tokens", "num_pages"):
            if self.page_size == getattr(self, name) == 1:
                raise OptionError(name, "must be 0 or at least 2 where --page-size is 1, got 1")
