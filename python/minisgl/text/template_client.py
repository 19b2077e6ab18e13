"""The template process as the server sees it. A model's chat template is a program by a stranger:
it runs where it can hold up nobody, with limits of time and memory, and a process that exceeds one
is replaced.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minisgl.children import python_command
from minisgl.tasks import background
from minisgl.text.errors import TextQueueFull, WorkerLost
from minisgl.text.limited_process import Fault, LimitedProcess, within
from minisgl.text.template_messages import (
    MAX_FRAME_BYTES,
    MEMORY_LIMIT,
    FromTemplate,
    Loaded,
    LoadTemplate,
    Render,
    Rendered,
    TemplateRefused,
    decode_from_template,
    frame,
)
from minisgl.tokenizer.template_source import ChatTemplateError, TemplateSource

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TemplateLimits:
    """Seconds."""

    run: float = 2.0  # for compiling, and for rendering one conversation
    start: float = 60.0  # for a process, before it sees the template
    wait: float = 10.0  # for other conversations before this one


@dataclass(frozen=True)
class _Job:
    """A conversation that waits."""

    message: Render
    answer: asyncio.Future[str]
    latest: float  # when it is too late to begin, in the loop's time


class TemplateClient:
    """One template and the process that renders it, which is started when it is needed first, or by
    start(). Belongs to one event loop; ended by close() or kill().
    """

    def __init__(
        self,
        source: TemplateSource | None = None,
        *,
        origin: str = "the model's chat template",
        limits: TemplateLimits | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        """`origin` is what sentences call the template. Without `source`, start() comes first."""
        self._source = source
        self._origin = origin
        self._limits = limits or TemplateLimits()
        self._command = command or python_command("minisgl.text.template_process")
        self._child: LimitedProcess[FromTemplate] | None = None
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue()
        self._worker: asyncio.Task[None] | None = None

    async def spawn(self) -> None:
        """Starts the process before its template is known. Raises WorkerLost."""
        self._child = await LimitedProcess.start(
            "template",
            self._command,
            decode_from_template,
            MAX_FRAME_BYTES,
            self._limits.start,
        )

    async def start(self, source: TemplateSource) -> None:
        """Compiles the template, in the process of spawn() or a new one. ChatTemplateError when the
        template is no good; WorkerLost.
        """
        self._source = source
        if self._child is None:
            await self.spawn()
        try:
            answer = await self._ask(frame(LoadTemplate(source)))
        except Fault as fault:
            raise ChatTemplateError(f"{self._origin} {fault} to load.") from None
        if not isinstance(answer, Loaded):
            await self._end_child()
            assert isinstance(answer, TemplateRefused)
            raise ChatTemplateError(f"{self._origin} {answer.message}.")

    async def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: dict[str, Any] | None = None,
    ) -> str:
        """The prompt of a conversation: encode it without adding special tokens.

        ChatTemplateError when the template refuses the messages or exceeds its limits, ValueError
        for what is no Unicode text, TextQueueFull, WorkerLost.
        """
        if self._worker is None:
            self._worker = background(self._work(), "the renderer of chat templates")
        message = Render(
            messages=messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
        )
        loop = asyncio.get_running_loop()
        job = _Job(message, loop.create_future(), loop.time() + self._limits.wait)
        self._jobs.put_nowait(job)
        return await job.answer

    async def close(self) -> None:
        """Ends the process. Idempotent."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.wait({self._worker})
        while not self._jobs.empty():
            _fail(self._jobs.get_nowait(), WorkerLost("the template process was closed"))
        await self._end_child()

    def kill(self) -> None:
        """Ends the process at once."""
        if self._child is not None:
            self._child.kill()

    async def _work(self) -> None:
        """Renders one conversation after the other."""
        while True:
            job = await self._jobs.get()
            if job.answer.done():  # nobody waits for it any more
                continue
            had_child = self._child is not None
            try:
                await self._render(job)
            except (ValueError, TextQueueFull, WorkerLost) as error:
                _fail(job, error)
            except Exception as error:  # which nobody foresaw: others wait
                logger.exception("a chat template could not be rendered")
                _fail(job, WorkerLost(f"the template process failed: {error}"))
                await self._end_child()
            except asyncio.CancelledError:
                _fail(job, WorkerLost("the template process was closed"))
                raise
            if had_child and self._child is None:  # the next conversation need not wait for it
                with contextlib.suppress(ChatTemplateError, WorkerLost):
                    await self._open()

    async def _render(self, job: _Job) -> None:
        if asyncio.get_running_loop().time() > job.latest:
            raise TextQueueFull("other conversations are in front of this one for too long")
        data = _frame(job.message)
        await self._open()
        try:
            try:
                answer = await self._ask(data)
            except Fault as fault:
                if not fault.died:
                    raise
                await self._open()
                answer = await self._ask(data)
        except Fault as fault:
            raise ChatTemplateError(f"the chat template {fault} to render these messages") from None
        if isinstance(answer, TemplateRefused):
            raise ChatTemplateError(answer.message)
        assert isinstance(answer, Rendered)
        if not job.answer.done():
            job.answer.set_result(answer.text)

    async def _open(self) -> None:
        """A process with the template, where there is none."""
        if self._child is None:
            assert self._source is not None, "start() gets it"
            await self.start(self._source)

    async def _ask(self, data: bytes) -> FromTemplate:
        """The process's answer. After a Fault there is no process any more."""
        assert self._child is not None
        try:
            answer = await within(self._limits.run, self._child.ask(data))
            if isinstance(answer, TemplateRefused) and answer.kind == "memory":
                raise Fault(f"needed more than {MEMORY_LIMIT // 2**20} MB of memory")
        except Fault as fault:
            logger.warning("the template process is replaced: the chat template %s", fault)
            await self._end_child()
            raise
        return answer

    async def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            await child.end()


def _frame(message: Render) -> bytes:
    try:
        return frame(message)
    except UnicodeEncodeError as error:
        raise ValueError(f"text must be valid Unicode, got a lone surrogate: {error}") from None
    except (TypeError, OverflowError, RecursionError) as error:
        raise ChatTemplateError(
            f"messages, tools and template arguments must be plain JSON values: {error}"
        ) from None


def _fail(job: _Job, error: Exception) -> None:
    if not job.answer.done():
        job.answer.set_exception(error)
