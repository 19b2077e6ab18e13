"""The native module, built from cpp/ by CMake. What it promises stands in cpp/README.md."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, TypedDict

import numpy
from numpy.typing import NDArray
from typing_extensions import Unpack

class InputError(ValueError):
    """What the user gave cannot work; the message is one sentence to be shown as it is."""

class EngineInfo(TypedDict):
    family: str
    weight_dtype: str
    weight_bytes: int
    vocab_size: int
    num_layers: int
    hidden_size: int
    max_position: int
    eos_token_ids: list[int]
    kv_dtype: str
    num_pages: int
    page_size: int
    kv_cache_tokens: int
    kv_cache_bytes: int
    workspace_bytes: int
    graph_bytes: int
    free_bytes: int
    max_model_len: int
    num_threads: int
    device: str
    isa: str
    max_running: int
    max_penalized: int
    max_batch_tokens: int
    max_waiting: int
    prefix_cache: bool
    host_tokens: int
    host_bytes: int
    host_bytes_per_second: float

class EngineStats(TypedDict):
    num_running: int
    num_waiting: int
    waiting_by_priority: list[tuple[int, int]]
    pages_total: int
    pages_free: int
    pages_cached: int
    prefix_queries: int
    prefix_hits: int
    prefix_evictions: int
    host_pages_ready: int
    host_pages_cached: int
    host_queries: int
    host_hits: int
    host_evictions: int
    host_bytes_out: int
    host_bytes_in: int
    num_preemptions: int
    num_drafts: int
    draft_tokens: int
    accepted_tokens: int
    accepted_at: list[tuple[int, int]]
    draft_seconds: float
    num_steps: int
    prompt_tokens: int
    generated_tokens: int
    step_seconds: float

_TopTokens: TypeAlias = list[tuple[int, float]]  # token, log probability; the likeliest first
_Finish: TypeAlias = Literal["", "stop", "length", "abort", "error"]
_ErrorCode: TypeAlias = Literal["", "invalid_request", "too_long", "queue_full", "engine_failure"]
_Unpooled: TypeAlias = tuple[
    int,  # request id
    list[int],  # new tokens; a stop token is the last of them
    _Finish,  # "" while it goes on
    _ErrorCode,
    str,  # error
    list[tuple[float, _TopTokens]] | None,  # one a token, where asked for
    list[tuple[int, float | None, _TopTokens]] | None,  # one a prompt token, once
    tuple[float, float, float] | None,  # seconds in queue, prefill, decode; with the finish
    int,  # prompt tokens found in the prefix cache, once, when prefill ends; else 0
]
# The same, and behind it an embedding: 32-bit floating-point numbers.
_Pooled: TypeAlias = tuple[Unpack[_Unpooled], bytes]
# The same, with drafts that were tried and those of them that held; with the finish.
_Drafted: TypeAlias = tuple[Unpack[_Pooled], tuple[int, int]]
_Output: TypeAlias = _Unpooled | _Pooled | _Drafted

class Progress:
    """How far a rank has come. Reading it waits for no lock and no thread, whatever the rank is
    doing.
    """

    def __init__(self) -> None: ...
    @property
    def done(self) -> int:
        """Grows with every task of an operation, step, and piece of the weights that is done."""

    @property
    def working(self) -> bool:
        """Whether there is something to do that doesn't depend on other ranks' coming: then `done`
        grows, or the rank is stuck.
        """

class EngineOptions(TypedDict, total=False):
    """The options besides model_path, as cpp/engine/options.h declares them. 0 and "auto" are
    chosen.
    """

    num_threads: int
    kv_dtype: str
    page_size: int
    kv_cache_tokens: int
    kv_host_bytes: int
    max_model_len: int
    max_running: int
    max_penalized: int
    max_batch_tokens: int
    max_waiting: int
    target_itl_ms: float
    speculate: str
    enable_lora: bool
    max_loras: int
    max_lora_rank: int
    device: str
    memory_fraction: float
    num_pages: int
    disable_cuda_graph: bool
    disable_overlap: bool
    disable_prefix_cache: bool
    report_blocks: bool
    load_format: str
    expert_parallel: bool
    expert_folder: str
    quantize: str
    cache_dir: str
    packed_cache_bytes: int

class Place:
    """Which rank of a group a process is, and how it reaches the others."""

    def __init__(
        self,
        *,
        rank: int,
        size: int,
        local_size: int,
        ring_fd: int,
        host: str,
        plan_port: int,
        remotes: list[tuple[int, bytes, bytes]],
        spin_microseconds: int,
        device_comm: Communicator,
        host_comm: Communicator,
        step_timeout: float,
    ) -> None:
        """The fields are those of Place in cpp/engine/group.h; `remotes` has (rank, follower's key,
        rank 0's key); step_timeout: seconds that a collective may take once all have loaded.
        """

class Follower:
    """A rank that executes what rank 0 plans, on a thread of its own."""

    def __init__(
        self,
        model_path: str,
        *,
        place: Place | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        counter: Progress | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        """As Engine's."""
    @property
    def info(self) -> EngineInfo: ...
    def start(self) -> None:
        """Starts the thread; once."""
    def stop(self) -> None:
        """Ends the thread. Idempotent."""
    def event_fd(self) -> int:
        """A descriptor that is readable once the thread has ended. It belongs to the follower."""
    def load_adapter(self, id: int, path: str) -> None: ...
    def unload_adapter(self, id: int) -> None: ...
    def failure(self) -> str:
        """What the thread died of, or ""."""
    def blamed_rank(self) -> int:
        """The rank that the failure blames; -1 for none."""

class Engine:
    """A model behind a scheduler, on a thread of its own."""

    def __init__(
        self,
        model_path: str,
        *,
        place: Place | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        counter: Progress | None = None,
        **options: Unpack[EngineOptions],
    ) -> None:
        """Takes its `place` among ranks, if there are several, and loads the weights, calling
        progress(phase, done, total) on this thread. 0 and "auto" are chosen. What a GPU
        measures of itself is kept in cache_dir, if one is given. `counter` shows how far it is,
        from now to its end. Raises TypeError and ValueError that name a wrong option, InputError,
        and RankFailure for another rank's end.
        """

    @property
    def info(self) -> EngineInfo: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def open_grammars(
        self,
        *,
        library: str,
        lengths: bytes,
        tokens: bytes,
        ends: list[int],
        merges: bytes = b"",
    ) -> None:
        """What requests with a grammar need, once: the path of llguidance's extension; of the
        model's tokens the lengths in bytes, packed as 32-bit integers, the bytes, one token after
        the other, those of special tokens behind a byte ff; the end tokens; and where texts become
        tokens by merges, of each the two tokens and the one that they become, packed as 32-bit
        integers, those made first first; -1 twice stands before a token that a character or a byte
        is to begin with. Such requests wait for it. Raises ValueError and InputError.
        """

    def refuse_grammars(self, reason: str) -> None:
        """In place of open_grammars: requests with a grammar end with an error that says why."""

    def submit(self, request: dict[str, Any]) -> None:
        """Keys: those of Submit.engine_fields(); id and prompt are required.

        Raises TypeError for a wrong type or an unknown key, ValueError for a missing key or a
        number that its field can't hold. What can't be served comes back as an output.
        """

    def abort(self, request_id: int) -> None: ...
    def load_adapter(self, id: int, path: str) -> None: ...
    def unload_adapter(self, id: int) -> None: ...
    def event_fd(self) -> int: ...
    def take_outputs(self) -> list[_Output]: ...
    def take_block_events(
        self,
    ) -> list[tuple[str, str, list[int], int | None, list[int], bytes]]:
        """What entered and left the prefix cache, with report_blocks: "stored", "removed" or
        "cleared", the medium, block hashes, the hash before them, token ids, the space's salt.
        """

    def stats(self) -> EngineStats: ...
    def failure(self) -> str: ...
    def blamed_rank(self) -> int:
        """The rank that the failure blames; -1 for none."""

class Model:
    """A model without a scheduler. One thread at a time."""

    def __init__(
        self,
        path: str,
        *,
        num_threads: int = 0,
        kv_dtype: str = "auto",
        page_size: int = 16,
        max_tokens: int = 4096,
        device: str = "cpu",
        num_ranks: int = 1,
        expert_parallel: bool = False,
        expert_folder: str = "",
    ) -> None:
        """num_ranks: the model is cut over so many ranks, threads of this process that share
        num_threads.
        """

    @property
    def info(self) -> dict[str, Any]: ...
    def use_adapter(self, path: str, *, max_rank: int = 256) -> None:
        """forward() has this LoRA adapter from now on."""

    def forward(
        self, token_ids: list[int], *, chunk_sizes: list[int] | None = None
    ) -> NDArray[numpy.float32]:
        """Logits of every position, [len(token_ids), vocab_size], with a fresh cache."""

def shard(role: str, what: str, units: int, rank: int, size: int) -> tuple[bool, int, int]:
    """(whether output features are cut, first unit, number of units) of a rank, by the table of
    cuts. `what` names the units in an error.
    """

class SentPrefixes:
    """What was sent to which replica, for a router: blocks of prompts, as many per replica as its
    cache has room for, the latest ones. Replicas are numbers from 0 on; keys are those of a
    prompt's whole blocks of BLOCK tokens, packed. Raises RuntimeError for a replica that isn't
    there.
    """

    BLOCK: int

    def __init__(self) -> None: ...
    def add(self, replica: int, cache_tokens: int) -> None: ...
    def remove(self, replica: int) -> None: ...
    def num_tokens(self, replica: int) -> int: ...
    def keys(self, space: str | bytes, tokens: Sequence[int], known: bytes = b"") -> bytes: ...
    def insert(self, replica: int, keys: bytes) -> int:
        """The replica is sent these blocks now. Returns how many tokens of them it had."""

    def matched(self, replica: int, keys: bytes) -> int:
        """Tokens from the beginning on that the replica has."""

    def set_load(self, replica: int, load: int) -> None:
        """What speaks against the replica, in tokens that another one would have of a prompt."""

    def take_turn(self, replica: int) -> None: ...
    def choose(self, keys: bytes, excluded: Sequence[int]) -> tuple[int, int, int, int]:
        """Of the replicas without `excluded` the one with the least load (-1: there is none), the
        one with the least when what it has of the prompt is taken off, how many tokens that is,
        and how many replicas there are.
        """

    def check(self) -> None: ...

class LinearProduct:
    """The product of a linear layer, on the tensors' own device."""

    def __init__(self, inputs: int, outputs: int) -> None: ...
    def run(self, x: Any, weight: Any, bias: Any) -> Any:
        """A new tensor [..., outputs] of x [..., inputs], weight [outputs, inputs] and bias
        [outputs] or None, all of one dtype and on one device. On a CPU it is done when this
        returns; on a GPU it is queued on torch's current stream.
        """

class RankFailure(RuntimeError):  # noqa: N818
    """A collective that could not end because another rank died, left or didn't come; the message
    names it.
    """

    rank: int
    """The rank that is to blame; -1 where it isn't known."""

class Communicator:
    """Collectives between ranks; every rank makes the same calls in the same order. Tensors are
    contiguous and on `device`. With a GPU, calls queue on the CUDA stream of that handle and
    return; between CPU ranks they return when they are done. Raises RankFailure, and InputError for
    a tensor that does not fit.
    """

    @property
    def name(self) -> str: ...
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def device(self) -> int:
        """Ordinal of the GPU; -1 for CPU ranks."""

    def all_reduce(self, tensor: Any, op: str = "sum", stream: int | None = None) -> None:
        """The sum over ranks, in place; float32, float16 or bfloat16; op "sum" is the only one.

        Tensors are contiguous and on the communicator's device, of any size. `stream` is a CUDA
        stream's handle; None is torch's current one. Raises InputError for what doesn't fit,
        RankFailure where another rank fails.
        """

    def all_gather(self, output: Any, input: Any, stream: int | None = None) -> None:
        """Every rank's input, in the order of ranks; any dtype, size times as large an output."""

    def reduce_scatter(self, output: Any, input: Any, stream: int | None = None) -> None:
        """This rank's part, of `size` equal ones, of the sum over ranks of the inputs."""

    def broadcast(self, tensor: Any, root: int = 0, stream: int | None = None) -> None: ...
    def barrier(self, stream: int = 0) -> None: ...
    def set_time_limit(self, seconds: float) -> None:
        """How long a collective waits for the other ranks from now on."""

    def begin_wait(self) -> None:
        """Before this thread waits for the device; end_wait() after. Puts a time limit on it."""

    def end_wait(self) -> None: ...

class ShmCommunicator(Communicator):
    def __init__(self, name: str, *, rank: int, size: int, timeout: float = 30.0) -> None:
        """Waits until every rank has come to the group of that name on this host."""

class TcpCommunicator(Communicator):
    def __init__(
        self, address: str, *, secret: str, rank: int, size: int, timeout: float = 30.0
    ) -> None:
        """Waits until every rank has come to rank 0's address, "host:port"."""

class PyNCCLCommunicator(Communicator):
    """GPU ranks, through NCCL, and through each other's memory where that is faster."""

    def __init__(
        self,
        host: Communicator,
        *,
        device: int,
        sums: Literal["fastest", "nccl", "registered", "peers"] = "fastest",
        max_buffer_bytes: int = 0,
        library: str = "",
        timeout: float = 30.0,
    ) -> None:
        """Waits until every rank has called it. `host` joins the same ranks on their CPUs, and is
        used here only. `sums`: the fastest way by size, as measured here; NCCL in place; NCCL
        through a buffer of max_buffer_bytes; or peer memory up to the sizes it is made for.
        """

class PluginCommunicator(Communicator):
    def __init__(self, target: Any, *, rank: int, size: int, device: int = -1) -> None:
        """`target` is a minisgl.distributed.plugin.PluginTarget, or something like it."""

def divide_even(a: int, b: int) -> int:
    """a / b. Raises InputError where b does not divide a."""

def num_gpus() -> int: ...
def gpu_pci_id(device: int) -> str: ...
def usable_processors() -> int: ...
def set_log(least: int, json: bool, process: str) -> None: ...
def cpu_isa() -> str: ...
def measure_read_bandwidth(num_threads: int, device: str = "cpu") -> float: ...
def build_info() -> dict[str, str]: ...
