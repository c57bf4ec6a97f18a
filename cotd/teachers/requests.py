"""Requests to a teacher: prompts with their sampling parameters, and the further tries of those that failed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from cotd.errors import CotdError
from cotd.teachers.prompts import Prompts
from cotd.teachers.teacher import Teacher

# What JSON takes besides the rationale: quotes, braces, keys and the answer.
JSON_TOKENS = 24
# A retry is sampled, as the completion would be the same at temperature 0. No sample has its seed (teacher.samples is at most 64).
RETRY_TEMPERATURE, SEEDS_A_TRY = 0.7, 64
MAX_RETRIES = 100


@dataclass(frozen=True)
class Request:
    """One prompt to one teacher.

    Attributes:
        sampling: the sampling parameters as plain JSON; requests of one batch have the same keys. `scored_tokens`, which an engine
            here knows, asks for the log-probability of so many of the prompt's last tokens in place of what would follow.
        tokens: the prompt as token ids, for a model that is asked in the very tokens that it was trained on; `prompt` is then
            how it reads.
    """

    teacher: str
    revision: str
    prompt: str
    sampling: dict[str, Any]
    tokens: tuple[int, ...] | None = None

    @cached_property
    def key(self) -> str:
        """Content address: 32 hex digits of the SHA-256 of all that decides the completion."""
        content = json.dumps([self.teacher, self.revision, self.tokens or self.prompt, self.sampling], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def score_request(teacher: Teacher, prompts: Prompts, text: str, choices: Sequence[str] | None = None) -> Request:
    """Asks for the log-probability of each answer that the example can have, in the order of `task.options`.

    They are those of the first tokens of their words, or of the words if there is no tokenizer.
    """
    prompt, words = prompts.scoring(text, choices, teacher.escape)
    tokens = first_tokens(teacher, prompt, words)
    if len(set(tokens)) == 1 < len(tokens) and all(word.startswith(" ") for word in words):
        # To many tokenizers " 1" is a space and a digit: the space is then read with the prompt.
        prompt, words = f"{prompt} ", [word.removeprefix(" ") for word in words]
        tokens = first_tokens(teacher, prompt, words)
    if len(set(tokens)) < len(tokens):
        same = [word.strip() for word, token in zip(words, tokens, strict=True) if tokens.count(token) > 1]
        raise CotdError(
            f"the teacher's tokenizer begins the label words {', '.join(same)} with the same token, so one token cannot score "
            "them. Name other label_words (teacher.prompts), or use strategy: chain_of_thought."
        )
    api = teacher.config.api
    if api is None:
        scoring: dict[str, Any] = {"allowed_token_ids": tokens, "logprobs": len(tokens)}
    elif api.server == "vllm" and tokens:
        scoring = {"label_words": words, "logprob_token_ids": tokens, "logprobs": len(tokens)}
    else:
        scoring = {"label_words": words, "logprobs": api.top_logprobs}
    return _request(teacher, prompt, {"max_tokens": 1, "temperature": 0.0} | scoring)


def first_tokens(teacher: Teacher, prompt: str, words: Sequence[str]) -> list[int]:
    """The first token of each word after a prompt; none if the teacher's tokenizer is not known."""
    return [teacher.first_token(prompt[-1], word) for word in words] if teacher.tokenizer else []


def explain_request(
    teacher: Teacher,
    prompts: Prompts,
    text: str,
    label: str,
    sample: int,
    choices: Sequence[str] | None = None,
    structured: bool = False,
) -> Request:
    """Asks for a rationale given an answer, as one line or, of a teacher that writes JSON, as JSON."""
    if teacher.writes_json:
        name, extra_tokens = "explain_json", JSON_TOKENS
        form: dict[str, Any] = {"structured_outputs": {"json": prompts.json_schema(labelled=False)}}
    else:
        name, extra_tokens = "explain", 0
        form = {"structured_outputs": {"regex": r"[^\n]{10,400}"}} if structured else {"stop": ["\n"]}
    prompt = prompts.render(name, text, choices, label, teacher.escape)
    return _request(teacher, prompt, writing(teacher, sample, extra_tokens) | form)


def think_request(
    teacher: Teacher, prompts: Prompts, text: str, sample: int, choices: Sequence[str] | None = None, greedy: bool = False
) -> Request:
    """Asks for a rationale and then an answer."""
    if teacher.writes_json:
        name, extra_tokens = "chain_of_thought_json", JSON_TOKENS
        form: dict[str, Any] = {"json": prompts.json_schema(labelled=True, choices=choices)}
    else:
        name, extra_tokens, form = "chain_of_thought", 0, {"regex": prompts.chain_of_thought_regex(choices)}
    sampling = writing(teacher, sample, extra_tokens) | ({"temperature": 0.0} if greedy else {})
    prompt = prompts.render(name, text, choices, escape=teacher.escape)
    return _request(teacher, prompt, sampling | {"structured_outputs": form})


def writing(teacher: Teacher, sample: int, extra_tokens: int = 0) -> dict[str, Any]:
    """Sampling parameters of a written completion; each sample has its own seed."""
    config = teacher.config
    max_tokens = config.max_rationale_tokens + extra_tokens
    sampling = {"temperature": config.temperature, "seed": config.seed + sample, "max_tokens": max_tokens}
    return sampling if config.api else sampling | {"logprobs": 1}


def _request(teacher: Teacher, prompt: str, sampling: dict[str, Any]) -> Request:
    return Request(teacher.name, teacher.revision, teacher.prompt(prompt), sampling)


def retry_request(request: Request, number: int) -> Request | None:
    """The `number`-th retry of a request, 0 being the request itself; None after MAX_RETRIES, or if the completion would be
    the same, as for label scores.

    A retry has its own key, so the store keeps the completion of each.
    """
    if number == 0:
        return request
    if "seed" not in request.sampling or number > MAX_RETRIES:
        return None
    seed = request.sampling["seed"] + number * SEEDS_A_TRY
    temperature = max(request.sampling["temperature"], RETRY_TEMPERATURE)
    return replace(request, sampling=request.sampling | {"seed": seed, "temperature": temperature})
