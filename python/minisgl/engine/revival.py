"""Revival: one group of ranks after the other serves the live requests, for as long as it makes
sense.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from minisgl.engine.api import EngineStartError, HostLost
from minisgl.engine.group import Loss, RankGroup
from minisgl.engine.live_requests import DIED, LiveRequests
from minisgl.engine.peers import ALONE, Peers
from minisgl.ipc.messages import EngineInfo
from minisgl.tasks import background

_State = Literal["starting", "ready", "restarting", "failed"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RestartPolicy:
    """When and how often an engine that died is started again."""

    # In a row; one more and the engine has failed or, where others may serve, is tried at longer
    # intervals.
    max_failures: int = 5
    first_delay: float = 0.5  # seconds, doubled at each failure
    max_delay: float = 10.0
    open_delay: float = 60.0  # after too many failures
    healthy_seconds: float = 60.0  # an engine that was ready that long starts the count anew
    # Per request, at least 1: what was there at so many deaths may be their cause, and is tried
    # alone (LiveRequests).
    max_replays: int = 2

    def delay(self, failures: int) -> float:
        """Seconds to wait after so many failures in a row."""
        if failures > self.max_failures:
            return self.open_delay
        return min(self.first_delay * 2.0 ** min(failures - 1, 60), self.max_delay)


class Revival:
    """Starts a group, notices its death, and starts another one, which gets the live requests.

    Whatever goes wrong while an engine is started again counts as a failure and is tried again;
    after too many failures in a row the state is "failed" and the live requests end, unless other
    engines may serve: then it is tried at longer intervals for ever. A host that is lost and comes
    again in time is no failure.
    """

    def __init__(
        self,
        make_group: Callable[[], RankGroup],
        requests: LiveRequests,
        policy: RestartPolicy,
        peers: Peers = ALONE,
    ) -> None:
        self.failure = ""  # why the state is "failed"
        self.num_restarts = 0
        self.infos: list[EngineInfo] = []  # by rank
        self._make_group = make_group
        self._requests = requests
        self._policy = policy
        self._peers = peers
        self._group: RankGroup | None = None
        self._state: _State = "starting"
        self._ends_when_idle = False
        self._failures = 0  # in a row
        self._supervisor: asyncio.Task[None] | None = None
        self._failed = asyncio.Event()

    @property
    def state(self) -> _State:
        """As in EngineApi. An engine is restarting from the first news of its death on."""
        if self._state == "ready" and self._group is not None and self._group.lost:
            return "restarting"
        return self._state

    @property
    def serving(self) -> RankGroup | None:
        """The ranks that have the requests."""
        return self._group if self.state == "ready" else None

    @property
    def exhausted(self) -> bool:
        """Whether there have been too many failures in a row."""
        return self._failures > self._policy.max_failures

    @property
    def is_starting(self) -> bool:
        """Whether a group is on its way, which may wait for a host. Else the one before it is being
        ended, or time passes until the next.
        """
        return self._state == "starting" or (self._group is not None and not self._group.lost)

    async def start(self) -> None:
        """Starts a group and waits until it is ready; where a host is lost meanwhile, another one
        once it is back. Raises EngineStartError; close() is due in any case.
        """
        while True:
            self._group = self._make_group()
            try:
                self.infos = await self._group.start()
                return
            except HostLost as error:
                logger.warning("%s; the start begins again when it is back", error)
                await self._discard_group()
                await asyncio.sleep(self._policy.first_delay)

    def serve(self, timeout: float | None) -> None:
        """Requests are served from now on, and deaths noticed. Another engine has `timeout` seconds
        to start.
        """
        self._attach()
        self._supervise(timeout, "")

    async def start_later(self, reason: str, timeout: float | None) -> None:
        """As serve(), where start() has failed for this reason: another one is tried."""
        self._state = "restarting"
        await self._discard_group()
        self._supervise(timeout, reason)

    def _supervise(self, timeout: float | None, reason: str) -> None:
        self._supervisor = background(
            self._serve_in_turn(timeout, reason),
            f"the supervisor of {self._peers.name}",
            self._fail,
        )

    def hear_loss(self) -> None:
        """The group's first news of a loss."""
        if self._state == "ready" and self._peers.on_loss is not None:
            assert self._group is not None
            self._detach(self._group.host_lost)
            self._peers.on_loss()

    def end_when_idle(self) -> None:
        """An engine that dies from now on has a successor only where requests are live."""
        self._ends_when_idle = True

    async def wait_failed(self) -> str:
        """Returns why, once the engine has died too often to be started again."""
        await self._failed.wait()
        return self.failure

    async def close(self) -> None:
        """Ends the ranks, in order if they listen. Idempotent."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait({self._supervisor})
            self._supervisor = None
        if self._group is not None:
            await self._group.stop()
            await self._discard_group()

    def kill(self) -> None:
        """Ends the ranks at once, for a process that is about to end itself."""
        if self._group is not None:
            self._group.kill()

    def _attach(self) -> None:
        assert self._group is not None
        num_live = self._requests.attach(self._group.send)
        if self._state == "restarting":
            logger.info("%s is ready again; %d requests go on", self._peers.name, num_live)
        self._state = "ready"
        if self._group.lost:  # since it got ready
            self.hear_loss()
        else:
            self._peers.on_ready()

    async def _serve_in_turn(self, timeout: float | None, reason: str) -> None:
        """Until there were too many failures in a row, or the last engine has died. `reason`: why
        there is no engine yet; "": there is one.
        """
        while True:
            while reason:
                self._failures += 1
                if self.exhausted and not self._peers.others_may_serve():
                    self._fail(reason)
                    return
                if self.exhausted:
                    self._peers.on_exhausted()
                delay = self._policy.delay(self._failures)
                often = f" (failure {self._failures} in a row)" if self.exhausted else ""
                self._say_death(reason, f"starting it again in {delay:g} s{often}")
                await asyncio.sleep(delay)
                reason = await self._start_again(timeout)
            began = asyncio.get_running_loop().time()
            loss = await self._wait_death()
            if self._ends_when_idle and not len(self._requests):
                self._say_death(loss.reason, "it isn't needed any more")
                return
            if asyncio.get_running_loop().time() - began >= self._policy.healthy_seconds:
                self._failures = 0
            reason = loss.reason
            if loss.of_host:
                limit = "" if timeout is None else f", within {timeout:g} s (--startup-timeout)"
                self._say_death(reason, f"starting it again when the host is back{limit}")
                reason = await self._start_again(timeout)

    def _say_death(self, reason: str, what_follows: str) -> None:
        logger.error("%s died: %s; %s", self._peers.name, reason, what_follows)

    async def _wait_death(self) -> Loss:
        """Waits until the engine is lost, and returns what it died of."""
        assert self._group is not None
        loss = await self._group.wait_lost()
        self._state = "restarting"
        if self._peers.on_loss is None:  # else it was heard of, and done
            self._detach(loss.of_host)
        await self._discard_group()
        return loss

    def _detach(self, of_host: bool) -> None:
        self._requests.detach(None if of_host else self._policy.max_replays)

    async def _start_again(self, timeout: float | None) -> str:
        """One attempt. Returns why it failed, "" when the engine serves."""
        try:
            await asyncio.wait_for(self.start(), timeout)
            self._attach()
        except asyncio.TimeoutError:
            reason = f"not ready within {timeout:g} s"
        except EngineStartError as error:
            reason = str(error)
        except Exception as error:
            logger.exception("unexpected error while starting %s", self._peers.name)
            reason = f"unexpected error while starting: {error!r}"
        else:
            self.num_restarts += 1
            return ""
        await self._discard_group()
        return reason or "it could not be started"

    def _fail(self, reason: str) -> None:
        """The end: no engine is started any more."""
        self.failure = reason
        self._state = "failed"
        self._failed.set()
        self._peers.on_failed()
        self._requests.end_all("engine_failure", DIED)

    async def _discard_group(self) -> None:
        if self._group is None:
            return
        try:
            await self._group.close()
        except Exception:  # its ranks were killed, whatever is left of them
            logger.exception("unexpected error while the engine was closed")
        self._group = None
