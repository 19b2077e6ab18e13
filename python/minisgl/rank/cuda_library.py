"""NVIDIA's wheels keep cuBLAS where the dynamic linker doesn't look: found here, for the native
module.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
from pathlib import Path


def load_cublas(cuda_version: str) -> None:
    """Loads libcublasLt of the CUDA version that the native module was built with ("13.0"; "" for
    none) into the process, if a wheel brought it; the module finds it by its name then.
    """
    major = cuda_version.split(".")[0]
    spec = importlib.util.find_spec("nvidia") if major else None
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for part in (f"cu{major}", "cublas"):
            library = Path(folder) / part / "lib" / f"libcublasLt.so.{major}"
            if library.is_file():
                with contextlib.suppress(OSError):  # the native module says what is missing
                    ctypes.CDLL(str(library))
                return
