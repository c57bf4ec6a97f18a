"""When the next request to an endpoint may be made: its rate limits, and the pauses that the server asks for."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from cotd.errors import CotdError
from cotd.progress import say
from cotd.teachers.api_config import ApiConfig
from pipelines.annotate.engines.api.errors import Transient
from pipelines.annotate.engines.api.rate_limit import Booking, RateLimit

LONGEST_BACKOFF = 60.0
# A longer Retry-After (a quota of the day, say) ends the run rather than keep somebody waiting in front of it.
LONGEST_PAUSE = 3600.0


def backoff(config: ApiConfig, tries: int) -> float:
    """Seconds to wait after so many tries, the first being 1."""
    return min(LONGEST_BACKOFF, config.backoff_seconds * 2.0 ** min(tries - 1, 30))


class Pace:
    """Lets requests wait for the account's limits, which are the same for all of them.

    Args:
        stopped: whether no more requests are to be made.

    Attributes:
        longest_pause: seconds that the server has asked to wait.
    """

    def __init__(self, config: ApiConfig, stopped: Callable[[], bool]):
        self.config, self.stopped = config, stopped
        self.requests = RateLimit(config.requests_per_minute)
        self.tokens = RateLimit(config.tokens_per_minute)
        self.longest_pause = 0.0
        self._gate = asyncio.Lock()  # the limits are waited for one by one, in the order of arrival
        self._resume_at = 0.0  # monotonic seconds; a Retry-After is meant for every request

    def pause(self, failure: Transient, seconds: float) -> None:
        """Lets every request wait: for `seconds` where the server does not say how long.

        Raises:
            CotdError: it asks to wait too long.
        """
        if failure.retry_after is not None and failure.retry_after > LONGEST_PAUSE:
            raise CotdError(
                f"{self.config.base_url} asks to wait {failure.retry_after:,.0f} s (Retry-After; {failure}). "
                "What is done is kept; the same command, run then, resumes there."
            )
        pause = seconds * random.uniform(0.5, 1.0) if failure.retry_after is None else failure.retry_after
        self.longest_pause = max(self.longest_pause, pause)
        if pause >= 60 and time.monotonic() + pause > self._resume_at + 1:
            say(f"  {self.config.base_url} asks to wait {pause:,.0f} s ({failure})")
        self._resume_at = max(self._resume_at, time.monotonic() + pause)

    async def turn(self, tokens: float, spread: float) -> Booking | None:
        """Waits until a Retry-After and the rate limits allow another request; None where no more are to be made.

        Args:
            tokens: to book. spread: those who waited for a pause come back over so many seconds after it; it grows with a
                request's tries, until as many come at once as the server takes.
        """
        jitter = random.uniform(0, max(spread, self.config.backoff_seconds))
        while True:
            while not self.stopped() and (pause := self._resume_at + jitter - time.monotonic()) > 0:
                await asyncio.sleep(min(pause, 1.0))
            async with self._gate:
                while not self.stopped() and (wait := max(self.requests.wait(1), self.tokens.wait(tokens))) > 0:
                    await asyncio.sleep(min(wait, 1.0))
                if self.stopped():
                    return None
                if self._resume_at <= time.monotonic():
                    self.requests.take(1)
                    return self.tokens.take(tokens)
