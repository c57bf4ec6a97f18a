"""The HTTP header Retry-After."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after_seconds(value: str, now: datetime | None = None) -> float | None:
    """The seconds that a header's value asks to wait, as a number or a date (RFC 9110, 10.2.3); None if it says neither.

    Args:
        now: the time from which a date is counted; None for the present.
    """
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", value := value.strip()):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - (now or datetime.now(UTC))).total_seconds())
    except (ValueError, OverflowError):
        return None
