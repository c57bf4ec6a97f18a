"""One self-contained HTML page to read a study's annotations: filtered, searched, with the label words highlighted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from cotd.task import Task

# A page of more rows takes a browser long to open.
MOST_ROWS = 5000


def annotations_page(
    study: str, annotations: pd.DataFrame, reviews: pd.DataFrame, task: Task, lines: list[str], reliability: list[Any] | None
) -> str:
    """The page. Of more than MOST_ROWS annotations it has the quarantined, wrong and least certain ones first.

    Args:
        reviews: the Review table. lines: the summary. reliability: see `cotd.quality.label_quality`.
    """
    gold = annotations["review_id"].map(reviews.set_index("id")["label"])
    wrong = gold.notna() & annotations["label"].notna() & (gold != annotations["label"])
    concern = annotations["error"].notna() * 4.0 + wrong * 2.0 - annotations["label_probability"].fillna(1.0)
    found = annotations.iloc[concern.to_numpy().argsort(kind="stable")[::-1][:MOST_ROWS]]
    found = found.merge(reviews[["id", "text", "label"]], left_on="review_id", right_on="id", suffixes=("", "_gold"))
    columns = {
        "id": "review_id", "text": "text", "label": "label", "gold": "label_gold", "probability": "label_probability",
        "rationale": "rationale", "sample": "sample", "given": "gold_conditioned", "error": "error",
    }  # fmt: skip
    plain = found[list(columns.values())].set_axis(list(columns), axis=1).astype(object)
    plain = plain.where(plain.notna(), None)
    plain["rationale"] = [r or "" for r in plain["rationale"]]
    content = {
        "study": study, "rows": plain.to_dict("records"), "lines": lines, "reliability": reliability,
        "total": len(annotations),
        "words": sorted({*task.labels, *task.words.values()}),
    }  # fmt: skip
    # "<" is written as an escape: no text can end the script element that it lies in.
    data = json.dumps(content, ensure_ascii=False).replace("<", "\\u003c")
    template = Path(__file__).with_name("annotations.html").read_text(encoding="utf-8")
    return template.replace("/*DATA*/", data)
