"""How fast an endpoint may be asked: a limit of our own, and what the server itself asks for."""

from __future__ import annotations

import email.utils
import math
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime

import httpx

LONGEST_RETRY_AFTER = 600.0


class RateLimit:
    """A token bucket: a steady rate a minute, and bursts of at most five seconds' worth."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic):
        self.rate = per_minute / 60 if per_minute else math.inf
        self.burst = max(1.0, 5 * self.rate)
        self.clock = clock
        self.level, self.at = self.burst, clock()

    def book(self, amount: float) -> float:
        """Takes `amount` out; returns how many seconds to wait until it is there. A negative amount gives back."""
        if self.rate == math.inf:
            return 0.0
        now = self.clock()
        self.level = min(self.burst, self.level + (now - self.at) * self.rate) - amount
        self.at = now
        return max(0.0, -self.level / self.rate)


def retry_after(headers: httpx.Headers, now: datetime | None = None) -> float | None:
    """Seconds that a server asks to wait, from `Retry-After` in seconds or as an HTTP date; None where it does not say."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return min(float(value), LONGEST_RETRY_AFTER)
    try:
        date = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    seconds = (date.replace(tzinfo=date.tzinfo or UTC) - (now or datetime.now(UTC))).total_seconds()
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER)
