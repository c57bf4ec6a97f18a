"""The API for tasks of every kind: many labels, options of each text, free answers; and MLflow's form of requests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cotd.students.student import Student
from tests.serve.http.conftest import Ask, error_of

pytestmark = pytest.mark.thorough
Make = Callable[..., Path]
TEXTS = ["Where is milk kept?", "How many legs has a spider, and how many wings?"]
CHOICES = [["a fridge", "a drawer"], ["eight", "six", "four legs and two wings"]]


@pytest.mark.parametrize("name", ["tickets", "intents"])
def test_many_labels(ask: Ask, student_of: Make, name: str) -> None:
    folder = student_of(name)
    rows = ask({"texts": TEXTS, "rationale": True}, student=str(folder)).json()["predictions"]
    student = Student.load(folder, "cpu")
    for row, expected, why in zip(rows, student.predict(TEXTS), student.explain(TEXTS), strict=True):
        assert list(row["probabilities"]) == list(student.task.labels)
        assert row["probabilities"] == pytest.approx(expected.probabilities, abs=1e-4)
        assert (row["label"], row["rationale"]) == (max(row["probabilities"], key=row["probabilities"].get), why)


def test_options_come_with_each_text(ask: Ask, student_of: Make) -> None:
    folder = str(student_of("quiz"))
    body = {"texts": TEXTS, "choices": CHOICES}
    response = ask({**body, "rationale": True}, student=folder)
    student = Student.load(folder, "cpu")
    expected = student.predict(TEXTS, choices=CHOICES)
    for row, options, prediction, why in zip(
        response.json()["predictions"], CHOICES, expected, student.explain(TEXTS, CHOICES), strict=True
    ):
        assert list(row["probabilities"]) == options
        assert row["probabilities"] == pytest.approx(prediction.probabilities, abs=1e-4)
        assert row["rationale"] == why
    lines = [json.loads(line) for line in ask({**body, "rationale": True, "stream": True}, student=folder).text.splitlines()]
    assert [p["probabilities"].keys() for p in lines[0]["predictions"]] == [p.probabilities.keys() for p in expected]
    assert {line["index"] for line in lines[1:]} <= {0, 1}


def test_free_answers_have_no_probabilities(ask: Ask, student_of: Make) -> None:
    folder = str(student_of("sums"))
    rows = ask({"texts": TEXTS}, student=folder).json()["predictions"]
    labels = [p.label for p in Student.load(folder, "cpu").predict(TEXTS)]
    assert rows == [{"label": label, "score": None, "probabilities": None, "truncated": False} for label in labels]


@pytest.mark.parametrize(
    ("name", "body", "code", "message"),
    [
        ("quiz", {"texts": TEXTS}, "choices_missing", "the task 'quiz' is multiple_choice: send `choices`, a list of options"),
        ("quiz", {"texts": TEXTS, "choices": CHOICES[:1]}, "invalid_request", "options of 1 texts, and there are 2"),
        ("quiz", {"texts": TEXTS, "choices": [["a", "b"], ["a"]]}, "invalid_request", "choices[1] has 1 options; allowed: 2 to 26"),
        ("quiz", {"texts": TEXTS, "choices": [["a", "b"], ["a", " "]]}, "invalid_request", "choices[1][1] is empty"),
        ("quiz", {"texts": TEXTS, "choices": [["a", "b"], ["a", "a"]]}, "invalid_request", "choices[1] has an option twice"),
        ("tickets", {"texts": TEXTS, "choices": CHOICES}, "choices_not_taken", "'tickets' is classification: its labels are fixed"),
        ("sums", {"texts": TEXTS, "choices": CHOICES}, "choices_not_taken", "the task 'sums' is numeric: its answers are free"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_the_task(ask: Ask, student_of: Make, name: str, body: Any, code: str, message: str) -> None:
    response = ask(body, student=str(student_of(name)))
    assert response.status_code == 422
    error = error_of(response)
    assert error["code"] == code
    assert message in error["message"]


def test_the_model_and_the_documentation_speak_of_the_task(ask: Ask, student_of: Make) -> None:
    folder = str(student_of("tickets"))
    task = ask(path="/v1/model", student=folder).json()["task"]
    assert (task["kind"], task["noun"], task["labels"]) == ("classification", "support ticket", ["refund", "bug", "question"])
    response = ask(path="/openapi.json", student=folder)
    assert "choices" not in response.json()["components"]["schemas"]["PredictRequest"]["properties"]
    assert "each a support ticket;" in response.text
    assert "one of refund, bug, question" in response.text
    for word in ("sentiment", "review", "positive"):
        assert word not in response.text.lower()
    schema = ask(path="/openapi.json", student=str(student_of("quiz"))).json()["components"]["schemas"]["PredictRequest"]
    assert "choices" in schema["required"]
    assert all(len(example["choices"]) == len(example["texts"]) for example in schema["examples"])


def forms(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows in every form of MLflow's model server."""
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    split = {"columns": list(columns), "data": [list(row.values()) for row in rows]}
    alone = [{"inputs": columns["text"]}, {"instances": columns["text"]}] if len(columns) == 1 else []
    return [
        {"dataframe_records": rows},
        {"dataframe_split": split},
        {"instances": rows},
        {"inputs": rows},
        {"inputs": columns},
        *alone,
    ]


@pytest.mark.parametrize("name", ["tickets", "quiz"])
def test_invocations_in_every_form(with_endpoint: Any, settings: Any, student_of: Make, name: str) -> None:
    folder = student_of(name)
    rows: list[dict[str, Any]] = [{"text": text} for text in TEXTS]
    if name == "quiz":
        rows = [{**row, "choices": options} for row, options in zip(rows, CHOICES, strict=True)]

    async def use(client: Any, _: Any) -> None:
        body = {"texts": TEXTS} | ({"choices": CHOICES} if name == "quiz" else {})
        expected = (await client.post("/v1/predict", json=body)).json()["predictions"]
        for form in forms(rows):
            response = await client.post("/invocations", json=form)
            assert response.status_code == 200, response.text
            labels = [(p["label"], p["truncated"], p["score"]) for p in response.json()["predictions"]]
            assert labels == [(p["label"], p["truncated"], pytest.approx(p["score"], abs=1e-5)) for p in expected]
        with_rationale = await client.post("/invocations", json={"dataframe_records": rows, "params": {"rationale": True}})
        assert all("rationale" in p for p in with_rationale.json()["predictions"])
        assert (await client.get("/ping")).json() == {"status": "ok"}

    with_endpoint(settings.model_copy(update={"student": str(folder)}), use)


def test_invocations_may_have_the_columns_of_the_study(ask: Ask, student_of: Make) -> None:
    folder = str(student_of("tickets", data={"source": "tickets.csv", "input": "{title}: {body}"}))
    rows = [{"title": "Broken", "body": "It does not start.", "id": 7}]
    whole = ask({"texts": ["Broken: It does not start."]}, student=folder).json()
    for records in (rows, [{"text": "Broken: It does not start."}]):
        assert ask({"dataframe_records": records}, path="/invocations", student=folder).json() == whole


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "send exactly one of inputs, instances, dataframe_split, dataframe_records"),
        ({"inputs": ["fine"], "instances": ["fine"]}, "send exactly one of"),
        ({"inputs": []}, "body.inputs.texts: List should have at least 1 item"),
        ({"inputs": ["fine", 7]}, "row 1: the text is a int, not a string"),
        ({"inputs": ["fine", " "]}, "row 1: empty text"),
        ({"inputs": [{"text": "fine"}, "dull"]}, "some rows are objects, and others are not"),
        ({"dataframe_records": [{"id": 1, "words": "fine"}]}, "no column text; it has id, words"),
        ({"dataframe_split": {"columns": ["text"]}}, "its rows cannot be read (KeyError: 'data')"),
        ({"dataframe_split": {"columns": ["text"], "data": [["a", "b"]]}}, "its rows cannot be read"),
        ({"inputs": {"text": [["a"], {"b": 1}]}}, "row 0: the text is a list, not a string"),
        ({"inputs": {"text": 5}}, "row 0: the text is a int"),
        ({"inputs": ["fine"] * 5}, "5 texts; the limit is 4"),
        ({"inputs": ["fine"], "params": {"temperature": 1}}, "Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_invocations_that_cannot_be_read(ask: Ask, body: Any, message: str) -> None:
    response = ask(body, path="/invocations", max_texts=4)
    assert response.status_code in (413, 422), response.text
    assert message in error_of(response)["message"]


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "text/csv"])
@pytest.mark.parametrize("path", ["/v1/predict", "/invocations"])
def test_a_body_that_does_not_say_that_it_is_json(with_endpoint: Any, settings: Any, path: str, kind: str | None) -> None:
    """As curl sends it without a header of the user's own."""

    async def use(client: Any, _: Any) -> None:
        headers = {"Content-Type": kind} if kind else {}
        answer = await client.post(path, content=b'{"texts": ["fine"]}', headers=headers)
        assert answer.status_code == 415
        assert "Send the header Content-Type: application/json." in error_of(answer)["message"]

    with_endpoint(settings, use)


def test_what_students_write_is_no_label_of_a_metric(with_endpoint: Any, settings: Any, student_of: Make) -> None:
    async def use(client: Any, _: Any) -> str:
        assert (await client.post("/v1/predict", json={"texts": TEXTS, "choices": CHOICES})).status_code == 200
        return (await client.get("/metrics")).text

    text = with_endpoint(settings.model_copy(update={"student": str(student_of("quiz"))}), use)
    counted = [line for line in text.splitlines() if line.startswith("cotd_predictions_total")]
    assert counted
    assert all('label="(' in line for line in counted)
    assert "fridge" not in text
