"""The program of a tokenizer process: encodes prompts, or detokenizes streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from minisgl.ipc.child import ParentLink, run_child
from minisgl.ipc.messages import Alive, Failed, Shutdown
from minisgl.ipc.queues import ZmqAsyncPushQueue
from minisgl.model_files.files import ModelError
from minisgl.tasks import background
from minisgl.text.heap import give_back_memory, return_large_blocks
from minisgl.text.messages import (
    ALIVE_SECONDS,
    CloseText,
    Encode,
    Encoded,
    OpenText,
    PushTokens,
    Refused,
    Text,
    TextOptions,
    TextReady,
    ToText,
    to_text_decoder,
)
from minisgl.tokenizer import IncrementalDetokenizer, Tokenizer, load_tokenizer

logger = logging.getLogger(__name__)


async def main(link: ParentLink[ToText]) -> int:
    """Loads the tokenizer, then answers messages in their order until Shutdown."""
    options = await link.inbox.get()
    if not isinstance(options, TextOptions):
        raise TypeError(f"expected the options first, got {type(options).__name__}")
    pulse = background(_show_life(link.outbox), "the signs of life")
    try:
        return await _serve(link, options)
    finally:
        pulse.cancel()


async def _show_life(outbox: ZmqAsyncPushQueue[Any]) -> None:
    while True:
        outbox.put_nowait(Alive())
        await asyncio.sleep(ALIVE_SECONDS)


async def _serve(link: ParentLink[ToText], options: TextOptions) -> int:
    # What is to be said of the model's tokenizer, the server says once.
    logging.getLogger("minisgl.tokenizer").setLevel(logging.ERROR)
    try:
        tokenizer = await asyncio.to_thread(load_tokenizer, options.path)
    except ModelError as error:
        link.outbox.put_nowait(Failed(str(error)))
        return 1
    logger.info("ready")
    link.outbox.put_nowait(TextReady())
    worker = Worker(tokenizer)
    while True:
        message = await link.inbox.get()
        if isinstance(message, Shutdown):
            return 0
        answer = await worker.answer(message)
        if answer is not None:
            link.outbox.put_nowait(answer)


class Worker:
    """A tokenizer and the detokenizers that are open."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._open: dict[int, IncrementalDetokenizer] = {}

    async def answer(self, message: ToText) -> Encoded | Refused | Text | None:
        """The reply to a message, None where there is none."""
        if isinstance(message, Encode):
            # In a thread, so that the loop hears of the parent's end during a long text.
            return await asyncio.to_thread(self._encode, message)
        if isinstance(message, PushTokens):
            return self._push(message)
        if isinstance(message, OpenText):
            self._open[message.id] = IncrementalDetokenizer(self._tokenizer, message.options)
        elif isinstance(message, CloseText):
            self._open.pop(message.id, None)
        return None

    def _encode(self, message: Encode) -> Encoded | Refused:
        try:
            token_ids = self._tokenizer.encode(
                message.text, add_special_tokens=message.add_special_tokens
            )
            give_back_memory(len(message.text))
            return Encoded(message.id, token_ids)
        except ValueError as error:
            return Refused(message.id, str(error))
        except Exception as error:  # one bad prompt must not end the process
            logger.exception("a prompt could not be encoded")
            return Refused(message.id, f"the prompt can't be tokenized: {error}")

    def _push(self, message: PushTokens) -> Text | Refused:
        detokenizer = self._open.get(message.id)
        if detokenizer is None:
            return Refused(message.id, "no such stream")
        text = detokenizer.push(message.token_ids)
        if message.final:
            text += detokenizer.finish(message.stop_token)
            del self._open[message.id]
        return Text(message.id, text, detokenizer.match, detokenizer.num_tokens)


def refuse_malformed(outbox: ZmqAsyncPushQueue[Any]) -> Callable[[bytes], None]:
    """Replies to a message that can't be decoded if it can be seen which one it was."""

    def reply(data: bytes) -> None:
        try:
            content = msgspec.msgpack.decode(data)
        except (msgspec.DecodeError, ValueError, RecursionError):
            return
        message_id = content.get("id") if isinstance(content, dict) else None
        if isinstance(message_id, int) and 0 <= message_id < 2**63:
            outbox.put_nowait(Refused(message_id, "the message has a value out of range"))

    return reply


if __name__ == "__main__":
    return_large_blocks()
    run_child(to_text_decoder, main, refuse_malformed)
