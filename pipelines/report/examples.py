"""A self-contained HTML page of test examples: what each student and the teacher answer, and why; where they disagree, first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.tasks.base import Task
from cotd.utils.text import format_percent
from pipelines.report.formatting import variant_of
from pipelines.report.results import Content, Group

MOST_ROWS = 200


@dataclass(frozen=True)
class Witness:
    """A student or a teacher, and what it says of test examples.

    Attributes:
        answers: example id → (the answer, its probability), of those that it was asked about; each None if it is not known.
        reasons: example id → its rationale, of those that it explains.
    """

    name: str
    answers: dict[str, tuple[str | None, float | None]]
    reasons: dict[str, str]


def students(content: Content, files: Callable[[str], tuple[Path, Path]]) -> list[Witness]:
    """Of each size, method and setting the seed that is best by validation, at the largest fraction.

    Args:
        files: trial id → its predictions, and its rationales if it wrote any.
    """
    largest: dict[tuple[str, str], Group] = {}
    for group in sorted(content["groups"], key=lambda g: g["fraction"]):
        largest[group["size"], variant_of(group)] = group
    fractions = {group["fraction"] for group in largest.values()}
    found = []
    for group in (g for g in content["groups"] if g in largest.values()):
        trial = max((content["trials"][i] for i in group["trials"]), key=lambda t: t["validation_accuracy"])
        predictions, rationales = files(trial["trial_id"])
        name = f"{variant_of(group)}, {group['size']}"
        name += f", {format_percent(group['fraction'])}" if len(fractions) > 1 else ""
        found.append(Witness(name, read_answers(predictions), read_reasons(rationales)))
    return found


def teacher(name: str, labels: Path | None, rationales: Path | None) -> list[Witness]:
    """The teacher, if its own labels of the test examples are known.

    Args:
        labels: its `teacher_test` file. rationales: its rationales of held-out examples.
    """
    if labels is None or not labels.is_file():
        return []
    return [Witness(f"teacher ({name})", read_answers(labels), read_reasons(rationales))]


def read_answers(path: Path) -> dict[str, tuple[str | None, float | None]]:
    """`Witness.answers` of a table of predictions, or of a teacher's labels."""
    table = pd.read_parquet(path).rename(columns={"label_probability": "score"})
    rows = table.reindex(columns=["predicted", "score"]).astype(object)
    rows = rows.where(rows.notna(), None)
    return dict(zip(table["example_id"], zip(rows["predicted"], rows["score"], strict=True), strict=True))


def read_reasons(path: Path | None) -> dict[str, str]:
    """Example id → rationale, of a file that may not be there; without empty ones."""
    if path is None or not path.is_file():
        return {}
    table = pd.read_parquet(path, columns=["example_id", "rationale"])
    return {i: why for i, why in zip(table["example_id"], table["rationale"], strict=True) if why}


def examples_page(study: str, task: Task, tested: pd.DataFrame, witnesses: Sequence[Witness]) -> str:
    """The page.

    Args:
        tested: examples with gold labels, as rows of the example table; those that nobody was asked about are left out.
    """
    asked = set().union(*(witness.answers for witness in witnesses))
    tested = tested[tested["id"].isin(asked)]
    rows = contested_rows(task, tested, witnesses)
    content = {
        "study": study, "total": len(tested), "names": [w.name for w in witnesses], "rows": rows[:MOST_ROWS],
    }  # fmt: skip
    # "<" is written as an escape: no text can end the script element that it is in.
    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    template = Path(__file__).with_name("examples.html").read_text(encoding="utf-8")
    return template.replace("/*DATA*/", data)


def contested_rows(task: Task, tested: pd.DataFrame, witnesses: Sequence[Witness]) -> list[dict[str, Any]]:
    """The examples with all answers, those first on which the answers differ most; of equals, those that more get wrong.

    Where students have written reasons, of those examples alone.
    """
    explained = set().union(*(w.reasons for w in witnesses)) & set(tested["id"])
    choices = tested["choices"] if "choices" in tested else [None] * len(tested)
    rows = []
    for example_id, text, own, gold in zip(tested["id"], tested["text"], choices, tested["label"], strict=True):
        if explained and example_id not in explained:
            continue
        answers = [answer_of(witness, example_id) for witness in witnesses]
        known = [answer["label"] for answer in answers if answer]
        most = max(Counter(known).values(), default=0)
        rows.append(
            {
                "id": example_id, "text": task.render(text, None if own is None else list(own)), "gold": gold, "answers": answers,
                "differ": len(known) - most, "wrong": sum(label != gold for label in known), "asked": len(known),
            }
        )  # fmt: skip
    return sorted(rows, key=lambda row: (-row["differ"], -row["wrong"]))


def answer_of(witness: Witness, example_id: str) -> dict[str, Any] | None:
    """What a witness says of an example: `label`, `score`, `why`; None if it was not asked."""
    if example_id not in witness.answers:
        return None
    label, score = witness.answers[example_id]
    return {"label": label, "score": score and round(score, 3), "why": witness.reasons.get(example_id)}
