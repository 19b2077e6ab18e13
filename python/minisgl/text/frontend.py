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

from minisgl.model_files.files import ModelError
from minisgl.text.messages import (
    CloseText,
    Encode,
    EncodeChat,
    Encoded,
    OpenText,
    PushTokens,
    Text,
    TextOptions,
)
from minisgl.text.worker_pool import WorkerClient, WorkerLost, WorkerPolicy, WorkerStartError
from minisgl.text.worker_process import encode_message
from minisgl.tokenizer import DetokenizerOptions, IncrementalDetokenizer, Tokenizer, load_tokenizer
from minisgl.tokenizer.chat_template import read_chat_template
from minisgl.tokenizer.tokenizer import check_unicode

LONG_TEXT = 8192  # characters; a longer text would hold up the event loop
NUM_ENCODE_THREADS = 2

Result = TypeVar("Result")

__all__ = ["Detokenizer", "TextFrontend", "WorkerLost", "WorkerPolicy"]


class Detokenizer:
    """Token ids of one stream to text, as they come: IncrementalDetokenizer here or elsewhere."""

    def __init__(self) -> None:
        self.match: str | None = None  # the stop string that came; the text is cut there
        self.num_tokens = 0  # taken so far, up to the one that completed a stop string

    async def push(
        self, token_ids: Sequence[int], *, final: bool = False, stop_token: int | None = None
    ) -> str:
        """Text that may be shown now; with `final` the rest too, and then nothing more may come.

        `stop_token` ended the stream behind the last of these ids: it has no part in the text, but
        may complete a stop string. Raises WorkerLost when the process that has the stream's text
        died and none came in time.
        """
        raise NotImplementedError

    def push_here(
        self, token_ids: Sequence[int], *, final: bool = False, stop_token: int | None = None
    ) -> str | None:
        """push() without waiting, where the text is made in this process. None, and nothing was
        pushed, where it is made in another.
        """
        return None

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
        policy: WorkerPolicy | None = None,
    ) -> TextFrontend:
        """Loads the tokenizer of a model. ModelError, with one sentence, when that isn't possible.

        `chat_template`: path of a Jinja file. `command` and `policy` of the worker processes.
        """
        template = None
        if chat_template is not None:
            template = await asyncio.to_thread(read_chat_template, chat_template)
        options = TextOptions(path=path, chat_template=template)
        encoders = [
            WorkerClient(f"tokenizer process {number}", options, command=command, policy=policy)
            for number in range(num_tokenizer)
        ]
        workers = list(encoders)
        detokenizer = None
        if num_tokenizer:
            name = "the detokenizer process"
            detokenizer = WorkerClient(name, options, command=command, policy=policy)
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

    async def encode_words(self, words: Sequence[str]) -> list[list[int]]:
        """Token ids of each word without and with a space before it; each list once. ValueError for
        what is no Unicode text; WorkerLost.
        """
        if not words:
            return []
        # A SentencePiece vocabulary puts a space before a text: not where a line begins in it.
        line = "\n" if self.tokenizer.strips_first_space else ""
        texts = [line] + [line + before + word for word in words for before in ("", " ")]
        head, *lists = await asyncio.gather(*(self.encode(text, False) for text in texts))
        size = len(head)
        cut = (tuple(ids[size:] if ids[:size] == head else ids) for ids in lists)
        return [list(ids) for ids in dict.fromkeys(cut) if ids]

    async def encode_chat(
        self,
        messages: list[dict[str, Any]],
        template_kwargs: dict[str, Any] | None = None,
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
    ) -> list[int]:
        """Token ids of a conversation. ChatTemplateError, ValueError or WorkerLost."""
        message = EncodeChat(
            id=next(self._ids),
            messages=messages,
            template_kwargs=template_kwargs,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            add_special_tokens=add_special_tokens,
        )
        return await self._encode(message, _num_characters((messages, template_kwargs)))

    def detokenizer(self, options: DetokenizerOptions) -> Detokenizer:
        """A detokenizer for one stream."""
        if self._detokenizer is None:
            return _LocalDetokenizer(IncrementalDetokenizer(self.tokenizer, options))
        return _RemoteDetokenizer(self._detokenizer, OpenText(next(self._ids), options))

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

    async def push(
        self, token_ids: Sequence[int], *, final: bool = False, stop_token: int | None = None
    ) -> str:
        return self.push_here(token_ids, final=final, stop_token=stop_token)

    def push_here(
        self, token_ids: Sequence[int], *, final: bool = False, stop_token: int | None = None
    ) -> str:
        detokenizer = self._detokenizer
        text = detokenizer.push(token_ids)
        if final:
            text += detokenizer.finish(stop_token)
        self.match, self.num_tokens = detokenizer.match, detokenizer.num_tokens
        return text


class _RemoteDetokenizer(Detokenizer):
    """A stream's text in the detokenizer process. When that dies, the next one makes the text anew
    from all ids so far, and what was given out before is cut off: text doesn't depend on how its
    ids are divided into pushes.
    """

    def __init__(self, worker: WorkerClient, opening: OpenText) -> None:
        super().__init__()
        self._worker = worker
        self._opening = opening
        self._token_ids: list[int] = []  # all so far
        self._num_characters = 0  # given out so far
        self._life = 0  # the number of the process that has the stream; 0: none
        with contextlib.suppress(WorkerLost):  # push() waits for the next one
            self._open(worker.life)

    async def push(
        self, token_ids: Sequence[int], *, final: bool = False, stop_token: int | None = None
    ) -> str:
        self._token_ids += token_ids
        if self._life == self._worker.life:
            message = PushTokens(self._opening.id, list(token_ids), final, stop_token)
            with contextlib.suppress(WorkerLost):
                answer = await self._worker.ask(message.id, message)
                return self._take(answer, 0, final)
        seconds = self._worker.policy.reopen_seconds
        try:
            answer = await asyncio.wait_for(self._push_all(final, stop_token), seconds)
        except asyncio.TimeoutError:
            raise WorkerLost(f"no detokenizer process came back within {seconds:g} s") from None
        return self._take(answer, self._num_characters, final)

    async def _push_all(self, final: bool, stop_token: int | None) -> Encoded | Text:
        """The answer of the first process from now on that lives long enough to give it."""
        message = PushTokens(self._opening.id, self._token_ids, final, stop_token)
        while True:
            life = await self._worker.next_life(self._life)
            with contextlib.suppress(WorkerLost):
                self._open(life)
                return await self._worker.ask(message.id, message)

    def _open(self, life: int) -> None:
        self._life = life
        self._worker.tell(self._opening)

    def _take(self, answer: Encoded | Text, num_known: int, final: bool) -> str:
        assert isinstance(answer, Text)
        if final:
            self._life = 0
        self.match, self.num_tokens = answer.match, answer.num_tokens
        text = answer.text[num_known:]
        self._num_characters += len(text)
        return text

    def __del__(self) -> None:
        # A stream that ends early: the other process need not keep its text.
        if self._life == self._worker.life:
            with contextlib.suppress(Exception):
                self._worker.tell(CloseText(self._opening.id))


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
