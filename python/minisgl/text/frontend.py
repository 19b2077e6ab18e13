"""TextFrontend: text to token ids and back for the server, in its own process or in others.

With no tokenizer process short texts are encoded on the event loop and long ones in a thread (the
tokenizers library releases the GIL). With N processes encoding goes to the least busy of them and
detokenizing to one more. The interface is the same.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from minisgl.model_files.files import ModelError
from minisgl.text.answers import (
    AnswerMemory,
    Owner,
    RememberedAnswer,
    Turn,
    conversations,
    find_runs,
    join_runs,
    pieces_between,
    turns_of,
)
from minisgl.text.detokenizer import Detokenizer, LocalDetokenizer, RemoteDetokenizer
from minisgl.text.errors import PromptTooLong, WorkerLost
from minisgl.text.grammar_messages import GrammarSource
from minisgl.text.grammars import Grammars
from minisgl.text.heap import give_back_memory
from minisgl.text.loading import load_tokenizer_here, load_with_template, template_client
from minisgl.text.messages import Encode, Encoded, OpenText, TextOptions
from minisgl.text.template_client import TemplateClient
from minisgl.text.waiting_line import Place, WaitingLine
from minisgl.text.worker_pool import WorkerClient, WorkerPolicy, WorkerStartError
from minisgl.tokenizer import DetokenizerOptions, IncrementalDetokenizer, Tokenizer
from minisgl.tokenizer.template_source import ChatTemplateError
from minisgl.tokenizer.tokenizer import check_unicode

if TYPE_CHECKING:
    from minisgl.sampling_params import SamplingParams, ThoughtFormat
    from minisgl.text.thought_table import ThoughtTable

LONG_TEXT = 8192  # characters; a longer text would hold up the event loop
NUM_ENCODE_THREADS = 2
PROMPT_END_CHARS = 256  # of a conversation, which show whether a thought has been begun there

Result = TypeVar("Result")


class ChatPrompt(NamedTuple):
    """A conversation as the model reads it."""

    ids: list[int]
    turns: tuple[Turn, ...] = ()  # where its answer begins, if that is to be remembered
    conversation: bytes = b""  # its key
    end: str = ""  # the last characters of its text


class TextFrontend:
    """Made by start(); ended by close() or kill()."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        encoders: list[WorkerClient],
        detokenizer: WorkerClient | None,
        templates: TemplateClient | None = None,
        *,
        answer_memory_bytes: int = 0,
    ) -> None:
        """`answer_memory_bytes`: for the token ids of answers; 0: none are remembered."""
        self.tokenizer = tokenizer
        self._answers = AnswerMemory(answer_memory_bytes) if answer_memory_bytes else None
        if templates is None and tokenizer.chat_template is not None:
            templates = TemplateClient(tokenizer.chat_template)
        self._templates = templates
        self._encoders = encoders
        self._detokenizer = detokenizer
        self._grammars = Grammars()
        self._thoughts: dict[Any, ThoughtFormat] = {}  # those of a format: a few
        self._threads = ThreadPoolExecutor(NUM_ENCODE_THREADS, thread_name_prefix="encode")
        self._line = WaitingLine()
        self._ids = itertools.count()

    @classmethod
    def local(cls, path: str, chat_template: str | None = None) -> TextFrontend:
        """Loads the tokenizer of a model, on the caller's thread, for use in this process. A chat
        template is loaded when it is used first. ModelError.
        """
        tokenizer = load_tokenizer_here(path, chat_template)
        source = tokenizer.chat_template
        templates = None if source is None else template_client(chat_template, source)
        return cls(tokenizer, [], None, templates)

    @classmethod
    async def start(
        cls,
        path: str,
        *,
        chat_template: str | None = None,
        num_tokenizer: int = 0,
        answer_memory_bytes: int = 0,
        command: Sequence[str] | None = None,
        policy: WorkerPolicy | None = None,
    ) -> TextFrontend:
        """Loads the tokenizer of a model. ModelError, with one sentence, when that isn't possible.

        `chat_template`: path of a Jinja file. `command` and `policy` of the worker processes.
        """
        options = TextOptions(path=path)
        encoders = [
            WorkerClient(
                f"tokenizer process {number}",
                f"minisgl-tokenizer-{number}",
                options,
                command=command,
                policy=policy,
            )
            for number in range(num_tokenizer)
        ]
        workers = list(encoders)
        detokenizer = None
        if num_tokenizer:
            detokenizer = WorkerClient(
                "the detokenizer process",
                "minisgl-detokenizer-0",
                options,
                command=command,
                policy=policy,
            )
            workers.append(detokenizer)
        templates = template_client(chat_template)
        load = asyncio.create_task(load_with_template(path, chat_template, templates))
        starts = [load, *(asyncio.create_task(worker.start()) for worker in workers)]
        try:
            await asyncio.gather(*starts)
        except BaseException as error:
            for task in starts:
                task.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await asyncio.gather(templates.close(), *(worker.close() for worker in workers))
            if isinstance(error, (ChatTemplateError, WorkerLost, WorkerStartError)):
                raise ModelError(str(error)) from error
            raise
        tokenizer = load.result()
        has_template = tokenizer.chat_template is not None
        return cls(
            tokenizer,
            encoders,
            detokenizer,
            templates if has_template else None,
            answer_memory_bytes=answer_memory_bytes,
        )

    async def encode(
        self, text: str, add_special_tokens: bool = True, *, max_tokens: int | None = None
    ) -> list[int]:
        """Token ids of a text. ValueError for what is no Unicode text; WorkerLost, TextQueueFull.

        PromptTooLong, at little cost, for most texts that have more than `max_tokens` tokens; ids
        that are too many, for the others.
        """
        await self._check_length(text, max_tokens)
        if self._encoders:
            return await self._encode_elsewhere(text, add_special_tokens)
        return await self._here(_encode, self.tokenizer, text, add_special_tokens, size=len(text))

    async def _here(self, function: Callable[..., Result], *arguments: Any, size: int) -> Result:
        """What `function` returns, at once where it is about a short text, else off_loop()."""
        if size < LONG_TEXT:
            return function(*arguments)
        return await self.off_loop(function, *arguments, size=size)

    async def _encode_elsewhere(self, text: str, add_special_tokens: bool) -> list[int]:
        """Token ids from the least busy of the tokenizer processes."""
        if len(text) < LONG_TEXT:
            return await self._ask_encoders(text, add_special_tokens)
        place = await self._turn(len(text))
        task = asyncio.ensure_future(self._ask_encoders(text, add_special_tokens))
        # Also when nobody waits for it any more, it is in the line until it is done.
        task.add_done_callback(lambda _: place.leave())
        return await asyncio.shield(task)

    async def _ask_encoders(self, text: str, add_special_tokens: bool) -> list[int]:
        """What a process that died was asked, another one is asked: once, as the text may be what
        it died of.
        """
        lost = WorkerLost("there is no tokenizer process")
        for _ in range(2):
            worker = min(self._encoders, key=lambda one: (not one.serving, one.num_waiting))
            await worker.until_serving()
            message = Encode(next(self._ids), text, add_special_tokens)
            try:
                answer = await worker.ask(message.id, message)
            except WorkerLost as error:
                lost = error
                continue
            assert isinstance(answer, Encoded)
            return answer.token_ids
        raise lost

    async def _check_length(self, text: str, max_tokens: int | None) -> None:
        """PromptTooLong, ValueError for what is no Unicode text. Between slices others have their
        turn.
        """
        check_unicode(text)
        if max_tokens is None or len(text) <= max(max_tokens, LONG_TEXT):
            return
        floor = await asyncio.to_thread(lambda: self.tokenizer.floor)
        least = 0.0
        for part in floor.parts(text):
            least += part
            if least > max_tokens:
                raise PromptTooLong(int(least), max_tokens)
            await asyncio.sleep(0)

    async def grammar(self, source: GrammarSource, sender: Hashable = None) -> str:
        """The text for SamplingParams.grammar. GrammarRefused with a sentence for the client where
        an answer can't be held to it; WorkerLost, TextQueueFull. Senders take turns.
        """
        return await self._grammars.grammar(source, sender)

    async def with_thought(
        self, params: SamplingParams, table: ThoughtTable | None
    ) -> SamplingParams:
        """The parameters with what the budget of a thought needs; without one where `table` is
        None, as the answer has no thought that could be closed. WorkerLost.
        """
        if not params.limits_thoughts:
            return params
        if table is None:
            return msgspec.structs.replace(params, thinking_token_budget=None)
        return msgspec.structs.replace(params, thought=await self._thought(table))

    async def _thought(self, table: ThoughtTable) -> ThoughtFormat:
        known = self._thoughts.get(table.key)
        if known is None:
            closings = [(await self.encode_words([text]))[0] for text in table.closings]
            known = await self.off_loop(table.make, self.tokenizer, closings)
            self._thoughts[table.key] = known
        return known

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

    async def render_chat(
        self,
        messages: list[dict[str, Any]],
        template_kwargs: dict[str, Any] | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """The prompt of a conversation: encode it without adding special tokens. Raises what
        TemplateClient.render() does, ChatTemplateError also for a model without a template.
        """
        if self._templates is None:
            raise ChatTemplateError("this model has no chat template")
        return await self._templates.render(
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
        )

    async def encode_chat(
        self,
        messages: list[dict[str, Any]],
        template_kwargs: dict[str, Any] | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        add_special_tokens: bool = False,
        max_tokens: int | None = None,
        owner: Owner | None = None,
    ) -> ChatPrompt:
        """A conversation as token ids. Raises what render_chat() and encode() do.

        `add_special_tokens`: beside those that the template writes. `owner`: whose remembered
        answers may stand in it with the ids that were generated; None: the ids are the tokenizer's.
        """
        prompt = await self.render_chat(
            messages,
            template_kwargs,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
        )
        end = prompt[-PROMPT_END_CHARS:]
        if self._answers is None or owner is None or add_special_tokens:
            ids = await self.encode(prompt, add_special_tokens, max_tokens=max_tokens)
            return ChatPrompt(ids, end=end)
        await self._check_length(prompt, max_tokens)
        keys = await self._here(conversations, owner, messages, size=len(prompt))
        known = None
        if found := self._answers.find(keys):
            known = await self._encode_with(found, prompt)
        ids = await self.encode(prompt, False) if known is None else known
        if continue_final_message:
            return ChatPrompt(ids, end=end)
        return ChatPrompt(ids, turns_of(prompt), keys.whole, end)

    async def _encode_with(self, found: list[RememberedAnswer], prompt: str) -> list[int] | None:
        """A prompt's token ids, with those of answers that stand in it; None where none does."""
        tokenizer, size = self.tokenizer, len(prompt)
        runs = await self._here(find_runs, tokenizer, prompt, found, size=size)
        if not runs:
            return None
        pieces = pieces_between(prompt, runs)
        if self._encoders:
            encoded = await asyncio.gather(
                *(self._encode_elsewhere(piece, False) for piece in pieces)
            )
        else:
            encoded = await self._here(_encode_all, tokenizer, pieces, size=size)
        return await self._here(join_runs, tokenizer, prompt, runs, encoded, size=size)

    def remember(
        self, prompt: ChatPrompt, token_ids: list[int], options: DetokenizerOptions
    ) -> None:
        """Keeps an answer's token ids, without the stop token that ended it, for prompts that have
        its text again. `options` are those that its text was made with.
        """
        if self._answers is not None and prompt.turns:
            detokenizer = IncrementalDetokenizer(self.tokenizer, options)
            text = detokenizer.push(token_ids) + detokenizer.finish()
            self._answers.remember(prompt.conversation, prompt.turns, token_ids, text)

    def detokenizer(self, options: DetokenizerOptions) -> Detokenizer:
        """A detokenizer for one stream."""
        if self._detokenizer is None:
            return LocalDetokenizer(IncrementalDetokenizer(self.tokenizer, options))
        return RemoteDetokenizer(self._detokenizer, OpenText(next(self._ids), options))

    async def off_loop(
        self, function: Callable[..., Result], *arguments: Any, size: int = 0
    ) -> Result:
        """What `function` returns, called in one of the threads for long texts. `size` is the
        number of characters or tokens of a prompt that it goes through. TextQueueFull, unless it is
        0: what has been generated is never refused.
        """
        loop = asyncio.get_running_loop()
        place = await self._turn(size)
        future = self._threads.submit(function, *arguments)
        # Also when nobody waits for it any more, it is in the line until it is done.
        future.add_done_callback(lambda _: _on_loop(loop, place.leave))
        return await asyncio.wrap_future(future)

    async def _turn(self, size: int) -> Place:
        """A place in the line for so many characters, whose turn it is. TextQueueFull."""
        place = self._line.place(size)
        try:
            await place.turn()
        except BaseException:
            place.leave()
            raise
        return place

    async def close(self) -> None:
        """Ends the processes and lets go of the threads. Idempotent."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await asyncio.gather(*(worker.close() for worker in self._workers()))
        await self._grammars.close()
        if self._templates is not None:
            await self._templates.close()

    def kill(self) -> None:
        """Ends the processes at once."""
        for worker in self._workers():
            worker.kill()
        self._grammars.kill()
        if self._templates is not None:
            self._templates.kill()

    def _workers(self) -> list[WorkerClient]:
        return self._encoders + ([self._detokenizer] if self._detokenizer is not None else [])


def _encode(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> list[int]:
    ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    give_back_memory(len(text))
    return ids


def _encode_all(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [_encode(tokenizer, text, False) if text else [] for text in texts]


def _on_loop(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(call)
