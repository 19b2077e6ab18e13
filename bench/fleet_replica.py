"""A simulated replica: steps whose times follow what was measured, and a prefix cache by names.

The times are those of Llama-3.1-8B on one H200 in HISTORY.md: 169 tokens/s alone give STEP, 8.56k
and 21.7k tokens/s of 64 and 256 sequences with some 256 tokens each give SEQUENCE, and reading
128 KiB of keys and values per token at 4.52 TB/s gives CONTEXT. Prompts of 2,048 tokens take
49.4 ms, 26.8 ms with 1,024 of them cached, and 64 together 3,195 ms; the model says 51.6, 28.7 and
3,017.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass

from fleet_traffic import PREFIX, Conversation

STEP = 5.9e-3  # seconds of a step, however small
SEQUENCE = 16e-6  # more per sequence that decodes
CONTEXT = 29e-9  # more per token that these attend to
PREFILL = 22.3e-6  # more per token of a prompt
CACHE_TOKENS = 800_000  # of a GPU with 141 GB, 0.9 of what the weights leave
MAX_RUNNING = 256
MAX_BATCH_TOKENS = 8192
PAGE = 16


@dataclass(slots=True, eq=False)
class Request:
    id: int
    conversation: Conversation
    prompt: int  # tokens
    answer: int  # tokens that are to be generated
    sent: float  # time
    measured: bool
    left: int = -1  # prompt tokens to be computed; -1: not begun
    first: float = -1.0  # time of the first token
    joined: int = 0  # steps of the replica when it got its first token there
    generated: int = 0  # before it was sent there
    said: int = 0  # of these, what its conversation has
    cost: float = 0.0  # seconds of the router
    lost_at: float = -1.0  # time of its replica's end


class Cache:
    """Prefixes and conversations that are computed, in tokens; what was used longest ago goes
    first. A prefix is used whenever one of its conversations is.
    """

    def __init__(self, room: float) -> None:
        self.room = room
        self.tokens = 0
        self._entries: OrderedDict[int, int] = OrderedDict()

    def matched(self, conversation: Conversation, prompt: int) -> int:
        """Tokens of its prompt that are there, in whole pages, not all of it."""
        entries = self._entries
        if -1 - conversation.prefix not in entries:
            return 0
        found = PREFIX + entries.get(conversation.id, 0)
        return min(found, prompt - 1) // PAGE * PAGE

    def insert(self, conversation: Conversation, length: int) -> None:
        """The conversation's first `length` tokens are there now."""
        self._put(conversation.id, length - PREFIX)
        self.insert_prefix(conversation.prefix)

    def insert_prefix(self, prefix: int) -> None:
        """The prefix is there now."""
        self._put(-1 - prefix, PREFIX)
        while self.tokens > self.room and self._entries:
            self.tokens -= self._entries.popitem(last=False)[1]

    def _put(self, key: int, length: int) -> None:
        before = self._entries.pop(key, 0)
        self._entries[key] = max(before, length)
        self.tokens += max(before, length) - before


@dataclass(slots=True)
class Under:
    """The steps that are under way."""

    begin: float = 0.0
    seconds: float = 0.0  # of one
    count: int = 0
    done_prompts: tuple[Request, ...] = ()


class Replica:
    """Requests wait in order; a step computes as much of their prompts as it has room for, beside
    one token for each sequence that decodes. Steps that only decode are one event, until a request
    comes or ends.
    """

    def __init__(self, id: int, cache: Cache, speed: float = 1.0) -> None:
        self.id = id
        self.cache = cache
        self.speed = speed  # 2: twice as fast as measured
        self.version = 0  # of the event that is due
        self.tokens = 0  # computed and generated, of measured requests
        self.hits = self.asked = 0  # prompt tokens of measured requests
        self._waiting: deque[Request] = deque()
        self._running: list[tuple[int, int, Request]] = []  # heap by the step of the end
        self._context = 0
        self._steps = 0
        self._under: Under | None = None

    def submit(self, request: Request, now: float) -> float | None:
        """Returns when the replica is to be asked next, if that changed."""
        self._waiting.append(request)
        under = self._under
        if under is None:
            return self._begin(now)
        if under.done_prompts or len(self._running) >= MAX_RUNNING:
            return None
        count = max(1, math.ceil((now - under.begin) / under.seconds - 1e-9))
        if count >= under.count:
            return None
        under.count = count  # the step under way is the last one without it
        self.version += 1
        return under.begin + count * under.seconds

    def end_steps(
        self,
        now: float,
        on_first: Callable[[Request, float], None],
        on_end: Callable[[Request, float], None],
    ) -> float | None:
        """The steps under way are over. Returns when the replica is to be asked next."""
        under = self._under
        assert under is not None
        self._steps += under.count
        self._context += under.count * len(self._running)
        while self._running and self._running[0][0] <= self._steps:
            request = heapq.heappop(self._running)[2]
            self._leave(request)
            on_end(request, now)
        for request in under.done_prompts:
            left = request.answer - request.generated - 1
            request.joined = self._steps
            on_first(request, now)
            self._context += request.prompt + request.generated + 1
            heapq.heappush(self._running, (self._steps + left, request.id, request))
            if left == 0:
                heapq.heappop(self._running)
                self._leave(request)
                on_end(request, now)
        self._under = None
        return self._begin(now)

    def die(self, now: float) -> list[Request]:
        """Everything that it had to do, with the tokens generated so far."""
        steps, unready = self._steps, tuple[Request, ...]()
        if self._under is not None:
            unready = self._under.done_prompts
            steps += int((now - self._under.begin) / self._under.seconds)
        for _, _, request in self._running:
            request.generated += 1 + steps - request.joined
        left = [*(request for _, _, request in self._running), *unready, *self._waiting]
        self._waiting.clear()
        self._running.clear()
        self._context, self._under = 0, None
        self.version += 1
        self.cache = Cache(self.cache.room)
        for request in left:
            request.left = -1
        return left

    def _leave(self, request: Request) -> None:
        length = request.prompt + request.answer
        self._context -= length
        self.cache.insert(request.conversation, length)
        if request.measured:
            self.tokens += request.answer

    def _begin(self, now: float) -> float | None:
        done, computed = [], 0
        room = min(MAX_RUNNING - len(self._running), len(self._waiting))
        while self._waiting and len(done) < room and computed < MAX_BATCH_TOKENS:
            request = self._waiting[0]
            if request.left < 0:
                self._look_up(request)
            taken = min(request.left, MAX_BATCH_TOKENS - computed)
            request.left -= taken
            computed += taken
            if request.left:
                break
            done.append(self._waiting.popleft())
        if not computed and not self._running:
            return None
        num_running = len(self._running)
        count = 1 if computed else self._running[0][0] - self._steps
        context = self._context + num_running * (count - 1) / 2
        seconds = STEP + PREFILL * computed + SEQUENCE * num_running + CONTEXT * context
        seconds /= self.speed
        # Steps with half a prompt are no more to be cut short than one that ends one.
        self._under = Under(now, seconds, count, tuple(done))
        self.version += 1
        return now + count * seconds

    def _look_up(self, request: Request) -> None:
        length = request.prompt + request.generated
        found = self.cache.matched(request.conversation, length)
        request.left = length - found
        # What is computed now is there for those behind it.
        self.cache.insert(request.conversation, length)
        if request.measured:
            self.asked += length
            self.hits += found
            self.tokens += request.left
