"""The page of test examples: which come first, what is said of them, and that no text of theirs is markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipelines.report.examples import MOST_ROWS, Witness, contested_rows, examples_page, students, teacher
from tests.pipelines.report.studies import Make, content
from tests.tasks import QUIZ, SENTIMENT

EVIL = "</script><img src=x onerror=\"document.title = 'broken'\"> It is <b>fine</b>."
TESTED = pd.DataFrame(
    {"id": ["a", "b", "c"], "text": ["Lovely.", "Dire.", EVIL], "label": ["positive", "negative", "positive"]}
)


def witness(name: str, answers: list[str | None], reasons: dict[str, str] | None = None) -> Witness:
    return Witness(name, {i: (label, 0.9) for i, label in zip("abc", answers, strict=False)}, reasons or {})


def rows_of(page: str) -> dict[str, Any]:
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


def test_what_is_disputed_comes_first_and_then_what_all_get_wrong() -> None:
    heard = [witness("one", ["positive", "positive", "negative"]), witness("two", ["positive", "positive", None])]
    rows = contested_rows(SENTIMENT, TESTED, heard)
    assert [(row["id"], row["differ"], row["wrong"], row["asked"]) for row in rows] == [
        ("c", 1, 2, 2), ("b", 0, 2, 2), ("a", 0, 0, 2),
    ]  # fmt: skip
    assert [answer["label"] for answer in rows[0]["answers"]] == ["negative", None], "no answer is an answer, too"


def test_where_students_have_written_reasons_only_examples_with_one_are_shown() -> None:
    heard = [witness("teacher", ["positive"]), witness("tiny", ["positive", "negative"], {"b": "It says dire."})]
    (row,) = contested_rows(SENTIMENT, TESTED, heard)
    assert row["answers"] == [None, {"label": "negative", "score": 0.9, "why": "It says dire."}]
    assert row["asked"] == 1, "the teacher was not asked about it"


def test_a_page_shows_so_many_rows_with_their_options() -> None:
    many = pd.DataFrame(
        {"id": [f"r{i}" for i in range(300)], "text": "Which?", "label": "sky", "choices": [["sky", "sea"]] * 300}
    )
    heard = [Witness("one", dict.fromkeys(many["id"][:299], ("sky", None)), {})]
    shown = rows_of(examples_page("quiz", QUIZ, many, heard))
    assert (len(shown["rows"]), shown["total"]) == (MOST_ROWS, 299)
    assert shown["rows"][0]["text"] == QUIZ.render("Which?", ["sky", "sea"])


def test_students_are_those_of_most_data_and_best_by_validation_beside_their_teacher(study: Make) -> None:
    made = study().finish_all()
    plan, whole = made.plan(), content(made)
    for trial in whole["trials"]:
        trial["validation_accuracy"] = 0.9 if trial["seed"] == 1 else 0.5
    asked: list[str] = []

    def files(trial_id: str) -> tuple[Path, Path]:
        asked.append(trial_id)
        return plan.folder_of(trial_id).predictions, plan.folder_of(trial_id).rationales

    best = {t["trial_id"] for t in whole["trials"] if (t["seed"], t["fraction"]) == (1, 1.0)}
    pd.DataFrame({"example_id": ["r000", "r001"], "rationale": ["It is warm.", ""]}).to_parquet(
        plan.folder_of(sorted(best)[0]).rationales
    )
    heard = students(whole, files)
    assert [w.name for w in heard] == ["finetune, tiny", "distill, tiny"]
    assert set(asked) == best
    assert sorted(len(w.reasons) for w in heard) == [0, 1], "an empty reason is none"
    assert set(heard[0].answers) == set(made.ids)
    assert [w.name for w in teacher("gpt", plan.teacher_test, None)] == ["teacher (gpt)"]
    assert teacher("gpt", None, None) == []


@pytest.mark.integration
def test_texts_are_shown_as_text_and_searched(browser: Any, tmp_path: Path) -> None:
    heard = [witness("one", ["positive", "positive", "positive"]), witness("two", ["negative", "positive", "positive"])]
    path = tmp_path / "examples.html"
    path.write_text(examples_page("mine", SENTIMENT, TESTED, heard), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.title() == "Examples of mine"
    assert page.locator("article .text").all_inner_texts() == ["Lovely.", "Dire.", EVIL]
    page.get_by_role("button", name="disagreements").click()
    assert page.locator("article .text").all_inner_texts() == ["Lovely."]
    page.get_by_role("button", name="all wrong").click()
    assert page.locator("article .text").all_inner_texts() == ["Dire."]
    page.get_by_role("button", name="all", exact=True).click()
    page.get_by_role("searchbox").fill("<B>fine")
    assert page.locator("article .text").all_inner_texts() == [EVIL]
    page.close()
