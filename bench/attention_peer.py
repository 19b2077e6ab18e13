"""Attention of this engine and of others, on one GPU in one run: `device_bench attention`'s shapes.

    python bench/attention_peer.py --device-bench build/bench/native/device_bench

The peers are FlashInfer's paged kernels where `flashinfer` can be imported, over a cache of the
same layout with the pages of a sequence apart, and in any case torch's scaled_dot_product_attention
(FlashAttention 2 and cuDNN), over dense keys and values. Wants torch with CUDA.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import statistics
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

PAGE_SIZE = 16


@dataclass(frozen=True)
class Shape:
    """`batch` sequences of `context` positions, of which a step computes the last `rows`."""

    batch: int
    context: int
    rows: int
    heads: int
    kv_heads: int
    head_dim: int = 128

    @property
    def label(self) -> str:
        kind = "decode" if self.rows == 1 else "prefill"
        heads = f"{self.heads}/{self.kv_heads} heads of {self.head_dim}"
        return f"{kind} {self.batch} x {self.context}, {heads}"

    def rate(self, seconds: float) -> str:
        if self.rows == 1:
            nbytes = 4 * self.batch * self.context * self.kv_heads * self.head_dim
            return f"{nbytes / seconds / 1e9:7.1f} GB/s"
        pairs = self.rows * (2 * self.context - self.rows + 1) / 2
        flops = 4 * self.batch * pairs * self.heads * self.head_dim
        return f"{flops / seconds / 1e12:6.1f} TFLOP/s"


SHAPES = [
    Shape(64, 2048, 1, 32, 8),
    Shape(1, 32768, 1, 32, 8),
    Shape(256, 512, 1, 16, 8),
    Shape(8, 4096, 4096, 32, 8),
]


def time_calls(call: Callable[[], object], calls: int) -> float:
    """Median seconds of a call among five timed groups of `calls`."""
    for _ in range(calls):
        call()
    seconds = []
    for _ in range(5):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3 / calls)
    return statistics.median(seconds)


def random_values(*sizes: int) -> torch.Tensor:
    return torch.randn(sizes, dtype=torch.bfloat16, device="cuda")


Call = Callable[[], object]
Peer = tuple[str, Callable[[], Call]]  # its name, and what prepares a call of its kernels


def flashinfer_peers(shape: Shape) -> Iterator[Peer]:
    import flashinfer

    def prepare() -> Call:
        pages_each = (shape.context + PAGE_SIZE - 1) // PAGE_SIZE
        num_pages = shape.batch * pages_each
        cache = tuple(
            random_values(num_pages, shape.kv_heads, PAGE_SIZE, shape.head_dim) for _ in range(2)
        )
        queries = random_values(shape.batch * shape.rows, shape.heads, shape.head_dim)
        pages = torch.arange(num_pages, dtype=torch.int32).reshape(pages_each, shape.batch)
        tables = (
            torch.arange(0, num_pages + 1, pages_each, dtype=torch.int32),
            pages.T.flatten().cuda(),
            torch.full((shape.batch,), (shape.context - 1) % PAGE_SIZE + 1, dtype=torch.int32),
        )
        sizes = (shape.heads, shape.kv_heads, shape.head_dim, PAGE_SIZE)
        workspace = torch.zeros(256 << 20, dtype=torch.uint8, device="cuda")
        if shape.rows == 1:
            decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND")
            decode.plan(*tables, *sizes, q_data_type=torch.bfloat16)
            return lambda: decode.run(queries, cache)
        row_starts = torch.arange(0, len(queries) + 1, shape.rows, dtype=torch.int32)
        prefill = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "HND")
        prefill.plan(row_starts, *tables, *sizes, causal=True, q_data_type=torch.bfloat16)
        return lambda: prefill.run(queries, cache)

    yield f"flashinfer {flashinfer.__version__}", prepare


def torch_peers(shape: Shape) -> Iterator[Peer]:
    for name, backend in (
        ("flash", SDPBackend.FLASH_ATTENTION),
        ("cuDNN", SDPBackend.CUDNN_ATTENTION),
    ):

        def prepare(backend: SDPBackend = backend) -> Call:
            queries = random_values(shape.batch, shape.heads, shape.rows, shape.head_dim)
            keys, values = (
                random_values(shape.batch, shape.kv_heads, shape.context, shape.head_dim)
                for _ in range(2)
            )

            def call() -> torch.Tensor:
                with sdpa_kernel(backend):
                    return torch.nn.functional.scaled_dot_product_attention(
                        queries, keys, values, is_causal=shape.rows > 1, enable_gqa=True
                    )

            return call

        yield f"torch {torch.__version__}, {name}", prepare


def device_bench_rates(program: str) -> dict[str, tuple[float, str]]:
    """Seconds and the program's own words for each shape, by label."""
    output = subprocess.run(
        [program, "attention"], check=True, capture_output=True, text=True
    ).stdout
    print(output.splitlines()[0])
    found = re.finditer(
        r"^(decode|prefill) attention +(\d+) x +(\d+), (\S+ heads of \d+) +([\d.]+) us +(.*)$",
        output,
        re.MULTILINE,
    )
    return {
        f"{kind} {batch} x {context}, {heads}": (float(us) / 1e6, rest)
        for kind, batch, context, heads, us, rest in (match.groups() for match in found)
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device-bench", required=True, help="the program built from bench/native")
    arguments = parser.parse_args()
    ours = device_bench_rates(arguments.device_bench)
    has_flashinfer = importlib.util.find_spec("flashinfer") is not None
    if not has_flashinfer:
        print("flashinfer is not installed: torch alone")
    for shape in SHAPES:
        print(shape.label)
        own_seconds, words = ours[shape.label]
        print(f"  {'minisgl':28} {own_seconds * 1e6:9.1f} us  {words}")
        peers = [*flashinfer_peers(shape)] if has_flashinfer else []
        for name, prepare in [*peers, *torch_peers(shape)]:
            try:
                seconds = time_calls(prepare(), 3 if shape.rows > 1 else 20)
            except RuntimeError as error:  # doesn't do this shape here
                print(f"  {name:28} refused: {str(error).splitlines()[0][:80]}")
                continue
            print(
                f"  {name:28} {seconds * 1e6:9.1f} us  {shape.rate(seconds)}, "
                f"ours is {seconds / own_seconds:.2f} times as fast"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
