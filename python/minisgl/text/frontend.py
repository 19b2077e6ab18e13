"""TextFrontend: text to token ids and back for the server, in its own process or in others.

With no tokenizer process short texts are encoded on the event loop and long ones in a thread (the
tokenizers library releases the GIL). With N processes encoding goes to the least busy of them and
detokenizing to one more. The interface is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from minisgl.ipc.text_messages import (
    CloseText,
    Encode,
    EncodeChat,
    Encoded,
    OpenText,
    PushTokens,
    Text,
    TextOptions,
)
from minisgl.model_files.files import ModelError
from minisgl.text.worker_pool import WorkerClient, WorkerLost, WorkerStartError
from minisgl.text.worker_process import encode_message
from minisgl.tokenizer import IncrementalDetokenizer, Tokenizer, load_tokenizer
from minisgl.tokenizer.chat_template import read_chat_template
from minisgl.tokenizer.tokenizer import check_unicode

LONG_TEXT = 8192  # characters; a longer text would hold up the event loop
NUM_ENCODE_THREADS = 2

Result = TypeVar("Result")

__all__ = ["Detokenizer", "TextFrontend", "WorkerLost"]


class Detokenizer:
    """Token ids of one stream to text, as they come: IncrementalDetokenizer here or elsewhere."""

    def __init__(self) -> None:
        self.stopped = False  # a stop string came; the text is cut there
        self.stop_string: str | None = None
        self.num_tokens = 0  # taken so far, up to the one that completed a stop string

    async def push(self, token_ids: Sequence[int], *, final: bool = False) -> str:
        """Text that may be shown now; with `final` the rest too, and then nothing more may come.

        Raises WorkerLost when the process that has the stream's text died.
        """
        raise NotImplementedError

    async def finish(self) -> str:
        """The rest of the text."""
        return await self.push((), final=True)


class TextFrontend:
    """Made by start(); ended by close() or kill()."""

    def __init__(
        self, tokenizer: Tokenizer, encoders: list[WorkerClient], detokenizer: WorkerClient | None
    ) -> None:
        self.tokenizer = tokenizer
        self._encoders = encoders
        self._detokenizer = detokenizer
        self._threads = ThreadPoolExecutor(NUM_ENCODE_THREADS, thread_name_prefix="encode")
        self._ids = itertools.count()

    @classmethod
    async def start(
        cls,
        path: str,
        *,
        chat_template: str | None = None,
        num_tokenizer: int = 0,
        command: Sequence[str] | None = None,
    ) -> TextFrontend:
        """Loads the tokenizer of a model. ModelError, with one sentence, when that isn't possible.

        `chat_template`: path of a Jinja file. `command`: the worker program (for tests).
        """
        template = None
        if chat_template is not None:
            template = await asyncio.to_thread(read_chat_template, chat_template)
        options = TextOptions(path=path, chat_template=template)
        encoders = [
            WorkerClient(f"tokenizer process {number}", options, command=command)
            for number in range(num_tokenizer)
        ]
        workers = list(encoders)
        detokenizer = None
        if num_tokenizer:
            detokenizer = WorkerClient("the detokenizer process", options, command=command)
            workers.append(detokenizer)
        load = asyncio.create_task(asyncio.to_thread(load_tokenizer, path, chat_template=template))
        starts = [asyncio.create_task(worker.start()) for worker in workers]
        try:
            await asyncio.gather(load, *starts)
        except BaseException as error:
            for task in starts:
                task.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await asyncio.gather(*(worker.close() for worker in workers))
            if isinstance(error, WorkerStartError):
                raise ModelError(str(error)) from error
            raise
        return cls(load.result(), encoders, detokenizer)

    async def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. ValueError for what is no Unicode text; WorkerLost."""
        check_unicode(text)
        message = Encode(next(self._ids), text, add_special_tokens)
        return await self._encode(message, len(text))

    async def encode_chat(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        template_kwargs: dict[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Token ids of a conversation. ChatTemplateError, ValueError or WorkerLost."""
        message = EncodeChat(
            id=next(self._ids),
            messages=messages,
            tools=tools,
            template_kwargs=template_kwargs,
            add_generation_prompt=add_generation_prompt,
        )
        return await self._encode(message, _num_characters((messages, tools, template_kwargs)))

    def detokenizer(
        self,
        *,
        skip_special_tokens: bool = True,
        stop: Sequence[str] = (),
        min_tokens: int = 0,
        include_stop: bool = False,
        continues_prompt: bool = False,
    ) -> Detokenizer:
        """A detokenizer for one stream. Raises WorkerLost."""
        if self._detokenizer is None:
            return _LocalDetokenizer(
                IncrementalDetokenizer(
                    self.tokenizer,
                    skip_special_tokens=skip_special_tokens,
                    stop=stop,
                    min_tokens=min_tokens,
                    include_stop=include_stop,
                    continues_prompt=continues_prompt,
                )
            )
        opening = OpenText(
            id=next(self._ids),
            skip_special_tokens=skip_special_tokens,
            stop=list(stop),
            min_tokens=min_tokens,
            include_stop=include_stop,
            continues_prompt=continues_prompt,
        )
        return _RemoteDetokenizer(self._detokenizer, opening)

    async def off_loop(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What `function` returns, called in one of the threads for long texts."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def close(self) -> None:
        """Ends the processes and lets go of the threads. Idempotent."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*(worker.close() for worker in self._workers()))

    def kill(self) -> None:
        """Ends the processes at once."""
        for worker in self._workers():
            worker.kill()

    def _workers(self) -> list[WorkerClient]:
        return self._encoders + ([self._detokenizer] if self._detokenizer is not None else [])

    async def _encode(self, message: Encode | EncodeChat, num_characters: int) -> list[int]:
        if self._encoders:
            worker = min(
                self._encoders, key=lambda worker: (not worker.serving, worker.num_waiting)
            )
            answer = await worker.ask(message.id, message)
            assert isinstance(answer, Encoded)
            return answer.token_ids
        if num_characters < LONG_TEXT:
            return encode_message(self.tokenizer, message)
        return await self.off_loop(encode_message, self.tokenizer, message)


class _LocalDetokenizer(Detokenizer):
    def __init__(self, detokenizer: IncrementalDetokenizer) -> None:
        super().__init__()
        self._detokenizer = detokenizer

    async def push(self, token_ids: Sequence[int], *, final: bool = False) -> str:
        detokenizer = self._detokenizer
        text = detokenizer.push(token_ids)
        if final:
            text += detokenizer.finish()
        self.num_tokens = detokenizer.num_tokens
        if detokenizer.stopped:
            self.stopped, self.stop_string = True, detokenizer.stop_string
        return text


class _RemoteDetokenizer(Detokenizer):
    def __init__(self, worker: WorkerClient, opening: OpenText) -> None:
        super().__init__()
        self._worker = worker
        self._id = opening.id
        worker.tell(opening)
        self._open = True

    async def push(self, token_ids: Sequence[int], *, final: bool = False) -> str:
        message = PushTokens(self._id, list(token_ids), final)
        answer = await self._worker.ask(self._id, message)
        assert isinstance(answer, Text)
        self._open = not final
        self.stopped, self.stop_string = answer.stopped, answer.stop_string
        self.num_tokens = answer.num_tokens
        return answer.text

    def __del__(self) -> None:
        # A stream that ends early: the other process need not keep its text.
        if getattr(self, "_open", False):
            with contextlib.suppress(Exception):
                self._worker.tell(CloseText(self._id))


def _num_characters(value: Any) -> int:
    """Characters in all strings of a JSON value, without recursion."""
    total, rest = 0, [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            rest.extend(item)
            rest.extend(item.values())
        elif isinstance(item, (list, tuple)):
            rest.extend(item)
    return total
