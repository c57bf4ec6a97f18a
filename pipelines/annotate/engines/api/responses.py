"""What an endpoint's response says: a completion, or why there is none."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cotd.data.cleaning import replace_surrogates
from cotd.tasks.base import PUNCTUATION
from cotd.tasks.classification import words_of
from cotd.tasks.find import answer_forms
from cotd.teachers.requests import Request
from cotd.teachers.store import Completion, new_completion
from cotd.utils.model_output import json_objects, without_thoughts
from pipelines.annotate.engines.api.errors import CutOff, NoForm, NoLogprobs, TeacherRefused, Transient, read_error

# How servers say, as the reason why a completion ended, that a filter did.
FILTERED = {"content_filter", "safety", "prohibited_content", "blocklist", "recitation", "moderation", "sensitive"}
# A larger number is not a count of tokens; so many fit into the store's columns however often a request is tried.
MOST_TOKENS = 10**7


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
    text, refusal = written_text(message)
    used = content.get("usage")
    used = used if isinstance(used, dict) else {}
    usage.prompt_tokens += token_count(used.get("prompt_tokens"), count(request.prompt))
    usage.output_tokens += token_count(used.get("completion_tokens"), count(text))
    reason = str(choice.get("finish_reason")).casefold()
    finish_reason = "length" if reason in ("length", "max_tokens") else "stop"
    if refusal:
        raise TeacherRefused(f"the teacher refused: {refusal[:200]}")
    if reason in FILTERED:
        raise TeacherRefused("the endpoint's content filter refused")
    tokens = {"prompt_tokens": usage.prompt_tokens, "output_tokens": usage.output_tokens}
    if words := request.sampling.get("label_words"):
        logprobs = label_logprobs(choice, words, exact="logprob_token_ids" in request.sampling)
        return new_completion(request.key, text=text, label_logprobs=logprobs, finish_reason="stop", **tokens)
    if not without_thoughts(text).strip():
        if finish_reason == "length":
            raise CutOff("the token limit was reached before anything was written")
        raise Transient("an empty response", responded=True)
    if not has_form(text, request.sampling.get("structured_outputs", {})):
        if finish_reason == "length":
            raise CutOff("the response is cut off by the token limit before it has the form asked for")
        raise NoForm("the response does not have the form asked for", responded=True)
    return new_completion(request.key, text=text, finish_reason=finish_reason, **tokens)


def join_events(text: str) -> Any:
    """The response that a stream of server-sent events amounts to; an error among them stands for all.

    Raises:
        MALFORMED: it is not such a stream.
    """
    data = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    events = [json.loads(event) for event in data if event != "[DONE]"]
    whole: dict[str, Any] = dict(events[0])
    written: dict[str, Any] = {}
    finish_reason = None
    for event in events:
        if read_error(event):
            return event
        whole["usage"] = event.get("usage") or whole.get("usage")
        for choice in (event.get("choices") or [])[:1]:
            finish_reason = choice.get("finish_reason") or finish_reason
            for key, piece in (choice.get("delta") or choice.get("message") or choice).items():
                if isinstance(piece, str) and key != "finish_reason":
                    written[key] = written.get(key, "") + piece
    return {**whole, "choices": [{**written, "message": written, "finish_reason": finish_reason}]}


def written_text(message: dict[str, Any]) -> tuple[str, str]:
    """(What a message says, a refusal if it is one).

    That is its content, else the arguments of a tool call, else what a server took for a thought.
    """
    text = content_text(message.get("content", message.get("text")))
    if not text.strip():
        calls = [*(message.get("tool_calls") or []), {"function": message.get("function_call")}]
        functions = [call.get("function") for call in calls if isinstance(call, dict)]
        text = "".join(content_text(f.get("arguments")) for f in functions if isinstance(f, dict))
    if not text.strip():
        text = content_text(message.get("reasoning_content") or message.get("reasoning"))
    parts = message["content"] if isinstance(message.get("content"), list) else []
    refusals = [part.get("refusal") for part in parts if isinstance(part, dict)]
    return replace_surrogates(text), replace_surrogates(str(next(filter(None, [message.get("refusal"), *refusals]), "")))


def content_text(content: Any) -> str:
    """A message's content as text: a string, a list of parts of which thoughts are left out, or an object that was parsed already."""
    if isinstance(content, list):
        return "".join(map(content_text, content))
    if isinstance(content, dict):
        kind = str(content.get("type", ""))
        if "think" in kind or "reason" in kind or "refusal" in kind:
            return ""
        inner = [content[key] for key in ("text", "content", "value") if key in content]
        return content_text(inner[0]) if inner else "" if kind else json.dumps(content)
    return "" if content is None else str(content)


def label_logprobs(choice: dict[str, Any], words: list[str], exact: bool = False) -> list[float]:
    """The log-probability of each label word's first token; a word that is not among the top tokens has the least of them.

    Args:
        exact: the server was asked for exactly these tokens.
    """
    top = (choice.get("logprobs") or {}).get("top_logprobs")
    if not top or not isinstance(top[0], dict):
        raise NoLogprobs
    logprobs = {str(token): float(logprob) for token, logprob in top[0].items() if math.isfinite(float(logprob))}
    by_word = [label_logprob(word, logprobs, [w for w in words if w != word]) for word in words]
    if exact and None in by_word:
        raise NoLogprobs("of the label words that it was asked for (logprob_token_ids, of newer versions of vLLM)")
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
    temperature = str(request.sampling.get("temperature"))  # some models take only one
    return (*sorted(request.sampling), *request.sampling.get("structured_outputs", ()), temperature)


def has_form(text: str, structured: dict[str, Any]) -> bool:
    """Whether a text has the form that was asked for: a pattern, or an object with a schema's keys and choices.

    Not by a JSON schema validator: what is read where completions are parsed will do, see `cotd.tasks.find.answer_forms`.
    """
    text = without_thoughts(text)
    if "regex" in structured:
        return re.fullmatch(structured["regex"], text) is not None
    if "json" not in structured:
        return True
    properties = structured["json"]["properties"]
    return any(all(has_value(o.get(key), schema) for key, schema in properties.items()) for o in json_objects(text))


def has_value(value: Any, schema: dict[str, Any]) -> bool:
    """Whether a value is what a schema asks for, as far as it can be parsed: a number may be a string.

    Of the letters of options one may come with, or be replaced by, its option: where completions are parsed it is known.
    """
    if schema["type"] == "number":
        return isinstance(value, (str, int, float)) and not isinstance(value, bool)
    choices = schema.get("enum")
    if not isinstance(value, str) or choices is None or choices[0] == "(a)":
        return isinstance(value, str)
    known = {folded(choice) for choice in choices}
    return any(folded(form) in known for form in answer_forms(value))


def folded(word: str) -> str:
    """A choice in the form in which it is compared, here and where completions are parsed: "**positive**." is "Positive"."""
    return words_of(word.strip(PUNCTUATION))
