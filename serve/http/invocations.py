"""The forms in which MLflow's model server and SageMaker's clients send rows, read into requests of our own."""

from __future__ import annotations

from typing import Any

import pandas as pd
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from cotd.data.inputs import InputColumns
from serve.schemas import InvocationRequest, PredictRequest

FORMS = ("inputs", "instances", "dataframe_split", "dataframe_records")


def read_invocation(body: InvocationRequest, columns: InputColumns) -> PredictRequest:
    """The request to predict an invocation's rows.

    Args:
        columns: those of the texts; a single column, or rows that are texts, will do as well.

    Raises:
        RequestValidationError: the rows are not of a known form, a row has no usable text or options, or as for any request.
    """
    form = sent_form(body)
    frame = read_frame(form, getattr(body, form))
    names = [name for name, _ in columns.names]
    if len(names) == 1 and len(frame.columns) == 1:
        frame.columns = pd.Index(names)
    elif columns.template and set(frame.columns) == {"text"}:
        columns = InputColumns(choices=columns.choices)  # the text as the template would have made it
    if missing := [name for name, _ in columns.names if name not in frame]:
        raise invalid(form, f"no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns)) or 'none'}")
    texts, choices, problems = columns.read(frame)
    for row, problem in enumerate(problems):
        if problem:
            raise invalid(form, f"row {row}: {problem}")
    rationale = body.params is not None and body.params.rationale
    try:
        return PredictRequest(texts=texts, choices=choices, rationale=rationale)
    except ValidationError as error:
        raise RequestValidationError([{**e, "loc": ("body", form, *e["loc"])} for e in error.errors()]) from error


def sent_form(body: InvocationRequest) -> str:
    """The one form that the body has."""
    sent = [form for form in FORMS if getattr(body, form) is not None]
    if len(sent) != 1:
        raise invalid(*sent[:1], f"send exactly one of {', '.join(FORMS)}")
    return sent[0]


def read_frame(form: str, rows: Any) -> pd.DataFrame:
    """The rows as a frame; its columns are numbers if the rows are texts."""
    try:
        if form == "dataframe_split":
            return pd.DataFrame(rows["data"], columns=rows.get("columns"), dtype=object)
        if isinstance(rows, list) and any(isinstance(row, dict) for row in rows):
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("some rows are objects, and others are not")
            return pd.DataFrame(rows, dtype=object)
        return pd.DataFrame(
            {name: pd.Series(cells, dtype=object) for name, cells in rows.items()} if isinstance(rows, dict) else {0: rows}
        )
    except (KeyError, TypeError, ValueError) as error:
        raise invalid(form, f"its rows cannot be read ({type(error).__name__}: {str(error)[:100]})") from error


def invalid(*where_and_message: str) -> RequestValidationError:
    """A refusal with the form it concerns, if any, and what is wrong."""
    *where, message = where_and_message
    return RequestValidationError([{"loc": ("body", *where), "msg": message, "type": "value_error"}])
