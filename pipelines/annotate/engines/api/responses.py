"""What an endpoint's response says: a completion, or why there is none."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cotd.data.cleaning import replace_surrogates
from cotd.teachers.requests import Request
from cotd.teachers.store import Completion, new_completion

# What reading JSON that may be anything can raise.
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
# A larger number is not a count of tokens; so many fit into the store's columns however often a request is tried.
MOST_TOKENS = 10**7


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
    """The server does not take a request, and would not take it again."""


class TeacherRefused(Exception):
    """The teacher, or a filter of what it writes, will not complete a request."""


class NoLogprobs(Exception):
    """A response has no log-probabilities."""


class CutOff(Exception):
    """A response ran into the token limit before it had the form that was asked for."""


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
    """A server's count of tokens, or `fallback` where it is not one."""
    is_count = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= MOST_TOKENS
    return int(value) if is_count else fallback


def read_completion(request: Request, content: Any, chat: bool, usage: Usage, count: Callable[[str], int]) -> Completion:
    """The completion in a successful response.

    Args:
        content: the response's JSON. chat: it is a chat completion. usage: what the response took is added to it.
        count: the tokens of a text, where the response does not say.

    Raises:
        Transient, TeacherRefused, CutOff, NoLogprobs: there is no usable one.
        MALFORMED: it is not a completion at all.
    """
    choice = content["choices"][0]
    message = choice["message"] if chat else choice
    text = replace_surrogates(str(message.get("content" if chat else "text") or ""))
    used = content.get("usage")
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
        return new_completion(
            request.key, text=text, label_logprobs=label_logprobs(choice, words), finish_reason="stop", **tokens
        )
    if not text.strip():
        if finish_reason == "length":
            raise CutOff("the token limit was reached before anything was written")
        raise Transient("an empty response", responded=True)
    if not has_form(text, request.sampling.get("structured_outputs", {})):
        if finish_reason == "length":
            raise CutOff("the response is cut off by the token limit before it has the form asked for")
        raise Transient("the response does not have the form asked for", responded=True)
    return new_completion(request.key, text=text, finish_reason=finish_reason, **tokens)


def label_logprobs(choice: dict[str, Any], words: list[str]) -> list[float]:
    """The log-probability of each label word's first token; a word that is not among the top tokens has the least of them."""
    top = (choice.get("logprobs") or {}).get("top_logprobs")
    if not top or not isinstance(top[0], dict):
        raise NoLogprobs
    logprobs = {str(token): float(logprob) for token, logprob in top[0].items() if math.isfinite(float(logprob))}
    by_word = [label_logprob(word, logprobs, [w for w in words if w != word]) for word in words]
    if all(logprob is None for logprob in by_word):
        raise Transient("no label word is among the likeliest tokens", responded=True)
    return [min(logprobs.values()) if logprob is None else logprob for logprob in by_word]


def label_logprob(word: str, logprobs: dict[str, float], others: list[str]) -> float | None:
    """The log-probability of the tokens of `logprobs` that begin `word` and none of `others`, or None."""

    def begins(token: str, whole: str) -> bool:
        return bool(token.strip()) and whole.strip().startswith(token.strip())

    matching = [p for token, p in logprobs.items() if begins(token, word) and not any(begins(token, o) for o in others)]
    return math.log(sum(math.exp(p) for p in matching)) if matching else None


def form_of(request: Request) -> tuple[str, ...]:
    """The kind of a request: requests of one form differ in their texts."""
    return (*sorted(request.sampling), *request.sampling.get("structured_outputs", ()))


def has_form(text: str, structured: dict[str, Any]) -> bool:
    """Whether a text has the form that was asked for: a pattern, or an object with a schema's keys and choices.

    Not by a JSON schema validator: choices may be written in another case, see `folded`.
    """
    if "regex" in structured:
        return re.fullmatch(structured["regex"], text) is not None
    if "json" not in structured:
        return True
    try:
        content = json.loads(text[text.find("{") : text.rfind("}") + 1])
    except (ValueError, RecursionError):
        return False
    properties = structured["json"]["properties"]
    return isinstance(content, dict) and all(has_value(content.get(key), schema) for key, schema in properties.items())


def has_value(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is what a schema asks for, as far as it can be parsed: a number may be a string.

    Of the letters of options one may come with, or be replaced by, its option: where completions are parsed it is known.
    """
    if schema["type"] == "number":
        return isinstance(value, (str, int, float)) and not isinstance(value, bool)
    choices = schema.get("enum")
    return isinstance(value, str) and (choices is None or choices[0] == "(a)" or folded(value) in map(folded, choices))


def folded(word: str) -> str:
    """A choice in the form in which it is compared, here and where completions are parsed: "positive." is "Positive"."""
    return word.strip().strip(".").casefold()
