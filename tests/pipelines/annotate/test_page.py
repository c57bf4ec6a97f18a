"""The page of annotations, also in headless Chromium."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cotd.study.config import load_config
from pipelines.annotate.files import AnnotationFiles
from pipelines.annotate.page import DoubtfulRows, annotations_page
from pipelines.annotate.run import annotate
from tests.tasks import SENTIMENT

EVIL = "</script><script>document.title = 'broken'</script><img src=x onerror=\"document.title = 'broken'\"> A positive film"


def shown() -> tuple[pd.DataFrame, int]:
    """(annotations to show, how many there are) of 60 right ones, one wrong, one doubtful, one quarantined."""
    texts = [f"film number {i}" for i in range(60)] + [EVIL, "So-so.", "Meh."]
    examples = pd.DataFrame({"id": [f"r{i}" for i in range(63)], "text": texts, "label": "positive", "split": "train"})
    annotations = pd.DataFrame(
        {
            "example_id": examples["id"], "sample": 0, "label": "positive", "label_probability": 0.9,
            "rationale": "The reviewer is positively charmed.", "gold_conditioned": False, "error": None,
        }
    )  # fmt: skip
    annotations.loc[60, "label"] = "negative"
    annotations.loc[61, "label_probability"] = 0.55
    annotations["error"] = annotations["error"].astype(object)
    annotations.loc[62, "error"] = "rationale is empty or shorter than three words"
    rows, gold = DoubtfulRows(), examples.set_index("id")["label"]
    for start in (0, 20, 40, 60):
        rows.add(annotations[start : start + 20], gold)
    first = rows.rows()
    return first.assign(text=first["example_id"].map(examples.set_index("id")["text"])), rows.total


@pytest.mark.integration
def test_the_page_is_filtered_and_searched(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.annotate.page.MOST_ROWS", 62)
    points = [{"confidence": 0.9, "accuracy": 0.95, "rows": 61}]
    (tmp_path / "page.html").write_text(annotations_page("mine", *shown(), SENTIMENT, ["a line"], points), encoding="utf-8")
    page = browser.new_page()
    failures: list[str] = []
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.goto((tmp_path / "page.html").as_uri())
    assert page.title() == "Annotations of mine"
    assert page.locator("#count").inner_text() == "50 of 62"
    assert page.locator(".figures").inner_text().split("\n")[:2] == [
        "a line", "on this page: 62 of 63 annotations, the doubtful ones"
    ]  # fmt: skip
    assert page.locator("svg circle").count() == 1
    page.get_by_role("button", name="more").click()
    assert page.locator("article").count() == 62
    for name, found in (("wrong", EVIL), ("low confidence", "So-so."), ("quarantined", "Meh.")):
        page.get_by_role("button", name=name).click()
        assert page.locator("article").count() == 1
        assert page.locator("article div").first.inner_text() == found
    page.get_by_role("button", name="all").click()
    page.get_by_role("searchbox").fill("FILM</b>")
    assert page.locator("article").count() == 0
    page.get_by_role("searchbox").fill("a POSITIVE film")
    assert page.locator("article mark").all_inner_texts() == ["positive", "positive"], "in the text and in the rationale"
    assert page.title() == "Annotations of mine"
    assert not failures


def test_of_many_annotations_the_doubtful_are_on_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.annotate.page.MOST_ROWS", 3)
    page = annotations_page("mine", *shown(), SENTIMENT, [], None)
    assert '"total": 63' in page
    assert [f'"id": "r{i}"' in page for i in (60, 61, 62, 0, 59)] == [True, True, True, False, False]


def test_the_page_shows_the_doubtful_first_and_cannot_be_broken(
    write_study: Callable[..., Path], example_rows: pd.DataFrame, teacher_double: Any
) -> None:
    evil = "</script><script>alert(1)</script> <!-- A warm film"
    rows = pd.DataFrame([(evil, "negative", "train")], columns=["text", "label", "split"])
    teacher_double.fails = lambda prompt: prompt.endswith("Reason:") and "number 3." in prompt
    config = load_config(write_study(pd.concat([example_rows, rows]), teacher={"calibration": {"rows": 24}}))
    annotate(config, teacher_double.complete)
    page = AnnotationFiles.of(config).page.read_text(encoding="utf-8")
    before, _, after = page.partition('<script type="application/json" id="data">')
    data = json.loads(after.partition("</script>")[0])
    assert "alert(1)" not in before + after.partition("</script>")[2]
    assert len(data["rows"]) == 25 + 25
    assert [bool(r["error"]) for r in data["rows"][:3]] == [True, True, False]
    doubtful = data["rows"][2]
    assert (doubtful["label"], doubtful["gold"], doubtful["text"]) == ("positive", "negative", evil)
    assert data["reliability"]
    assert "http" not in page, "self-contained"
