"""Where the build tests find the repository and the build tools."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]


def find_tool(name: str) -> str:
    """Path of cmake, ctest or ninja: of this Python's environment, else of the system."""
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if not path:
        raise RuntimeError(f"{name} was not found; pip install '.[test]' brings it")
    return path
