"""The OpenAPI document of an endpoint, in the words of its student's task."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from cotd.tasks.base import Task
from cotd.tasks.samples import Sample, sample_examples
from serve.schemas import CHOICES_SCHEMA, MAX_TEXTS

REQUEST_ID = "8f14e45fceea167a5a36dedd4bea2543"
TOO_MANY = f"300 texts; the limit is {MAX_TEXTS} a request. Send several requests."
ERROR = {"error": {"code": "too_many_texts", "message": TOO_MANY, "request_id": REQUEST_ID, "details": []}}


def describe(task: Task) -> str:
    """What an endpoint does, in a sentence or two."""
    asked = f" {task.instruction}" if task.instruction else ""
    return (
        f"Answers of the task '{task.name}' for each {task.noun}, from a student distilled from a large language model.{asked}"
    )


def make_document(api: FastAPI, task: Task) -> dict[str, Any]:
    """The document, with examples of the task, and `choices` as the task needs or lacks them."""
    document = get_openapi(title=api.title, version=api.version, description=describe(task), routes=api.routes)
    schemas = document["components"]["schemas"]
    request, prediction = schemas["PredictRequest"], schemas["TextPrediction"]
    request["properties"]["texts"]["description"] = f"each a {task.noun}; a single string counts as a list of one"
    if task.needs_choices:
        request["required"] = [*request["required"], "choices"]
        request["properties"]["choices"] = {**CHOICES_SCHEMA, "description": request["properties"]["choices"]["description"]}
    else:
        del request["properties"]["choices"]
    prediction["properties"]["label"]["description"] = f"the {task.label_name.lower()}: {task.expected()}"
    samples = sample_examples(task)
    request["examples"] = [request_body(samples[:1]), request_body(samples[:2]) | {"rationale": True}]
    schemas["InvocationRequest"]["examples"] = [{"dataframe_records": [row(sample) for sample in samples[:2]]}]
    model = {"name": "cotd-student", "version": "3"}
    schemas["PredictResponse"]["examples"] = [{"model": model, "predictions": [example_prediction(task, samples[0])]}]
    schemas["ErrorResponse"]["examples"] = [ERROR]
    return document


def request_body(samples: tuple[Sample, ...]) -> dict[str, Any]:
    """The body of a request for some examples."""
    body: dict[str, Any] = {"texts": [sample.text for sample in samples]}
    return body if samples[0].choices is None else body | {"choices": [list(sample.choices or ()) for sample in samples]}


def row(sample: Sample) -> dict[str, Any]:
    """An example as a row of an invocation."""
    return {"text": sample.text} | ({} if sample.choices is None else {"choices": list(sample.choices)})


def example_prediction(task: Task, sample: Sample) -> dict[str, Any]:
    """What a prediction looks like."""
    options = task.options(sample.choices)
    if options is None:
        return {"label": "7", "score": None, "probabilities": None, "truncated": False}
    likeliest = task.positive_label or options[0]
    rest = 0.07 / (len(options) - 1)
    probabilities = {option: 0.93 if option == likeliest else round(rest, 4) for option in options}
    return {"label": likeliest, "score": 0.93, "probabilities": probabilities, "truncated": False}
