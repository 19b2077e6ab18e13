"""die_with_parent: no child outlives its parent."""

from __future__ import annotations

import ctypes
import logging
import os
import signal

_PR_SET_PDEATHSIG = 1

logger = logging.getLogger(__name__)


def die_with_parent(sent: signal.Signals) -> None:
    """Asks the kernel for a signal at the parent's death. SIGKILL also ends a child that is
    stopped, but leaves it no time: it is for one whose files the parent has removed.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, sent, 0, 0, 0) != 0:
        logger.warning(
            "the kernel won't end this process with its parent (prctl): %s",
            os.strerror(ctypes.get_errno()),
        )
