"""The Annotation table: the teacher's labels and rationales of each example."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa

from cotd.teachers.filters import label_stands
from cotd.utils.text import count_words, sentence_ends

ANNOTATION_COLUMNS = [
    "example_id", "sample", "label", "label_probability", "probabilities", "rationale", "rationale_logprob", "finish_reason",
    "gold_conditioned", "teacher", "revision", "prompt_hash", "prompt_tokens", "output_tokens", "error",
]  # fmt: skip
KEY = ["example_id", "gold_conditioned", "sample"]  # teacher, revision and prompts are the same throughout a table
DIGESTED = [*KEY, "label", "probabilities", "rationale", "error"]
LABELS_DIGITS = 8  # of the 16 of a digest
SCHEMA = pa.schema(
    {name: pa.string() for name in ANNOTATION_COLUMNS}
    | dict.fromkeys(("sample", "prompt_tokens", "output_tokens"), pa.int64())
    | dict.fromkeys(("label_probability", "rationale_logprob"), pa.float64())
    | {"gold_conditioned": pa.bool_(), "probabilities": pa.list_(pa.float64())}
)


def tidy_rationale(text: str, finish_reason: str) -> tuple[str, str | None]:
    """The rationale as one line of whole sentences, and why it must be quarantined, or None.

    A completion that reached the token limit loses its unfinished last sentence; if it has no other, it is quarantined.
    """
    rationale = " ".join(text.split())
    if finish_reason == "length":
        ends = sentence_ends(rationale)
        if not ends:
            return rationale, "rationale cut off by the token limit"
        rationale = rationale[: ends[-1]]
    if count_words(rationale) < 3:
        return rationale, "rationale is empty or shorter than three words"
    return rationale, None


def annotation_row(
    example_id: str,
    sample: int,
    gold_conditioned: bool,
    label: str | None,
    label_probability: float | None,
    rationale: str | None,
    completion: Mapping[str, Any] | None,
    origin: Mapping[str, str | None],
    extra_prompt_tokens: int = 0,
    error: str | None = None,
    probabilities: Sequence[float] | None = None,
) -> dict[str, Any]:
    """One row of the Annotation table.

    Args:
        rationale: None if the teacher gives labels alone; in the table that is "".
        completion: what the teacher wrote, or None.
        origin: teacher, revision and prompt_hash (None for an imported annotation, whose prompt is not known).
        extra_prompt_tokens: of the label-scoring request, if that was a separate one.
        error: why the row is quarantined; else that follows from completion and rationale.
        probabilities: of all options of the example, in their order; None if the teacher does not give them.
    """
    if completion is None:
        completion = {"error": "the teacher gave no completion"}
    if completion.get("error"):
        error = error or completion["error"]
        completion = {"finish_reason": None, "logprob": None, "prompt_tokens": 0, "output_tokens": 0}
    if error is None and rationale is not None:
        rationale, error = tidy_rationale(rationale, completion["finish_reason"])
    return {
        "example_id": example_id, "sample": sample, "label": label, "label_probability": label_probability,
        "probabilities": probabilities,
        "rationale": rationale or "", "rationale_logprob": completion["logprob"], "finish_reason": completion["finish_reason"],
        "gold_conditioned": gold_conditioned, **origin,
        "prompt_tokens": completion["prompt_tokens"] + extra_prompt_tokens, "output_tokens": completion["output_tokens"],
        "error": error,
    }  # fmt: skip


class AnnotationsDigest:
    """Content digest of what students learn from: ids, labels, rationales and quarantine.

    Its first half is of the teacher's labels alone, see `labels_digest`.
    """

    def __init__(self) -> None:
        self._labels, self._content = hashlib.sha256(), hashlib.sha256()

    def add(self, annotations: pd.DataFrame) -> None:
        """Adds the next rows of a table that is sorted by KEY."""
        for start in range(0, len(annotations), 4096):  # a million rows of Python strings would take a gigabyte
            block = annotations[DIGESTED].iloc[start : start + 4096].astype(object)
            labels = label_stands(block["error"])
            for row, label in zip(block.where(block.notna(), None).itertuples(index=False), labels.tolist(), strict=True):
                self._content.update(json_line([row.error is None, label, *row[:-1]]))
                if label and not row.gold_conditioned:
                    self._labels.update(json_line([row.example_id, row.sample, row.label, row.probabilities]))

    def __str__(self) -> str:
        return self._labels.hexdigest()[:LABELS_DIGITS] + self._content.hexdigest()[: 16 - LABELS_DIGITS]


def json_line(cells: list[Any]) -> bytes:
    """Cells as bytes that differ if any cell does."""
    return json.dumps(cells, default=lambda array: array.tolist()).encode() + b"\n"


def annotations_digest(table: pd.DataFrame) -> str:
    """The digest of a whole Annotation table, in any order."""
    digest = AnnotationsDigest()
    digest.add(table.sort_values(KEY))
    return str(digest)


def labels_digest(annotations_digest: str) -> str:
    """What a method that learns no rationales is identified by: new rationales do not train it again."""
    return annotations_digest[:LABELS_DIGITS]
