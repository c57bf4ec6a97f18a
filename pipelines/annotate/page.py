"""A self-contained HTML page to read a study's annotations: filtered, searched, with labels highlighted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.tasks.base import Task

# A page of more rows takes a browser long to open.
MOST_ROWS = 5000


class DoubtfulRows:
    """The annotations that a page shows: of more than MOST_ROWS the quarantined, wrong and least certain ones, those first.

    Attributes:
        total: the number of annotations added.
    """

    def __init__(self) -> None:
        self.total = 0
        self._blocks: list[pd.DataFrame] = []

    def add(self, annotations: pd.DataFrame, gold: pd.Series) -> None:
        """Adds annotations; `gold` holds example id → gold label, of those that have one."""
        block = annotations.assign(
            label_gold=annotations["example_id"].map(gold).astype(object), number=range(len(annotations))
        )
        block["number"] += self.total
        wrong = block["label_gold"].notna() & block["label"].notna() & (block["label_gold"] != block["label"])
        concern = block["error"].notna() * 4.0 + wrong * 2.0 - block["label_probability"].fillna(1.0)
        self._blocks.append(first_rows(block.assign(concern=concern)))
        self.total += len(block)
        if sum(map(len, self._blocks)) > 2 * MOST_ROWS:
            self._blocks = [self.rows()]

    def rows(self) -> pd.DataFrame:
        """The annotations, with their gold label in a column `label_gold`."""
        return first_rows(pd.concat(self._blocks))


def first_rows(block: pd.DataFrame) -> pd.DataFrame:
    return block.sort_values(["concern", "number"], ascending=False).head(MOST_ROWS)


def annotations_page(
    study: str, annotations: pd.DataFrame, total: int, task: Task, lines: list[str], reliability: list[Any] | None
) -> str:
    """The page.

    Args:
        annotations: those to show, with the example's text and options in a column `text` and its gold label in `label_gold`.
        total: the number of all annotations. lines: the summary. reliability: see `cotd.teachers.quality.label_quality`.
    """
    columns = {
        "id": "example_id", "text": "text", "label": "label", "gold": "label_gold", "probability": "label_probability",
        "rationale": "rationale", "sample": "sample", "given": "gold_conditioned", "error": "error",
    }  # fmt: skip
    plain = annotations[list(columns.values())].set_axis(list(columns), axis=1).astype(object)
    plain = plain.where(plain.notna(), None)
    plain["rationale"] = [r or "" for r in plain["rationale"]]
    content = {
        "study": study, "rows": plain.to_dict("records"), "lines": lines, "reliability": reliability, "total": total,
        "words": sorted({*task.labels, *map(task.verbalize, task.labels)}),
    }  # fmt: skip
    # "<" is written as an escape: no text can end the script element that it is in.
    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    return template.replace("/*DATA*/", data)
