"""A teacher: its name, revision and tokenizer, and how texts are cut for it. Its weights are the engine's to load."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cotd import assets
from cotd.config.digest import digest
from cotd.data.spill import TextFile
from cotd.data.table import ExampleTable
from cotd.data.truncation import cut_beginning, cut_text, fit_by_length, fit_end_by_length, head_length, tokens_by_length
from cotd.errors import CotdError
from cotd.students.base_models import count_parameters, has_card, hub_commit, model_digest, resolve_model, weights_bytes
from cotd.teachers.api_config import ApiConfig
from cotd.teachers.config import EngineConfig, TeacherConfig
from cotd.utils.text import first_line

# Stand for the number of characters that are shown of a text.
UNKNOWN, WHOLE = -1, -2
# Stands for the middle of an example of which both ends are shown.
OMISSION = " … "
# Only so many characters for each token of the limit are tokenized: texts of megabytes take long, and few tokens are longer.
CHARACTERS_A_TOKEN = 64
# The beginning of a special token in most chat formats, such as <|im_end|>, for teachers without a tokenizer.
_SPECIAL = re.compile(r"<\|(?=\w+\|>)")


class Shown(NamedTuple):
    """An example as a teacher is shown it: its text without special tokens, and its own options, if it has any."""

    id: str
    text: str
    choices: list[str] | None


@dataclass(frozen=True)
class Teacher:
    """A teacher as its requests name it.

    Attributes:
        name: the model as configured. revision: which weights, as far as known, and how they are used.
        tokenizer: None if it is not known; then tokens are estimated by length.
        commit: of a hub model, for the engine to load.
    """

    name: str
    revision: str
    config: TeacherConfig
    tokenizer: Any = None
    commit: str | None = None
    # Of each text of a file, how many of its first and of its last characters are shown, (N, 2), once that is known.
    _shown: dict[TextFile, np.ndarray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def count(self, text: str) -> int:
        """The tokens of a text, or an estimate."""
        return len(self.tokenizer(text, verbose=False)["input_ids"]) if self.tokenizer else tokens_by_length(text)

    @property
    def source(self) -> str:
        """What an engine here loads: a folder or a hub id, under any name that `resolve_model` knows."""
        return self.config.model

    @property
    def size(self) -> dict[str, int | None]:
        """`parameters` and `weights_bytes`; None where its weights are elsewhere."""
        if self.config.api or self.config.imported:
            return {"parameters": None, "weights_bytes": None}
        return {"parameters": count_parameters(self.source), "weights_bytes": weights_bytes(self.source)}

    @property
    def engine(self) -> EngineConfig:
        """The engine here that the teacher is asked through."""
        return self.config.engine

    @cached_property
    def first_token(self) -> Callable[[str, str], int]:
        """(Last character of a prompt, the words that follow) → id of the first token of these."""
        return functools.cache(self._first_token)

    def _first_token(self, before: str, words: str) -> int:
        def encode(text: str) -> list[int]:
            return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]

        head, whole = encode(before), encode(before + words)
        # Alone, words may begin with a token of their own (SentencePiece's "▁"); together they may share one with the prompt.
        return whole[len(head)] if whole[: len(head)] == head else encode(words)[0]

    def prompt(self, text: str) -> str:
        """A prompt as the model reads it: a chain of thought is asked for in the model's chat template, if it has one."""
        if not self.chats:
            return text
        turn = [{"role": "user", "content": text}]
        # Models that think before they answer would do so at length (`enable_thinking` of Qwen's template; others ignore it).
        shown = self.tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False, enable_thinking=False)
        return shown.removeprefix(self._added)

    @property
    def chats(self) -> bool:
        """Whether prompts are in a chat template."""
        config = self.config
        wanted = config.api is None and config.strategy == "chain_of_thought" and config.engine.chat == "auto"
        return wanted and bool(getattr(self.tokenizer, "chat_template", None))

    @cached_property
    def _added(self) -> str:
        """The special tokens that a tokenizer, and so the engine, puts before every text."""
        return self.tokenizer.decode(self.tokenizer("")["input_ids"][:1])

    def fit(self, text: str, limit: int) -> str:
        """The beginning of a text, at most `limit` tokens long."""
        if self.tokenizer is None:
            return fit_by_length(text, limit)
        if len(text.encode()) <= limit:  # a token has at least one byte
            return text
        beginning = text[: CHARACTERS_A_TOKEN * limit]
        offsets = self._offsets(beginning)
        # An emoji may be several tokens; one that the limit falls into is left out.
        return beginning if len(offsets) <= limit else cut_text(beginning, min(offsets[limit - 1][1], offsets[limit][0]))

    def fit_end(self, text: str, limit: int) -> str:
        """The end of a text, at most `limit` tokens long."""
        if self.tokenizer is None:
            return fit_end_by_length(text, limit)
        if len(text.encode()) <= limit:
            return text
        end = text[-CHARACTERS_A_TOKEN * limit :]
        offsets = self._offsets(end)
        return end if len(offsets) <= limit else cut_beginning(end, max(offsets[-limit][0], offsets[-limit - 1][1]))

    def _offsets(self, text: str) -> list[tuple[int, int]]:
        return self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]

    def shown(self, examples: ExampleTable) -> Iterator[Shown]:
        """Each example, its text cut so that prompt and completion fit the teacher's context."""
        lengths = self._shown_lengths(examples)
        for (number, i, whole), choices in zip(examples.texts_by_number(), examples.own_choices(), strict=True):
            text = self.escape(whole)  # before it is cut: what was one token is several now
            if lengths[number, 0] == UNKNOWN:
                lengths[number] = self._cut(text, self.config.max_text_tokens - self._tokens_of(choices or []))
            first, last = lengths[number]
            shown = text if first == WHOLE else text[:first] + (OMISSION + text[-last:] if last else "")
            yield Shown(i, shown, choices)

    def _tokens_of(self, choices: list[str]) -> int:
        """What options take of a prompt: each once, with its letter, and one once more as the given answer."""
        tokens = [self.count(f" (a) {self.escape(option)}") for option in choices]
        return sum(tokens) + max(tokens, default=0)

    def count_cut(self, examples: ExampleTable) -> int:
        """How many of the examples were too long to be shown whole."""
        return int((self._shown_lengths(examples)[examples.numbers, 0] >= 0).sum())

    def _shown_lengths(self, examples: ExampleTable) -> np.ndarray:
        if examples.texts not in self._shown:
            self._shown[examples.texts] = np.full((len(examples.texts), 2), UNKNOWN, dtype=np.int32)
        return self._shown[examples.texts]

    def _cut(self, text: str, limit: int) -> tuple[int, int]:
        """How many of a text's first and of its last characters are shown, or WHOLE; at least a token."""
        limit = max(1, limit)
        head = len(self.fit(text, limit))
        if head == len(text):
            return WHOLE, WHOLE
        first_tokens = head_length(self.config.truncation, limit)
        if first_tokens == limit:
            return head, 0
        last_tokens = max(1, limit - first_tokens - self.count(OMISSION))
        return len(self.fit(text, first_tokens)), len(self.fit_end(text, last_tokens))

    def escape(self, text: str) -> str:
        """A text without special tokens: none ends the prompt or begins another speaker's turn."""
        text = _SPECIAL.sub("< |", text)
        for token in self._special_tokens:
            text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    @cached_property
    def _special_tokens(self) -> list[str]:
        return list(self.tokenizer.all_special_tokens) if self.tokenizer else []

    @property
    def writes_json(self) -> bool:
        """Whether written completions are JSON: the form that an endpoint without patterns can be held to."""
        api = self.config.api
        return api is not None and api.server == "openai" and self.config.strategy == "chain_of_thought"


def load_teacher(config: TeacherConfig) -> Teacher:
    """The teacher that a study configures.

    Raises:
        CotdError: there is no such model.
    """
    if config.api:
        tokenizer = load_tokenizer(config.api.tokenizer, None)[0] if config.api.tokenizer else None
        return Teacher(config.model, api_revision(config.revision, config.api), config, tokenizer)
    tokenizer, revision = load_tokenizer(config.model, config.revision)
    commit = None if Path(resolve_model(config.model)).is_dir() else revision
    if commit and has_card(config.model, commit):
        raise CotdError(
            f"teacher.model '{config.model}' is a student of cotd, which is asked in its own way. Set teacher.strategy: student."
        )
    if kwargs := config.engine.output_kwargs():
        revision += f", engine_kwargs {digest(kwargs)}"
    return Teacher(config.model, revision, config, tokenizer, commit)


def api_revision(revision: str | None, api: ApiConfig) -> str:
    """What an endpoint's completions depend on besides model and request: its weights, as far as named, and its settings."""
    settings = api.model_dump(include={"json_completions", "max_tokens_field", "extra_body"})
    return f"{revision or api.base_url} {api.endpoint}, settings {digest(settings)}"


def load_tokenizer(model: str, revision: str | None) -> tuple[Any, str]:
    """A model's tokenizer, and its revision."""
    from transformers import AutoTokenizer

    advice = " Check teacher.model and the network, or use embedded:smollm2-135m-instruct, which needs none."
    source = resolve_model(model)
    local = Path(source).is_dir()
    if assets.is_embedded(model):
        asset = assets.get_asset(model)
        revision = f"{asset.package.name} {asset.package.version}, conversion {asset.version}" if asset.package else "built"
    else:
        revision = model_digest(source) if local else hub_commit(source, revision, advice)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=None if local else revision, local_files_only=local)
    except (OSError, ValueError) as error:
        raise CotdError(f"cannot load the teacher '{model}': {first_line(error)}.{advice}") from error
    return tokenizer, revision
