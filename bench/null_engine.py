"""A rank program that computes nothing: it speaks the engine's wire protocol and answers a group of
requests at once, a token for each of them a step, at a rate that the requests name.

    python null_engine.py LOG DIRECTORY PARENT_PID       (started by null_serving.py's server)

A request's prompt is [requests in the group, rate, answer...]: when the whole group has arrived,
token k of every request is answer[k % len(answer)], and all together get rate * RATE_UNIT tokens a
second, or with rate 0 as many as it can send. When a group has been answered, the times at which
its steps were sent (time.monotonic(), float64) are written to the file LOG.
"""

from __future__ import annotations

import array
import asyncio
import os
import sys
import time
from pathlib import Path
from typing import cast

from minisgl.ipc.child import ParentLink, run_child
from minisgl.ipc.messages import (
    ALIVE_SECONDS,
    Alive,
    EngineInfo,
    EngineStats,
    Output,
    Ready,
    Shutdown,
    StepOutputs,
    Submit,
    ToRank,
    to_rank_decoder,
)

RATE_UNIT = 100  # tokens a second
INFO = EngineInfo(vocab_size=49152, max_model_len=2**20, max_running=1024, num_threads=1)
TIMINGS = (0.0, 0.0, 0.0)


async def main(link: ParentLink[ToRank]) -> int:
    log = Path(LOG)
    await link.inbox.get()  # the engine's options
    link.outbox.put_nowait(Ready(INFO))
    pulse = asyncio.create_task(show_life(link))
    group: list[Submit] = []
    while not isinstance(message := await link.inbox.get(), Shutdown):
        if not isinstance(message, Submit):
            continue
        group.append(message)
        if len(group) == message.prompt[0]:
            times = await answer(link, group)
            group = []
            partial = log.with_suffix(".partial")
            partial.write_bytes(array.array("d", times).tobytes())
            os.replace(partial, log)
    pulse.cancel()
    return 0


async def show_life(link: ParentLink[ToRank]) -> None:
    """An engine that is silent between two groups would be started again."""
    while True:
        link.outbox.put_nowait(Alive())
        await asyncio.sleep(ALIVE_SECONDS)


async def answer(link: ParentLink[ToRank], group: list[Submit]) -> list[float]:
    """Returns when each step was sent."""
    tokens = group[0].prompt[2:]
    num_steps = group[0].params.max_tokens
    rate = group[0].prompt[1] * RATE_UNIT
    interval = len(group) / rate if rate else 0.0
    stats = EngineStats(num_running=len(group))
    times: list[float] = []
    began = time.monotonic()
    for step in range(num_steps):
        token = tokens[step % len(tokens)]
        if step + 1 < num_steps:
            outputs = [(request.id, [token], "", "", "", None, None, None) for request in group]
        else:
            outputs = [
                (request.id, [token], "length", "", "", None, None, TIMINGS) for request in group
            ]
        await asyncio.sleep(max(0.0, began + step * interval - time.monotonic()))
        times.append(time.monotonic())
        link.outbox.put_nowait(StepOutputs(cast("list[Output]", outputs), stats))
    return times


if __name__ == "__main__":
    LOG = sys.argv.pop(1)
    run_child(to_rank_decoder, main)
