"""Grammars: the forms that clients ask for, as the grammars that the engine holds answers to.

They are checked and compiled in processes of their own, with limits of time and memory, and what
came of it is remembered: also that a form is refused. A form that takes long waits for others that
do, and others don't wait for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

from minisgl.children import python_command
from minisgl.sampling_params import StructuredOutputsParams
from minisgl.text.answer_form import AnswerForm
from minisgl.text.errors import TextQueueFull, WorkerLost
from minisgl.text.grammar_messages import (
    MAX_FRAME_BYTES,
    MEMORY_LIMIT,
    Compiled,
    FromGrammarProcess,
    GrammarSource,
    Refused,
    decode_answer,
    frame,
)
from minisgl.text.limited_process import Fault, LimitedProcess, within
from minisgl.text.recently_used import RecentlyUsed
from minisgl.text.turns import Turns

CACHE_BYTES = 2**24  # of grammars that are remembered
MAX_REMEMBERED = 2**16  # grammars; their bytes have no room for more
ANY_OBJECT = '{"type":"object"}'  # a schema
MAX_WAITING = 256  # forms in the line for the process

logger = logging.getLogger(__name__)


class GrammarRefused(ValueError):  # noqa: N818
    """A form that answers can't be held to; a sentence says why."""


@dataclass(frozen=True)
class GrammarLimits:
    """Seconds."""

    quick: float = 0.05  # of processor time, before a form is one of those that take long
    run: float = 2.0  # for one form
    start: float = 60.0  # for a process
    wait: float = 10.0  # for other forms before this one


def answer_source(form: AnswerForm) -> GrammarSource:
    """The description of a whole answer. GrammarRefused for a schema that isn't plain JSON."""
    return GrammarSource("answer", _json_text(form))


def form_source(form: StructuredOutputsParams) -> GrammarSource:
    """What `structured_outputs` asks for, where one form is given."""
    text: str
    if form.regex is not None:
        return GrammarSource("regex", form.regex)
    if form.choice is not None:
        return GrammarSource("choice", _json_text(form.choice))
    if form.grammar is not None:
        return GrammarSource("grammar", form.grammar)
    if form.json is None:
        text = ANY_OBJECT
    else:
        text = form.json if isinstance(form.json, str) else _json_text(form.json)
    return GrammarSource(
        "json",
        text,
        compact=bool(form.disable_any_whitespace),
        whitespace_pattern=form.whitespace_pattern or None,
        closed=bool(form.disable_additional_properties),
    )


def _json_text(value: Any) -> str:
    """GrammarRefused for what isn't JSON."""
    try:
        return msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise GrammarRefused(f"the form of the answer is not plain JSON: {error}") from None


class Grammars:
    """The grammar processes, each started when it is needed first, and what they made. Belongs to
    one event loop; ended by close() or kill().

    All forms go through the quick one, which gives up what takes longer than most; those go on to
    the patient one.
    """

    def __init__(
        self,
        *,
        limits: GrammarLimits | None = None,
        command: Sequence[str] | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        self._limits = limits or GrammarLimits()
        command = command or python_command("minisgl.text.grammar_process")
        self._quick = _Compiler(self._limits, command)
        self._patient = _Compiler(self._limits, command)
        self._made = RecentlyUsed[bytes, Compiled | Refused](cache_bytes, MAX_REMEMBERED, _size)
        self._running: dict[bytes, asyncio.Task[Compiled | Refused]] = {}

    async def grammar(self, source: GrammarSource, sender: Hashable = None) -> str:
        """The text for SamplingParams.grammar. Senders take turns where forms wait. GrammarRefused,
        WorkerLost, TextQueueFull.
        """
        size = len(source.text.encode("utf-8", "surrogatepass"))
        if size > source.max_bytes:
            raise GrammarRefused(
                f"the form of the answer has {size} bytes (limit {source.max_bytes})"
            )
        try:
            data = frame(source)
        except UnicodeEncodeError as error:
            raise GrammarRefused(
                f"text must be valid Unicode, got a lone surrogate: {error}"
            ) from None
        key = blake2b(data, digest_size=16).digest()
        made = self._made.get(key)
        if made is None:
            # Also when nobody waits for it any more, the process has its answer to give.
            task = self._start(key, source, sender)
            try:
                made = await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise WorkerLost("the grammar process was closed") from None
                raise
        if isinstance(made, Refused):
            raise GrammarRefused(made.message)
        return made.grammar

    def _start(
        self, key: bytes, source: GrammarSource, sender: Hashable
    ) -> asyncio.Task[Compiled | Refused]:
        """The task that makes it, which may be there already."""
        if task := self._running.get(key):
            return task
        if len(self._running) >= MAX_WAITING:
            raise TextQueueFull(f"{MAX_WAITING} forms of other answers wait (limit {MAX_WAITING})")
        task = self._running[key] = asyncio.create_task(self._make(key, source, sender))

        def forget(task: asyncio.Task[Compiled | Refused]) -> None:
            del self._running[key]
            if not task.cancelled():
                task.exception()  # whoever waited has it

        task.add_done_callback(forget)
        return task

    async def _make(
        self, key: bytes, source: GrammarSource, sender: Hashable
    ) -> Compiled | Refused:
        latest = asyncio.get_running_loop().time() + self._limits.wait
        quick = msgspec.structs.replace(source, seconds=self._limits.quick)
        made = await self._quick.ask(frame(quick), sender, latest)
        if isinstance(made, Refused) and made.kind == "seconds":
            made = await self._patient.ask(frame(source), sender, latest)
        self._made.add(key, made)
        return made

    async def close(self) -> None:
        """Ends the processes. Idempotent."""
        self._quick.closed = self._patient.closed = True
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.gather(self._quick.end(), self._patient.end())

    def kill(self) -> None:
        """Ends the processes at once."""
        self._quick.kill()
        self._patient.kill()


class _Compiler:
    """A grammar process and those who wait for it."""

    def __init__(self, limits: GrammarLimits, command: Sequence[str]) -> None:
        self.closed = False
        self._limits = limits
        self._command = command
        self._child: LimitedProcess[FromGrammarProcess] | None = None
        self._turns = Turns()

    async def ask(self, data: bytes, sender: Hashable, latest: float) -> Compiled | Refused:
        """What the process says of a frame, once it is the sender's turn: up to the loop's time
        `latest`, else TextQueueFull.
        """
        async with self._turns.turn(sender):
            if asyncio.get_running_loop().time() > latest:
                raise TextQueueFull("the forms of other answers are in front of this one")
            return await self._ask(data)

    async def _ask(self, data: bytes) -> Compiled | Refused:
        """One that died may have been killed by somebody: the next one is asked once more."""
        for attempt in range(2):
            child = await self._open()
            try:
                answer = await within(self._limits.run, child.ask(data))
                if isinstance(answer, Refused) and answer.kind == "memory":
                    raise Fault(f"needs more than {MEMORY_LIMIT // 2**20} MB of memory")
                return answer
            except Fault as fault:
                logger.warning("the grammar process is replaced: the form of an answer %s", fault)
                await self.end()
                if fault.died and attempt == 0:
                    continue
                return Refused("source", _sentence(fault))
            except BaseException:  # what it still says would answer another question
                await self.end()
                raise
        raise AssertionError("the second attempt returns")

    async def _open(self) -> LimitedProcess[FromGrammarProcess]:
        if self.closed:
            raise WorkerLost("the grammar process was closed")
        if self._child is None:
            self._child = await LimitedProcess.start(
                "grammar", self._command, decode_answer, MAX_FRAME_BYTES, self._limits.start
            )
        return self._child

    def kill(self) -> None:
        """Ends the process at once."""
        if self._child is not None:
            self._child.kill()

    async def end(self) -> None:
        """Ends the process, in whose place the next form has another one."""
        child, self._child = self._child, None
        if child is not None:
            await child.end()


def _sentence(fault: Fault) -> str:
    if fault.died:
        return "the form of the answer is too complex: it can't be compiled within its limits"
    return f"the form of the answer is too complex: it {fault} to compile"


def _size(made: Compiled | Refused) -> int:
    """Bytes, at most four per character, and what an entry takes besides."""
    text = made.grammar if isinstance(made, Compiled) else made.message
    return 256 + len(text) * (1 if text.isascii() else 4)
