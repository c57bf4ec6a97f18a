"""What an endpoint's answer says, or why it is none."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cotd.data.cleaning import whole_characters
from cotd.teachers.requests import Request
from cotd.teachers.store import Completion, completion

# What reading JSON that may be anything can raise.
ODD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
# More is no count of tokens; so many fit into the store's columns however often a request is tried.
MOST_TOKENS = 10**7


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


class NoScores(Exception):
    """An answer has no log-probabilities."""


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


def token_count(value: Any, fallback: int) -> int:
    """What a server says that it counted, or `fallback` where that is no count of tokens."""
    counted = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= MOST_TOKENS
    return int(value) if counted else fallback


def read_answer(request: Request, plain: Any, chat: bool, usage: Usage, count: Callable[[str], int]) -> Completion:
    """The completion that a successful response says.

    Args:
        plain: the response's JSON. chat: it is a chat completion. usage: what the answer took is added to it.
        count: the tokens of a text, where the response does not say.

    Raises:
        Again, TeacherRefused, CutOff, NoScores: it is no use.
        ODD: it is no answer at all.
    """
    choice = plain["choices"][0]
    message = choice["message"] if chat else choice
    content = message.get("content" if chat else "text")
    text = whole_characters(str(content or ""))
    used = plain.get("usage")
    used = used if isinstance(used, dict) else {}
    usage.prompt_tokens += token_count(used.get("prompt_tokens"), count(request.prompt))
    usage.output_tokens += token_count(used.get("completion_tokens"), count(text))
    finish_reason = "length" if choice.get("finish_reason") == "length" else "stop"
    if refusal := message.get("refusal"):
        raise TeacherRefused(f"the teacher refused: {str(refusal)[:200]}")
    if choice.get("finish_reason") == "content_filter":
        raise TeacherRefused("the endpoint's content filter refused")
    tokens = {"prompt_tokens": usage.prompt_tokens, "output_tokens": usage.output_tokens}
    if words := request.sampling.get("label_words"):
        scores = label_scores(choice, words)
        return completion(request.key, text=text, label_logprobs=scores, finish_reason="stop", **tokens)
    if not text.strip() and finish_reason == "length":
        raise CutOff("the token limit was reached before anything was answered")
    if not text.strip():
        raise Again("an empty answer", answered=True)
    if not has_form(text, request.sampling.get("structured_outputs", {})):
        if finish_reason == "length":
            raise CutOff("the answer is cut off by the token limit before it has the form asked for")
        raise Again("the answer does not have the form asked for", answered=True)
    return completion(request.key, text=text, finish_reason=finish_reason, **tokens)


def label_scores(choice: dict[str, Any], words: list[str]) -> list[float]:
    """The log-probability of each label word's first token; a word that is not among those given has the least of them."""
    found = (choice.get("logprobs") or {}).get("top_logprobs")
    if not found or not isinstance(found[0], dict):
        raise NoScores
    given = {str(token): float(logprob) for token, logprob in found[0].items() if math.isfinite(float(logprob))}
    scores = [label_logprob(word, given, [w for w in words if w != word]) for word in words]
    if all(s is None for s in scores):
        raise Again("no label word is among the likeliest tokens", answered=True)
    return [min(given.values()) if s is None else s for s in scores]


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
    except (ValueError, RecursionError):
        return False
    properties = structured["json"]["properties"]
    return isinstance(plain, dict) and all(
        isinstance(plain.get(k), str) and ("enum" not in p or folded(plain[k]) in map(folded, p["enum"]))
        for k, p in properties.items()
    )


def folded(word: str) -> str:
    """A choice as it is compared, here and where answers are parsed: "positive." is "Positive"."""
    return word.strip().strip(".").casefold()
