"""The Annotation table: what a teacher says of each review. It is a view of the completion store."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cotd.data.spill import SortedRows
from cotd.utils.text import sentence_ends

ANNOTATION_COLUMNS = [
    "review_id", "sample", "label", "label_probability", "rationale", "rationale_logprob", "finish_reason",
    "gold_conditioned", "teacher", "revision", "prompt_hash", "prompt_tokens", "output_tokens", "error",
]  # fmt: skip
# Teacher, revision and prompts are part of it too; in one table they do not vary.
KEY = ["review_id", "gold_conditioned", "sample"]
SCHEMA = pa.schema(
    {name: pa.string() for name in ANNOTATION_COLUMNS}
    | dict.fromkeys(("sample", "prompt_tokens", "output_tokens"), pa.int64())
    | dict.fromkeys(("label_probability", "rationale_logprob"), pa.float64())
    | {"gold_conditioned": pa.bool_()}
)


def tidy_rationale(text: str, finish_reason: str) -> tuple[str, str | None]:
    """The rationale as one line of whole sentences, and why it must be quarantined, or None.

    An answer that ran into the token limit loses its unfinished last sentence; if it has no other, it is quarantined.
    """
    rationale = " ".join(text.split())
    if finish_reason == "length":
        ends = sentence_ends(rationale)
        if not ends:
            return rationale, "rationale cut off by the token limit"
        rationale = rationale[: ends[-1]]
    if len(rationale.split()) < 3:
        return rationale, "rationale is empty or shorter than three words"
    return rationale, None


def annotation_row(
    review_id: str,
    sample: int,
    gold_conditioned: bool,
    label: str | None,
    label_probability: float | None,
    rationale: str | None,
    completion: dict[str, Any] | None,
    origin: Mapping[str, str | None],
    extra_prompt_tokens: int = 0,
    error: str | None = None,
) -> dict[str, Any]:
    """One row of the Annotation table.

    Args:
        rationale: None where the teacher gives labels alone; in the table that is "".
        completion: what the teacher answered, or None where it did not (then `error` says so).
        origin: teacher, revision and prompt_hash, which is None of answers whose prompt is not known.
        extra_prompt_tokens: of the label-scoring request, where that was a separate one.
    """
    nothing: dict[str, Any] = {"finish_reason": None, "logprob": None, "prompt_tokens": 0, "output_tokens": 0}
    answered = nothing if completion is None or completion.get("error") else completion
    if error is None and (completion is None or completion.get("error")):
        error = completion["error"] if completion else "the teacher gave no answer"
    if error is None and rationale is not None:
        rationale, error = tidy_rationale(rationale, answered["finish_reason"])
    return {
        "review_id": review_id, "sample": sample, "label": label, "label_probability": label_probability,
        "rationale": rationale or "", "rationale_logprob": answered["logprob"], "finish_reason": answered["finish_reason"],
        "gold_conditioned": gold_conditioned, **origin,
        "prompt_tokens": answered["prompt_tokens"] + extra_prompt_tokens, "output_tokens": answered["output_tokens"],
        "error": error,
    }  # fmt: skip


class AnnotationRows(SortedRows):
    """Annotation rows on their way to a table, sorted by KEY without repeats of it: see `SortedRows`."""

    def __init__(
        self,
        expected: int = 0,
        spill_dir: Path | None = None,
        finish: Callable[[pd.DataFrame], pd.DataFrame] = lambda block: block,
    ):
        super().__init__(SCHEMA, KEY, expected, spill_dir, finish)


class AnnotationsDigest:
    """Content digest of what students learn from: ids, labels, rationales and quarantine; whole reviews at a time."""

    def __init__(self) -> None:
        self._content = hashlib.sha256()
        self._begun = False

    def add(self, annotations: pd.DataFrame) -> None:
        """Takes the rows of some reviews, whose ids come after those before."""
        for _, lines in itertools.groupby(digest_lines(annotations), key=lambda line: line.partition("\t")[0]):
            self._content.update(("\n" * self._begun + "\n".join(sorted(lines))).encode())
            self._begun = True

    def __str__(self) -> str:
        return self._content.hexdigest()[:16]


def annotations_digest(table: pd.DataFrame) -> str:
    """The digest of a whole Annotation table, in whatever order."""
    digest = AnnotationsDigest()
    digest.add(table)
    return str(digest)


def digest_lines(table: pd.DataFrame) -> Iterator[str]:
    """A line a row, in the order of the reviews' ids: whole columns of Python strings would take a gigabyte for a million rows."""
    columns = ["review_id", "gold_conditioned", "sample", "label", "rationale", "error"]
    order = pc.sort_indices(pa.array(table["review_id"])).to_numpy()  # stable
    for start in range(0, len(table), 4096):
        block = [table[c].iloc[order[start : start + 4096]] for c in columns]
        cells = (c.astype(object).where(c.notna(), "").tolist() for c in block)
        yield from ("\t".join(map(str, row)) for row in zip(*cells, strict=True))
