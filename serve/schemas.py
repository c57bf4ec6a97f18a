"""The wire format: requests and responses as pydantic models, shared by the client, the HTTP API and the endpoint."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, StrictBool, WithJsonSchema, field_validator, model_validator

MAX_TEXTS = 256  # texts a request that any endpoint takes by default
MAX_FIELDS = 10
# A character that is not blank, in every dialect of regular expressions: they differ in what \s matches.
NOT_BLANK = re.compile(r"[^\s\u001c-\u001f\u0085\ufeff]")
SURROGATE = re.compile("[\ud800-\udfff]")

TEXT_SCHEMA = {"type": "string", "minLength": 1, "pattern": NOT_BLANK.pattern}
TEXTS_SCHEMA = {"anyOf": [{"type": "array", "items": TEXT_SCHEMA, "minItems": 1}, TEXT_SCHEMA]}

# Shown in the documentation.
REQUEST_EXAMPLES: list[Any] = [
    {"texts": ["A warm and funny film."]},
    {"texts": ["A warm and funny film.", "Dull and lifeless."], "rationale": True},
]
POSITIVE = {"label": "positive", "score": 0.93, "probabilities": {"negative": 0.07, "positive": 0.93}, "truncated": False}
RESPONSE_EXAMPLE: Any = {"model": {"name": "cotd-student", "version": "3"}, "predictions": [POSITIVE]}
TOO_MANY = "300 texts; the limit is 256 a request. Send several requests."
REQUEST_ID = "8f14e45fceea167a5a36dedd4bea2543"
ERROR_EXAMPLE: Any = {"error": {"code": "too_many_texts", "message": TOO_MANY, "request_id": REQUEST_ID, "details": []}}


class PredictRequest(BaseModel):
    """One or many examples to classify."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": REQUEST_EXAMPLES})

    # Stops at the first invalid text: a body of a million numbers would be a million errors.
    texts: Annotated[list[str], FailFast(), WithJsonSchema(TEXTS_SCHEMA, mode="validation")] = Field(
        min_length=1, description="examples; a single string counts as a list of one"
    )
    rationale: StrictBool = Field(False, description="also return the student's own rationale; slower, as it is generated")
    stream: StrictBool = Field(
        False, description="respond with a JSON object a line: the predictions, then rationales in pieces"
    )

    @model_validator(mode="before")
    @classmethod
    def limit_fields(cls, body: object) -> object:
        """Refuses many unknown fields at once: each would be an error of its own."""
        if isinstance(body, dict) and len(body) > MAX_FIELDS:
            raise ValueError(f"{len(body):,} fields; allowed: {', '.join(cls.model_fields)}")
        return body

    @field_validator("texts", mode="before")
    @classmethod
    def wrap_single_text(cls, value: object) -> object:
        """Takes a string for a list of one."""
        return [value] if isinstance(value, str) else value

    @field_validator("texts")
    @classmethod
    def require_readable(cls, texts: list[str]) -> list[str]:
        """Refuses blank texts and lone surrogates, which JSON can write but no UTF-8, and so no tokenizer, can hold."""
        for i, text in enumerate(texts):
            if not NOT_BLANK.search(text):
                raise ValueError(f"texts[{i}] is empty")
            if not text.isascii() and SURROGATE.search(text):
                raise ValueError(f"texts[{i}] contains half of a surrogate pair, which is not a character")
        return texts


class ModelName(BaseModel):
    """The student that made the predictions."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str


class TextPrediction(BaseModel):
    """The prediction for one text."""

    label: str
    score: float = Field(description="probability of the label")
    probabilities: dict[str, float]
    truncated: bool = Field(description="the text was too long for the student: part of it was not read")
    rationale: str | None = None


class PredictResponse(BaseModel):
    """Predictions, in the order of the texts."""

    model_config = ConfigDict(json_schema_extra={"examples": [RESPONSE_EXAMPLE]})

    model: ModelName
    predictions: list[TextPrediction]


class RationalePiece(BaseModel):
    """A line of a streamed response, after the first, which is a `PredictResponse`."""

    index: int = Field(description="position of the explained text")
    rationale: str = Field(description="the next piece")


class ModelResponse(ModelName):
    """The student that is served."""

    runtime: str = Field(description="what computes the label")
    loaded_at: str = Field(description="when it was loaded, ISO 8601 in UTC")
    limits: dict[str, int]
    card: dict[str, Any] = Field(description="the student's cotd.json: method, data, teacher, metrics")
    licences: dict[str, str] = Field(description="source → licence of the data and models that the student comes from")


class Status(BaseModel):
    """Health or readiness."""

    status: str


class Detail(BaseModel):
    """One invalid field of a request."""

    field: str = Field(description="where in the request")
    message: str


class Problem(BaseModel):
    """What went wrong."""

    code: str = Field(description="for programs; one of a fixed set")
    message: str = Field(description="for people: what is wrong, and what to do")
    request_id: str = Field(description="also in the header X-Request-ID and in the endpoint's log")
    details: list[Detail] = []


class ErrorResponse(BaseModel):
    """The body of every response other than 2xx."""

    model_config = ConfigDict(json_schema_extra={"examples": [ERROR_EXAMPLE]})

    error: Problem
