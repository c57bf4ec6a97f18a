"""What a teacher is asked: reviews cut to what it can read, and requests with their sampling parameters."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from cotd.data.spill import TextFile
from cotd.data.table import ExampleTable
from cotd.data.truncation import fit_end_by_length, head_length
from cotd.errors import CotdError
from cotd.tasks.base import Task
from cotd.teachers.config import TeacherConfig
from cotd.teachers.prompts import Prompts

# How much of a text a teacher is shown, where it is no number of characters.
UNKNOWN, WHOLE = -1, -2
# What stands for the middle of a review of which both ends are shown.
OMISSION = " … "
# A JSON answer's quotes, braces and keys, and its label.
JSON_TOKENS = 24
# How most chat formats begin a special token, <|im_end|> say, in case there is no tokenizer to ask.
_TURN = re.compile(r"<\|(?=\w+\|>)")


@dataclass(frozen=True)
class Teacher:
    """A teacher as its requests name it, with what a strategy needs of its tokenizer.

    Attributes:
        name: the model as configured. revision: which weights, as far as known, and how they are used.
        first_token: word → id of its first token, as it follows a prompt; None where there is no tokenizer.
        fit: cuts a text to its first tokens, of a number.
        fit_end: cuts it to its last ones.
        count: the tokens of a text, or an estimate.
        special: its special tokens, as they are written.
        cut: of each text of a file, without special tokens, how many of its first and of its last characters the teacher is
            shown, (N, 2): numbers, WHOLE, or UNKNOWN before it was looked at.
        commit: of a hub model, for the engine to load.
    """

    name: str
    revision: str
    first_token: Callable[[str], int] | None
    fit: Callable[[str, int], str]
    config: TeacherConfig
    count: Callable[[str], int] = len
    special: tuple[str, ...] = ()
    cut: dict[TextFile, np.ndarray] = field(default_factory=dict)
    commit: str | None = None
    fit_end: Callable[[str, int], str] = fit_end_by_length

    def request(self, prompt: str, **sampling: Any) -> Request:
        return Request(self.name, self.revision, prompt, sampling)

    def shown(self, reviews: ExampleTable) -> Iterator[tuple[str, str]]:
        """(id, text) of each review, cut to what leaves the prompt and the answer room in the teacher's context."""
        cut = self._cut(reviews)
        for number, i, whole in reviews.texts_by_number():
            text = self.unspecial(whole)  # before it is cut: what was one token is several now
            if cut[number, 0] == UNKNOWN:
                cut[number] = self._lengths(text)
            first, last = cut[number]
            yield i, text if first == WHOLE else text[:first] + (OMISSION + text[-last:] if last else "")

    def count_cut(self, reviews: ExampleTable) -> int:
        """How many of the reviews were too long to be shown whole."""
        return int((self._cut(reviews)[reviews.numbers, 0] >= 0).sum())

    def _cut(self, reviews: ExampleTable) -> np.ndarray:
        if reviews.texts not in self.cut:
            self.cut[reviews.texts] = np.full((len(reviews.texts), 2), UNKNOWN, dtype=np.int32)
        return self.cut[reviews.texts]

    def _lengths(self, text: str) -> tuple[int, int]:
        """How many of a text's first and of its last characters are shown, or WHOLE."""
        limit = self.config.max_review_tokens
        head = len(self.fit(text, limit))
        if head == len(text):
            return WHOLE, WHOLE
        first_tokens = head_length(self.config.truncation, limit)
        if first_tokens == limit:
            return head, 0
        last_tokens = max(1, limit - first_tokens - self.count(OMISSION))
        return len(self.fit(text, first_tokens)), len(self.fit_end(text, last_tokens))

    def unspecial(self, text: str) -> str:
        """A text in which nothing is a special token to the teacher (the end of the prompt, another speaker's turn)."""
        text = _TURN.sub("< |", text)
        for token in self.special:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    @property
    def answers_json(self) -> bool:
        """Whether written answers are JSON: what an endpoint can be held to, where it knows no patterns."""
        api = self.config.api
        return api is not None and api.server == "openai" and self.config.strategy == "chain_of_thought"


def score_request(teacher: Teacher, task: Task, prompts: Prompts, text: str) -> Request:
    """Asks for the log-probabilities of the label words: by their tokens, or by the words where there is no tokenizer."""
    words = [" " + prompts.label_words[label] for label in task.labels]
    tokens = [teacher.first_token(w) for w in words] if teacher.first_token else []
    if tokens and len(set(tokens)) < len(tokens):
        raise CotdError(
            f"the teacher's tokenizer begins two of the label words {', '.join(prompts.label_words.values())} with the same "
            "token, so that one token cannot score them. Name other label_words (teacher.prompts), or use strategy: chain_of_thought."
        )
    api = teacher.config.api
    if api is None:
        wanted: dict[str, Any] = {"allowed_token_ids": tokens, "logprobs": len(tokens)}
    elif api.server == "vllm" and tokens:
        wanted = {"label_words": words, "logprob_token_ids": tokens, "logprobs": len(tokens)}
    else:
        wanted = {"label_words": words, "logprobs": api.top_logprobs}
    return teacher.request(prompts.score(text), max_tokens=1, temperature=0.0, **wanted)


def explain_request(
    teacher: Teacher, prompts: Prompts, text: str, label: str, sample: int, structured: bool = False
) -> Request:
    if teacher.answers_json:
        form: dict[str, Any] = {"structured_outputs": {"json": prompts.json_schema(labelled=False)}}
        return teacher.request(prompts.explain_json(text, label), **writing(teacher, sample, JSON_TOKENS), **form)
    form = {"structured_outputs": {"regex": r" [^\n]{10,400}"}} if structured else {"stop": ["\n"]}
    return teacher.request(prompts.explain(text, label), **writing(teacher, sample), **form)


def think_request(teacher: Teacher, prompts: Prompts, text: str, sample: int, greedy: bool = False) -> Request:
    if teacher.answers_json:
        prompt, extra = prompts.chain_of_thought_json(text), JSON_TOKENS
        form: dict[str, Any] = {"json": prompts.json_schema(labelled=True)}
    else:
        prompt, extra, form = prompts.chain_of_thought(text), 0, {"regex": prompts.chain_of_thought_regex()}
    sampling = writing(teacher, sample, extra) | ({"temperature": 0.0} if greedy else {})
    return teacher.request(prompt, **sampling, structured_outputs=form)


def writing(teacher: Teacher, sample: int, extra_tokens: int = 0) -> dict[str, Any]:
    """Sampling parameters of a written answer; each sample has a seed of its own."""
    config = teacher.config
    plain = {
        "temperature": config.temperature,
        "seed": config.seed + sample,
        "max_tokens": config.max_rationale_tokens + extra_tokens,
    }
    return plain if config.api else plain | {"logprobs": 1}


# It is sampled: at temperature 0 the answer would be the same again. Its seeds are those of no sample (teacher.samples).
RETRY_TEMPERATURE, SEEDS_A_TRY = 0.7, 64
MOST_TRIES = 100


def another_try(request: Request, number: int) -> Request | None:
    """A request for the `number`-th time after the first; None where it would be the same, as of label scores, or too often.

    It has a key of its own, so that the store keeps each try's answer.
    """
    if number == 0:
        return request
    if "seed" not in request.sampling or number > MOST_TRIES:
        return None
    sampling = dict(request.sampling)
    sampling["seed"] += number * SEEDS_A_TRY
    sampling["temperature"] = max(sampling["temperature"], RETRY_TEMPERATURE)
    return replace(request, sampling=sampling)


@dataclass(frozen=True)
class Request:
    """One prompt to one teacher.

    Attributes:
        sampling: the sampling parameters as plain JSON; requests of one batch have the same keys.
    """

    teacher: str
    revision: str
    prompt: str
    sampling: dict[str, Any]

    @cached_property
    def key(self) -> str:
        """Content address: 32 hex digits of the SHA-256 of all that decides the answer."""
        content = json.dumps([self.teacher, self.revision, self.prompt, self.sampling], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:32]
