"""Texts of megabytes: refused before they are tokenized, few at a time, and nothing stays."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from minisgl.text.errors import PromptTooLong, TextQueueFull
from minisgl.text.frontend import TextFrontend
from minisgl.text.waiting_line import Place, WaitingLine
from tests.python.waiting import PATIENCE, until


@pytest.mark.parametrize("num_tokenizer", [0, 1])
async def test_what_cannot_fit_is_not_tokenized(model: str, num_tokenizer: int) -> None:
    text = await TextFrontend.start(model, num_tokenizer=num_tokenizer)
    text._line = WaitingLine(limit=0)
    place = text._line.place(1)  # nothing long is tokenized
    with pytest.raises(PromptTooLong) as error:
        await text.encode("so it goes, " * 700_000, max_tokens=1000)
    assert 1000 < error.value.at_least <= 8_400_000
    with pytest.raises(TextQueueFull):
        await text.encode("so it goes, " * 700_000)
    place.leave()
    ids = await text.encode("so it goes, " * 1000, max_tokens=12_000)
    assert len(ids) == 12_000
    await text.close()


async def test_the_line_is_bounded_unless_it_is_empty() -> None:
    line = WaitingLine(limit=10)
    sentence = r"50 characters of other texts wait \(limit 10\)"
    with line.place(50), pytest.raises(TextQueueFull, match=sentence):
        line.place(1)
    place = line.place(6)
    with line.place(4), pytest.raises(TextQueueFull):
        line.place(1)
    place.leave()
    place.leave()
    with line.place(10):
        pass


async def test_few_characters_are_worked_on_at_once_in_the_order_of_their_coming() -> None:
    line = WaitingLine(at_once=10)
    begun: list[str] = []

    async def begin(name: str, place: Place) -> None:
        await place.turn()
        begun.append(name)

    sizes = {"a": 8, "b": 3, "c": 2, "d": 50, "e": 1, "f": 0}
    places = {name: line.place(size) for name, size in sizes.items()}
    tasks = {name: asyncio.create_task(begin(name, place)) for name, place in places.items()}

    async def leave(name: str) -> str:
        begun.clear()
        tasks[name].cancel()
        places[name].leave()
        for _ in range(5):
            await asyncio.sleep(0)
        return "".join(begun)

    for _ in range(5):
        await asyncio.sleep(0)
    assert begun == ["a", "f"]  # what has no characters never waits
    assert await leave("b") == "c"  # though it hadn't begun
    assert await leave("a") == ""
    assert await leave("c") == "d"  # more than the limit, alone
    assert await leave("d") == "e"
    assert await leave("e") == ""
    assert (line._waiting, line._working, len(line._turns)) == (0, 0, 0)


@pytest.mark.parametrize("num_tokenizer", [0, 1])
async def test_a_long_text_is_tokenized_when_it_is_its_turn(model: str, num_tokenizer: int) -> None:
    text = await TextFrontend.start(model, num_tokenizer=num_tokenizer)
    text._line = line = WaitingLine(at_once=15_000)
    other = line.place(10_000)
    await other.turn()
    gone, task = (asyncio.create_task(text.encode("7" * 9000)) for _ in range(2))
    assert len(await text.encode("7" * 1000)) == 1000
    await until(lambda: line._working == 10_000)
    gone.cancel()
    await asyncio.wait({gone})
    assert line._waiting == 19_000
    assert not task.done()
    other.leave()
    assert len(await task) == 9000
    await text.close()


async def test_who_has_gone_keeps_his_place_until_the_work_is_done(model: str) -> None:
    text = await TextFrontend.start(model)
    text._line = WaitingLine(limit=10)
    begun, go_on = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        go_on.wait(PATIENCE)

    task = asyncio.create_task(text.off_loop(work, size=10))
    await asyncio.to_thread(begun.wait, PATIENCE)
    task.cancel()
    await asyncio.wait({task})
    with pytest.raises(TextQueueFull):
        await text.off_loop(work, size=1)
    go_on.set()
    while text._line._waiting:
        await asyncio.sleep(0.01)
    assert await text.off_loop(lambda: 7, size=10) == 7
    await text.close()


def test_memory_goes_back(model: str) -> None:
    program = f"""
import asyncio
from minisgl.text.frontend import TextFrontend

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 // 2**20

async def main():
    text = await TextFrontend.start({model!r})
    await text.encode("7" * 20_000)
    before = resident()
    await asyncio.gather(*(text.encode("7 " * 300_000) for _ in range(2)))
    print(resident() - before)
    await text.close()

asyncio.run(main())
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 120  # it was 250
