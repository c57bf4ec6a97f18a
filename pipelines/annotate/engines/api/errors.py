"""What an endpoint's error means: something to wait for, a request that it does not take, or the end of the run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# What reading JSON that may be anything can raise.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
RETRIED = {408, 409, 424, 425, 429}  # and 500 to 599
# A server's word for an error, in place of a status, → the status that it amounts to. The first that is found counts.
STATUS_OF_WORDS: list[tuple[re.Pattern[str], int]] = [
    (re.compile(words, re.IGNORECASE), status)
    for words, status in [
        (
            r"insufficient.?(quota|balance|credit|fund)|exceeded.?current.?quota|billing|payment.?required|no.?(credit|balance)"
            r"|arrear|budget.?exceeded|spending.?limit",
            402,
        ),
        (
            r"rate.?limit|request.?limit|too.?many.?requests|throttl|resource.?exhausted|slow.?down|requests.?per.?(minute|second|day)",
            429,
        ),
        (
            r"context.?length|content.?(filter|policy)|moderation|safety|flagged|invalid.?(request|prompt|argument)|bad.?request",
            400,
        ),
        (r"invalid.?(api.?)?key|unauthor|authentication|permission", 401),
        (r"(model|deployment).?(is.?)?not.?found|not.?found.?error|no.?such.?model", 404),
        (r"overload|unavailable|busy|time.?out|internal|server.?error|try.?again|capacity|loading", 503),
    ]
]
# Of messages, which may repeat the text that was sent: only what no text says by chance.
NO_CREDIT = re.compile(
    r"insufficient (quota|balance|credits?|funds)|credit balance|balance is insufficient|(no|out of|have any) (credits?|balance)\b"
    r"|credits? exhausted|budget has been exceeded|spending limit reached|余额不足|欠费",
    re.IGNORECASE,
)
NO_KEY = re.compile(
    r"api.?key (is )?(not valid|invalid|expired|revoked)|(invalid|incorrect|expired|revoked) api.?key", re.IGNORECASE
)
RATE_LIMITED = re.compile(r"rate limit|too many requests|throttl", re.IGNORECASE)
# The keys under which servers put an error's kind, and what they say of it.
CODES = ("code", "status", "status_code", "error_code", "errcode", "type")
MESSAGES = ("message", "msg", "error_msg", "errmsg", "detail", "status_msg", "description", "title", "raw")
LONGEST_MESSAGE = 200
REFUSALS = (400, 401, 403, 412)  # with which servers also refuse accounts and keys


class Transient(Exception):
    """A request failed in a way that may pass.

    Attributes:
        retry_after: seconds that the server asks to wait. rate_limited: it was a rate limit, or the server says when to come
            again, so that the request itself was not tried. responded: a response came. paid: one was, or may have been,
            written: the server had the request.
    """

    def __init__(
        self,
        reason: str,
        retry_after: float | None = None,
        rate_limited: bool = False,
        responded: bool = False,
        paid: bool = False,
    ):
        super().__init__(reason)
        self.retry_after, self.rate_limited, self.responded, self.paid = retry_after, rate_limited, responded, responded or paid


class Refused(Exception):
    """The server does not take a request, and would not take it again.

    Attributes:
        forbidden: it says that it may not, which it would also say of a key that it takes no more.
        advice: what to change, should it take no request of this kind.
    """

    def __init__(self, reason: str, forbidden: bool = False, advice: str = ""):
        super().__init__(reason)
        self.forbidden, self.advice = forbidden, advice


class TeacherRefused(Exception):
    """The teacher, or a filter of what it writes, will not complete a request."""


class NoLogprobs(Exception):
    """A response has no log-probabilities."""


class CutOff(Exception):
    """A response ran into the token limit before it had the form that was asked for."""


class NoForm(Transient):
    """A response does not have the form that was asked for."""


@dataclass(frozen=True)
class ServerError:
    """An error as a server tells it.

    Attributes:
        status: HTTP's or, of an error that came with 200, the one that it amounts to; None if that is not known.
        code: the server's words for its kind. message: what it says. parameter: which one it does not take.
    """

    status: int | None
    code: str
    message: str
    parameter: str

    @property
    def no_credit(self) -> bool:
        """Whether the account has nothing left to pay with."""
        return self.surely_no_credit or (self.status in (*REFUSALS, 429) and bool(NO_CREDIT.search(self.message)))

    @property
    def surely_no_credit(self) -> bool:
        """Whether its status or code says so, of which none means a limit that passes."""
        return self.status == 402 or (self.status in (*REFUSALS, 429) and status_of(self.code) == 402)

    @property
    def no_key(self) -> bool:
        """Whether the key is not, or no longer, accepted."""
        return self.status == 401 or (self.status in REFUSALS and bool(NO_KEY.search(self.message)))

    @property
    def rate_limited(self) -> bool:
        """Whether too many requests came."""
        if self.status == 429:
            return True
        limited = status_of(self.code) == 429 or bool(RATE_LIMITED.search(self.message))
        return limited and self.status in (None, 400, 403, 503)


def status_of(words: str) -> int | None:
    """The HTTP status that a server's words amount to, or None."""
    return next((status for pattern, status in STATUS_OF_WORDS if pattern.search(words)), None)


def response_error(content: Any, status: int, text: str) -> ServerError:
    """The error of a response other than 2xx, whatever its form.

    Args:
        content: its JSON. text: the response as it came.
    """
    return read_error(content, status) or ServerError(status, "", text, "")


def read_error(content: Any, status: int | None = None) -> ServerError | None:
    """The error in a response's JSON, or None: `{"error": {…}}`, `{"error": "words"}`, `[{"error": …}]`, `{"detail": …}` and the like.

    Args:
        status: HTTP's, of a response other than 200.
    """
    parts = list(error_parts(content))
    if not parts:
        return None
    numbers: list[int] = []
    codes: list[str] = []
    messages: list[str] = []
    parameter = ""
    for part in parts:
        if isinstance(part, str):
            messages.append(part)
            continue
        for key in CODES:
            value = part.get(key)
            if isinstance(value, int) and not isinstance(value, bool):
                numbers.append(value)
            elif isinstance(value, str) and value:
                numbers += [int(value)] if value.isdecimal() and len(value) < 9 else []
                codes.append(value)
        for key in MESSAGES:
            if isinstance(part.get(key), str) and part[key]:
                messages.append(part[key])
        place = part.get("loc")  # FastAPI's: ["body", "seed"]
        parameter = parameter or str(part.get("param") or (place[-1] if isinstance(place, list) and place else ""))
    code, message = " ".join(codes), ": ".join(dict.fromkeys(messages))
    if status is None:
        known = next((n for n in numbers if 400 <= n < 600), None)
        status = known or status_of(code) or status_of(message)
    return ServerError(status, code, message or code, parameter)


def error_parts(content: Any) -> Iterator[dict[str, Any] | str]:
    """The objects, and words, of which an error consists, the outermost last; nothing if there is none."""
    if isinstance(content, list):
        content = content[0] if content else None
    if not isinstance(content, dict):
        return
    inner = next((content[key] for key in ("error", "errors", "base_resp", "detail", "fault") if content.get(key)), None)
    if isinstance(inner, list):
        inner = inner[0]
    if isinstance(inner, str):
        yield inner
    elif isinstance(inner, dict):
        yield inner
        yield from error_parts(inner)
        if isinstance(inner.get("metadata"), dict):
            yield inner["metadata"]
    if (
        inner is not None
        or "error" in (content.get("object"), content.get("type"))
        or {"message", "msg", "error_msg", "errmsg"} & content.keys()
    ):
        yield {key: value for key, value in content.items() if key in CODES + MESSAGES}
