"""How much may wait: in requests and in tokens."""

from __future__ import annotations

from dataclasses import dataclass

from minisgl.engine.api import EngineBusy


@dataclass(frozen=True)
class QueueBounds:
    """`max_waiting`: requests taken beyond those that run at once; `max_waiting_tokens`: tokens of
    all prompts that have no answer yet; None: any number.
    """

    max_waiting: int
    max_waiting_tokens: int | None = None

    def check(
        self, *, num_live: int, max_running: int, waiting_tokens: int, prompt_tokens: int
    ) -> None:
        """Whether one more request may come to the live ones. Raises EngineBusy."""
        most = max_running + self.max_waiting
        if num_live >= most:
            raise EngineBusy(
                f"{num_live} requests are waiting or running, of at most {most} "
                "(--max-running and --max-waiting)."
            )
        limit = self.max_waiting_tokens
        # Where nothing waits, a prompt of any length is taken.
        if limit is not None and waiting_tokens and waiting_tokens + prompt_tokens > limit:
            raise EngineBusy(
                f"{waiting_tokens} prompt tokens are waiting, and the {prompt_tokens} of this "
                f"prompt would make them more than {limit} (--max-waiting-tokens)."
            )
