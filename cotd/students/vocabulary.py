"""What a student's tokenizer has no tokens for: it reads nothing of such characters, and cannot write such labels."""

from __future__ import annotations

import itertools
import unicodedata
from collections.abc import Sequence
from typing import Any

from cotd.tasks.base import Task
from cotd.utils.text import format_percent

SHOWN = 8  # characters
# What reads and writes all scripts, for messages.
MULTILINGUAL = "google/mt5-small or Qwen/Qwen2.5-0.5B"


def unknown_characters(tokenizer: Any, texts: Sequence[str]) -> list[str]:
    """The characters of each text that its tokens do not stand for, without space; all "" if there is no unknown token."""
    unknown = tokenizer.unk_token_id
    if unknown is None or not len(texts):
        return [""] * len(texts)
    encoded = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
    if not tokenizer.is_fast:  # it does not say where tokens come from
        return ["?" * ids.count(unknown) for ids in encoded["input_ids"]]
    return [
        "".join("".join(text[start:end] for i, (start, end) in zip(ids, spans, strict=True) if i == unknown).split())
        for text, ids, spans in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def known_characters(tokenizer: Any) -> frozenset[str] | None:
    """The characters of a tokenizer's tokens; None if it has tokens for all, as those of bytes have."""
    words = tokenizer.get_vocab()
    characters = frozenset(itertools.chain.from_iterable(words))
    bytewise = "<0x0A>" in words or {"Ġ", "Ċ"} <= characters  # how tokenizers of bytes write a space and the end of a line
    return None if bytewise or tokenizer.unk_token_id is None else characters


def surely_unread(text: str, known: frozenset[str] | None) -> bool:
    """Whether a text has a character beyond ASCII that is in no token, in any Unicode form. Needs no tokenizer."""
    if known is None or text.isascii():
        return False
    return any(
        not (
            char.isascii() or char.isspace() or char in known or known.intersection(unicodedata.normalize("NFKD", char.lower()))
        )
        for char in unicodedata.normalize("NFKC", text)
        if unicodedata.category(char)[0] in "LNS"
    )


def unread_warning(tokenizer: Any, texts: Sequence[str], reader: str = "the student", tolerated: float = 0.0) -> str | None:
    """A warning of texts that a student cannot read whole, or None.

    Args:
        tolerated: the share of all characters that may be unknown.
    """
    unknown = unknown_characters(tokenizer, texts)
    total = sum(len("".join(text.split())) for text in texts)
    missing = "".join(unknown)
    if len(missing) <= tolerated * total:
        return None
    distinct = list(dict.fromkeys(missing))
    shown = " ".join(distinct[:SHOWN]) + (" …" if len(distinct) > SHOWN else "")
    return (
        f"{sum(map(bool, unknown)):,} of {len(texts):,} texts have characters that {reader} cannot read ({shown}): "
        f"{format_percent(len(missing) / total)} of all characters are not in its vocabulary, and count as one unknown token. "
        f"For such texts use a student with a larger vocabulary, such as {MULTILINGUAL}."
    )


def unwritable_labels(tokenizer: Any, task: Task, reader: str) -> str | None:
    """Why a student cannot tell a task's labels apart as it writes them, or None."""
    written = [task.verbalize(label) for label in task.labels]
    bad = [word for word, unknown in zip(written, unknown_characters(tokenizer, written), strict=True) if unknown]
    if not bad:
        return None
    return (
        f"{reader} cannot write {', '.join(map(repr, bad))}: its vocabulary lacks some of the characters. Set task.verbalizers to "
        f"words that it has, or use a student with a larger vocabulary, such as {MULTILINGUAL}."
    )
