"""The queues beside bare pyzmq sockets, in one process, taking turns:

python bench/queues.py [--messages 500] [--rounds 21]

Prints the median time of a round trip, a request of 128 tokens there and a step of 64 outputs back,
and the median over rounds of the ratio to bare sockets with the same msgpack around them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import count
from typing import Any

import msgspec
import uvloop
import zmq
import zmq.asyncio

from minisgl.ipc.messages import (
    EngineStats,
    StepOutputs,
    Submit,
    from_rank_decoder,
    to_rank_decoder,
)
from minisgl.ipc.queues import (
    ZmqAsyncPullQueue,
    ZmqAsyncPushQueue,
    ZmqPullQueue,
    ZmqPushQueue,
    as_is,
)
from minisgl.sampling_params import SamplingParams

REQUEST = Submit(id=1, prompt=list(range(128)), params=SamplingParams(max_tokens=16, seed=3))
STEP = StepOutputs([(i, [i]) for i in range(64)], EngineStats(num_running=64))  # type: ignore[misc]
pack = msgspec.msgpack.Encoder().encode
addresses: Iterator[str] = (f"ipc://@bench-queues-{os.getpid()}-{n}" for n in count())


def sockets(kind: Callable[[Any, int], Any]) -> tuple[Any, Any]:
    """A PUSH and a PULL that are connected."""
    context, address = zmq.Context.instance(), next(addresses)
    push, pull = kind(context, zmq.PUSH), kind(context, zmq.PULL)
    push.bind(address)
    pull.connect(address)
    return push, pull


def blocking_ways() -> dict[str, Callable[[], Any]]:
    """A round trip through blocking queues, and through bare sockets."""
    (there_push, there_pull), (back_push, back_pull) = sockets(zmq.Socket), sockets(zmq.Socket)
    there, back = next(addresses), next(addresses)
    put_request: ZmqPushQueue[Any] = ZmqPushQueue(there, True, as_is)
    get_request = ZmqPullQueue(there, False, to_rank_decoder)
    put_step: ZmqPushQueue[Any] = ZmqPushQueue(back, True, as_is)
    get_step = ZmqPullQueue(back, False, from_rank_decoder)

    def queues() -> Any:
        put_request.put(REQUEST)
        get_request.get()
        put_step.put(STEP)
        return get_step.get()

    def bare() -> Any:
        there_push.send(pack(REQUEST))
        to_rank_decoder.decode(there_pull.recv())
        back_push.send(pack(STEP))
        return from_rank_decoder.decode(back_pull.recv())

    return {"queues": queues, "bare sockets": bare}


def async_ways() -> dict[str, Callable[[], Awaitable[Any]]]:
    """The same on the event loop, as the server has it."""
    kind = zmq.asyncio.Socket
    (there_push, there_pull), (back_push, back_pull) = sockets(kind), sockets(kind)
    there, back = next(addresses), next(addresses)
    put_request: ZmqAsyncPushQueue[Any] = ZmqAsyncPushQueue(there, True, as_is)
    get_request = ZmqAsyncPullQueue(there, False, to_rank_decoder)
    put_step: ZmqAsyncPushQueue[Any] = ZmqAsyncPushQueue(back, True, as_is)
    get_step = ZmqAsyncPullQueue(back, False, from_rank_decoder)

    async def queues() -> Any:
        await put_request.put(REQUEST)
        await get_request.get()
        await put_step.put(STEP)
        return await get_step.get()

    async def bare() -> Any:
        await there_push.send(pack(REQUEST))
        to_rank_decoder.decode(await there_pull.recv())
        await back_push.send(pack(STEP))
        return from_rank_decoder.decode(await back_pull.recv())

    return {"async queues": queues, "bare async sockets": bare}


def report(times: dict[str, list[float]]) -> None:
    ours, bare = times.values()
    ratio = statistics.median(a / b for a, b in zip(ours, bare, strict=True))
    medians = ", ".join(f"{name} {statistics.median(each):.1f} us" for name, each in times.items())
    print(f"{medians}; ratio {ratio:.2f}")


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=500, help="round trips per round")
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()

    blocking = blocking_ways()
    times: dict[str, list[float]] = {name: [] for name in blocking}
    for _ in range(args.rounds):
        for name, way in blocking.items():
            start = time.perf_counter()
            for _ in range(args.messages):
                way()
            times[name].append((time.perf_counter() - start) / args.messages * 1e6)
    report(times)

    on_loop = async_ways()
    times = {name: [] for name in on_loop}
    for _ in range(args.rounds):
        for name, async_way in on_loop.items():
            start = time.perf_counter()
            for _ in range(args.messages):
                await async_way()
            times[name].append((time.perf_counter() - start) / args.messages * 1e6)
    report(times)


if __name__ == "__main__":
    uvloop.run(main())
