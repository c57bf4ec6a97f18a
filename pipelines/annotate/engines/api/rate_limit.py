"""How fast an endpoint may be asked: limits of our own, and the server's Retry-After."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

import httpx

from cotd.utils.retry_after import retry_after_seconds

# A request sent late in one minute and one sent early in the next may reach the server closer together.
WINDOW_SECONDS = 61.0
BURST_SECONDS = 5.0
UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_IN_WORDS = re.compile(r"(?:try again|retry) (?:in|after) ((?:\d+(?:\.\d+)?\s*(?:ms|s|m|h)[a-z]*\s*)+)", re.IGNORECASE)
LONGEST_RETRY_AFTER = 366 * 86400.0  # a server that says more means never


@dataclass
class Booking:
    """What was taken from a limit, and when (seconds of the limit's clock)."""

    at: float
    amount: float


class RateLimit:
    """At most `per_minute` in any minute, at a steady pace with bursts of at most five seconds' worth.

    A token bucket sets the pace; alone it would allow a burst on top of a minute's worth, so what was taken in the last
    minute is counted as well. Not for threads: who asks, and takes what there is, must not wait in between.

    Args:
        per_minute: None for no limit.
    """

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic):
        self.limit = per_minute or math.inf
        self.rate = self.limit / 60
        self.burst = max(1.0, BURST_SECONDS * self.rate)
        self.clock = clock
        self.level, self.at = self.burst, clock()
        self.taken: deque[Booking] = deque()
        self.used = 0.0  # the sum of `taken`

    def wait(self, amount: float) -> float:
        """Seconds until `amount` may be taken; what is more than a minute's worth may go once the minute is empty."""
        if self.limit == math.inf:
            return 0.0
        now = self._advance()
        paced = (min(amount, self.burst) - self.level) / self.rate
        excess = min(amount, self.limit) + self.used - self.limit
        freed_at = now
        for booking in self.taken:
            if excess <= 1e-9 * self.limit:
                break
            excess -= booking.amount
            freed_at = booking.at + WINDOW_SECONDS
        # What the clock cannot tell from now is now: or one who waits would wait for ever.
        return max(0.0, paced if paced > 1e-9 else 0.0, freed_at - now)

    def take(self, amount: float) -> Booking:
        """Takes `amount`, whether or not it is there yet."""
        booking = Booking(self.clock(), amount)
        if self.limit < math.inf:
            self._advance()
            self.level -= amount
            self.used += amount
            self.taken.append(booking)
        return booking

    def settle(self, booking: Booking, amount: float) -> None:
        """Corrects what was taken to what it turned out to be."""
        if self.limit == math.inf:
            return
        now = self._advance()
        self.level = min(self.burst, self.level + booking.amount - amount)
        if booking.at + WINDOW_SECONDS > now:
            self.used += amount - booking.amount
        booking.amount = amount

    def _advance(self) -> float:
        """Lets time pass for what was taken; returns the time."""
        now = self.clock()
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        while self.taken and self.taken[0].at + WINDOW_SECONDS <= now:
            self.used -= self.taken.popleft().amount
        if not self.taken:
            self.used = 0.0  # no rounding is carried along
        return now


def retry_after(headers: httpx.Headers, message: str = "", now: datetime | None = None) -> float | None:
    """Seconds that a server asks to wait; None where it does not say.

    It says so in `Retry-After`, in seconds or as an HTTP date, in `Retry-After-Ms`, or in words: "try again in 1m2.5s".
    """
    milliseconds = retry_after_seconds(headers.get("retry-after-ms", ""))
    seconds = retry_after_seconds(headers.get("retry-after", ""), now) if milliseconds is None else milliseconds / 1000
    if seconds is not None:
        return min(seconds, LONGEST_RETRY_AFTER)
    if words := _IN_WORDS.search(message):
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h)", words[1], re.IGNORECASE)
        return min(sum(float(number) * UNITS[unit.lower()] for number, unit in parts), LONGEST_RETRY_AFTER)
    return None
