"""What an endpoint's answer says, or why it is none."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from cotd.completions import Request


class Again(Exception):
    """A request failed in a way that may pass.

    Attributes:
        after: seconds that the server asks to wait. waits: it was a rate limit, or the server says when to come again, so
            that the request itself was not tried. answered: an answer came. paid: one was, or may have been, written: the
            server had the request.
    """

    def __init__(
        self, reason: str, after: float | None = None, waits: bool = False, answered: bool = False, paid: bool = False
    ):
        super().__init__(reason)
        self.after, self.waits, self.answered, self.paid = after, waits, answered, answered or paid


class Refused(Exception):
    """The server does not take a request, and would not take it again."""


class TeacherRefused(Exception):
    """The teacher, or a filter of what it writes, will not answer a request."""


class CutOff(Exception):
    """An answer ran into the token limit before it had the form that was asked for."""


@dataclass
class Usage:
    """Tokens that the tries of one request have used."""

    prompt_tokens: int = 0
    output_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    def add(self, other: Usage) -> None:
        self.prompt_tokens += other.prompt_tokens
        self.output_tokens += other.output_tokens


def form_of(request: Request) -> tuple[str, ...]:
    """What kind of request it is: requests of one form differ in their texts."""
    return (*sorted(request.sampling), *request.sampling.get("structured_outputs", ()))


def label_logprob(word: str, given: dict[str, float], others: list[str]) -> float | None:
    """The log-probability of the tokens in `given` (token → log-probability) that begin `word` and no other, or None."""

    def begins(token: str, whole: str) -> bool:
        return bool(token.strip()) and whole.strip().startswith(token.strip())

    own = [p for token, p in given.items() if begins(token, word) and not any(begins(token, o) for o in others)]
    return math.log(sum(math.exp(p) for p in own)) if own else None


def has_form(text: str, structured: dict[str, Any]) -> bool:
    """Whether an answer has the form that was asked for: a pattern, or an object with a schema's keys and choices."""
    if "regex" in structured:
        return re.fullmatch(structured["regex"], text) is not None
    if "json" not in structured:
        return True
    try:
        plain = json.loads(text[text.find("{") : text.rfind("}") + 1])
    except ValueError:
        return False
    properties = structured["json"]["properties"]
    return isinstance(plain, dict) and all(
        isinstance(plain.get(k), str) and plain[k] in p.get("enum", [plain[k]]) for k, p in properties.items()
    )
