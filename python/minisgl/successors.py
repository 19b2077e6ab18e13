"""The model that takes the place of the one that is served: found, compared and adopted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
from collections.abc import Callable

import msgspec

from minisgl.children import child_environment, python_command, signal_child
from minisgl.config import ServerArgs
from minisgl.engine.api import ReplicaRefused
from minisgl.engine.served_model import ServedModel
from minisgl.engines import served_model
from minisgl.ipc.messages import NamedModel
from minisgl.model_files.files import ModelError
from minisgl.model_files.published_sampling import published_sampling
from minisgl.server.state import ServerState
from minisgl.tokenizer.description import Description, Downloading, Wanted, describe

logger = logging.getLogger(__name__)


class ModelSuccessors:
    """Successors of a server's model."""

    def __init__(self, state: ServerState) -> None:
        self._state = state
        self._served: Description | None = None

    def remember(self, path: str) -> None:
        """Describes the model that is served, whose files may be others when the next one comes.
        Belongs on a thread, once the tokenizer is loaded.
        """
        assert self._state.text is not None
        try:
            self._served = describe(path, self._state.text.tokenizer)
        except ModelError as error:
            logger.warning("this model can't be replaced while it is served: %s", error)

    async def find(self, named: NamedModel, say: Callable[[str], None]) -> ServedModel:
        """As in Successors."""
        served, args = self._served, self._state.args
        if served is None:
            raise ReplicaRefused("nothing can be compared with the model that is served")
        found = await _look_for(named, args, say)
        if found.error:
            raise ReplicaRefused(found.error.rstrip("."))
        if reason := difference(found, served, self._state.client.info.max_model_len):
            raise ReplicaRefused(f"{named.model or 'the default model'} {reason}")
        return served_model(found.path, named, found.commit)

    async def adopt(self, model: ServedModel) -> None:
        """As in Successors."""
        state = self._state
        state.root = model.name
        if state.args.generation_config == "auto":
            try:
                defaults = await asyncio.to_thread(published_sampling, model.path)
            except ModelError as error:
                logger.warning("the defaults of requests' sampling stay as they are: %s", error)
            else:
                state.sampling_defaults = defaults


def difference(found: Description, served: Description, max_model_len: int) -> str:
    """Why one model can't take the place of the other, of which requests of `max_model_len` tokens
    are served; "" where it can.
    """
    for what, digest in served.digests.items():
        if found.digests.get(what) != digest:
            return f"has another {what} than the model that is served"
    new, old = found.sizes, served.sizes
    if None not in (new.vocab_size, old.vocab_size) and new.vocab_size != old.vocab_size:
        return f"has a vocabulary of {new.vocab_size} tokens, and {old.vocab_size} are served"
    longest = min(max_model_len, old.max_position or max_model_len)
    if new.max_position is not None and new.max_position < longest:
        return f"has a context of {new.max_position} tokens, and requests of {longest} are served"
    return ""


async def _look_for(named: NamedModel, args: ServerArgs, say: Callable[[str], None]) -> Description:
    """What the program of tokenizer/description.py says. `say` hears how far it is."""
    wanted = Wanted(
        model=named.model,
        revision=named.revision,
        weights=args.needs_weights,
        chat_template=args.chat_template,
        parent=os.getpid(),
    )
    child = await asyncio.create_subprocess_exec(
        *python_command("minisgl.tokenizer.description"),
        msgspec.json.encode(wanted).decode(),
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert child.stdout is not None
    found: Description | None = None
    try:
        with contextlib.suppress(msgspec.DecodeError):  # of a line that was cut
            while line := await child.stdout.readline():
                word = msgspec.json.decode(line, type=Downloading | Description)
                if isinstance(word, Description):
                    found = word
                else:
                    say(f"downloading {100 * word.done // word.total}%")
        status = await child.wait()
    except asyncio.CancelledError:
        signal_child(child, signal.SIGKILL)
        raise
    if found is None:
        raise ReplicaRefused(f"the process that looks for the model ended with status {status}")
    return found
