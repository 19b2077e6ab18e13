"""Chat templates in their process: what one that is wrong, greedy or hostile does to others."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from minisgl.model_files.files import ModelError
from minisgl.text.errors import TextQueueFull, WorkerLost
from minisgl.text.frontend import TextFrontend
from minisgl.text.template_client import TemplateClient, TemplateLimits
from minisgl.tokenizer import ChatTemplateError, TemplateSource
from tests.python.waiting import PATIENCE, until

ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
# What the conversation says decides what the template does.
TEMPLATE = (
    "{% set what = messages[0].content %}"
    "{% if what == 'refuse' %}{{ raise_exception('no such talk') }}"
    "{% elif what == 'loop' %}" + ENDLESS + "{% elif what == 'grow' %}{{ (what * 10**9)|length }}"
    "{% else %}{{ bos_token }}{{ what }}{% endif %}"
)
QUICK = TemplateLimits(run=0.5)


def conversation(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@contextlib.asynccontextmanager
async def rendering(
    text: str = TEMPLATE, limits: TemplateLimits = QUICK
) -> AsyncIterator[TemplateClient]:
    client = TemplateClient(TemplateSource({"default": text}, {"bos_token": "<s>"}), limits=limits)
    try:
        yield client
    finally:
        await client.close()


def pid_of(client: TemplateClient) -> int:
    assert client._child is not None
    return client._child._process.pid


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


async def turns_of_the_loop(work: asyncio.Future[Any]) -> int:
    """How often others had their turn until the work was done."""
    turns = 0
    while not work.done():
        await asyncio.sleep(0.005)
        turns += 1
    return turns


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("refuse", r"^no such talk$"),
        ("loop", r"^the chat template took longer than 0\.5 s to render these messages$"),
        ("grow", r"^the chat template needed more than 512 MB of memory to render these messages$"),
    ],
)
async def test_a_conversation_that_the_template_chokes_on_is_refused(
    what: str, sentence: str
) -> None:
    async with rendering() as client:
        assert await client.render(conversation("hi")) == "<s>hi"
        bad = asyncio.create_task(client.render(conversation(what)))
        after = asyncio.create_task(client.render(conversation("who is next")))
        assert await turns_of_the_loop(bad) > (2 if what == "loop" else 0)
        with pytest.raises(ChatTemplateError, match=sentence):
            await bad
        assert await after == "<s>who is next"


async def test_a_process_that_was_killed_or_stopped_is_replaced() -> None:
    async with rendering() as client:
        await client.render(conversation("one"))
        first = pid_of(client)
        os.kill(first, signal.SIGSTOP)
        rendering_two = asyncio.create_task(client.render(conversation("two")))
        await asyncio.sleep(0.05)
        os.kill(first, signal.SIGKILL)
        assert await rendering_two == "<s>two"
        second = pid_of(client)
        os.kill(second, signal.SIGSTOP)
        with pytest.raises(ChatTemplateError, match=r"took longer than 0\.5 s"):
            await client.render(conversation("three"))
        assert await client.render(conversation("four")) == "<s>four"
        assert not alive(first)
        assert not alive(second)


def test_a_process_that_dies_while_nobody_asks_is_replaced_on_the_loop_of_servers() -> None:
    """uvloop has exceptions of its own for a pipe that is closed."""

    async def talk() -> None:
        async with rendering() as client:
            for sent in (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV):
                assert await client.render(conversation("a")) == "<s>a"
                child = client._child
                assert child is not None
                os.kill(pid_of(client), sent)
                await child._process.wait()
                await asyncio.sleep(0.05)  # the pipes are closed, too
                assert await client.render(conversation("b")) == "<s>b"

    uvloop.run(talk())


async def test_an_answer_that_is_too_long_for_the_time_leaves_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    source = TemplateSource({"default": "{{ 'a' * (6 * 10**7) }}"})
    for seconds in (0.03, 0.1):
        async with rendering(limits=TemplateLimits(run=60)) as client:
            await client.start(source)
            client._limits = TemplateLimits(run=seconds)
            with contextlib.suppress(ChatTemplateError):
                await client.render(conversation("hi"))
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)


async def test_a_conversation_that_ends_its_process_twice_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "template.py"
    program.write_text(
        "import os, signal\n"
        "from minisgl.text import template_process\n"
        "template_process.ChatTemplate.render = lambda *_, **__: os.kill(os.getpid(), 11)\n"
        "template_process.main()\n"
    )
    client = TemplateClient(TemplateSource({"default": ""}), command=(sys.executable, str(program)))
    with pytest.raises(ChatTemplateError, match="crashed its process, which was killed by SIGSEGV"):
        await client.render(conversation("hi"))
    await client.close()


async def test_who_would_wait_too_long_is_told_so() -> None:
    async with rendering(limits=TemplateLimits(run=0.5, wait=0.2)) as client:
        slow = asyncio.create_task(client.render(conversation("loop")))
        await asyncio.sleep(0)
        gone = asyncio.create_task(client.render(conversation("loop")))
        late = asyncio.create_task(client.render(conversation("hi")))
        await asyncio.sleep(0.05)
        gone.cancel()  # costs nobody any time
        with pytest.raises(TextQueueFull):
            await late
        with pytest.raises(ChatTemplateError):
            await slow
        assert await client.render(conversation("hi")) == "<s>hi"


async def test_the_end_is_told_to_those_who_wait() -> None:
    async with rendering(limits=TemplateLimits()) as client:
        tasks = [asyncio.create_task(client.render(conversation("loop"))) for _ in range(2)]
        await asyncio.sleep(0.3)
    for task in tasks:
        with pytest.raises(WorkerLost):
            await task


@pytest.mark.parametrize("turns", range(8))
async def test_it_can_be_closed_while_it_starts(turns: int) -> None:
    client = TemplateClient(TemplateSource({"default": TEMPLATE}))
    task = asyncio.create_task(client.render(conversation("hi")))
    for _ in range(turns):  # of the loop
        await asyncio.sleep(0)
    await asyncio.wait_for(client.close(), PATIENCE)
    task.cancel()
    await asyncio.wait({task})


@pytest.mark.parametrize("value", [object(), 2**70, "x\ud800"])
async def test_arguments_that_are_no_json_are_refused(value: Any) -> None:
    async with rendering() as client:
        with pytest.raises(ValueError, match=r"plain JSON values|valid Unicode"):
            await client.render(conversation("hi"), template_kwargs={"value": value})


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for x in %}", r"template '.*' has an error: Expected an expression, got"),
        ("{{ " + "(" * 50_000, r"template '.*' is too large or nests too deeply\.$"),
        ("{{ 3**(10**8) }}", r"' took longer than 2 s to load\.$"),
    ],
)
async def test_a_template_that_cannot_be_loaded_ends_the_start(
    model: str, tmp_path: Path, template: str, sentence: str
) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text(template)
    with pytest.raises(ModelError, match=sentence):
        await TextFrontend.start(model, chat_template=str(path))


async def test_what_is_too_large_when_it_is_folded_is_too_large_for_each_conversation() -> None:
    async with rendering("{{ ('a'*(4*10**9))|length }}") as client:
        for _ in range(2):
            with pytest.raises(ChatTemplateError, match="needed more than 512 MB of memory"):
                await client.render(conversation("hi"))


async def test_without_a_template_there_is_no_process(model: str) -> None:
    before = children()
    text = await TextFrontend.start(model)
    assert children() == before
    await text.close()


def test_it_ends_with_its_parent(model: str) -> None:
    program = (
        "import asyncio, os\n"
        "from minisgl.text.template_client import TemplateClient\n"
        "from minisgl.tokenizer import TemplateSource\n"
        "async def main():\n"
        f"    client = TemplateClient(TemplateSource({{'default': {ENDLESS!r}}}))\n"
        "    task = asyncio.create_task(client.render([]))\n"
        "    while client._child is None:\n"
        "        await asyncio.sleep(0.01)\n"
        "    await asyncio.sleep(0.5)\n"
        "    print(client._child._process.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    pid = int(result.stdout)
    end = time.monotonic() + PATIENCE
    while alive(pid):
        assert time.monotonic() < end
        time.sleep(0.01)
