"""What the C library does with memory that is no longer used: left alone it keeps hundreds of
megabytes after a few long texts. Nothing happens here without glibc.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

LONG = 2**17  # characters
# Bytes, from which on an allocation is a mapping of its own, which goes back when it is freed.
# glibc begins with 128 K, but raises it to the size of what is freed: up to 32 MB.
MAPPING_BYTES = 2**15
_M_MMAP_THRESHOLD = -3


def return_large_blocks() -> None:
    """To be called once, at the start of a process: what is large goes back as soon as it is
    freed.
    """
    if (mallopt := _of_libc("mallopt")) is not None:
        mallopt(_M_MMAP_THRESHOLD, MAPPING_BYTES)


def give_back_memory(size: int) -> None:
    """To be called after work on a text of `size` characters, on any thread: where it was long,
    the many small blocks that it took go back to the system. It takes milliseconds.
    """
    if size >= LONG and (trim := _of_libc("malloc_trim")) is not None:
        trim(0)


@cache
def _of_libc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None)
