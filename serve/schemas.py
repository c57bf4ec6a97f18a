"""What goes over the wire."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, FailFast, Field, StrictBool, WithJsonSchema, field_validator, model_validator

# What a client may take for granted of an endpoint that it knows nothing of.
MAX_TEXTS = 256
MOST_FIELDS = 10
# A character that is not blank, in every dialect of regular expressions: they differ in what \s has beside spaces.
NOT_BLANK = re.compile(r"[^\s\u001c-\u001f\u0085\ufeff]")
SURROGATE = re.compile("[\ud800-\udfff]")

TEXT_SCHEMA = {"type": "string", "minLength": 1, "pattern": NOT_BLANK.pattern}
TEXTS_SCHEMA = {"anyOf": [{"type": "array", "items": TEXT_SCHEMA, "minItems": 1}, TEXT_SCHEMA]}


class PredictRequest(BaseModel):
    """One or many reviews to classify."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"texts": ["A warm and funny film."]},
                {"texts": ["A warm and funny film.", "Dull and lifeless."], "rationale": True},
            ]
        },
    )

    # Fails at the first that is wrong: a body of a million numbers would be a million errors.
    texts: Annotated[list[str], FailFast(), WithJsonSchema(TEXTS_SCHEMA, mode="validation")] = Field(
        min_length=1, description="reviews; a single string counts as a list of one"
    )
    rationale: StrictBool = Field(False, description="also return the student's own explanation; slower, as it is generated")
    stream: StrictBool = Field(
        False,
        description="answer with one JSON object a line: the predictions at once, then pieces of each rationale as written",
    )

    @model_validator(mode="before")
    @classmethod
    def few_fields(cls, body: object) -> object:
        """Else each field that is too many is an error of its own."""
        if isinstance(body, dict) and len(body) > MOST_FIELDS:
            raise ValueError(f"{len(body):,} fields; it takes {', '.join(cls.model_fields)}")
        return body

    @field_validator("texts", mode="before")
    @classmethod
    def one_is_a_list_of_one(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("texts")
    @classmethod
    def readable(cls, texts: list[str]) -> list[str]:
        for i, text in enumerate(texts):
            if not NOT_BLANK.search(text):
                raise ValueError(f"texts[{i}] is empty")
            if not text.isascii() and SURROGATE.search(text):  # JSON can write what no UTF-8 can, and no tokenizer takes
                raise ValueError(f"texts[{i}] holds half of a surrogate pair, which is no character")
        return texts


class ModelName(BaseModel):
    """Which student answered."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str


class TextPrediction(BaseModel):
    label: str
    score: float = Field(description="probability of the label")
    probabilities: dict[str, float]
    truncated: bool = Field(description="the text was longer than the student reads; part of it was not seen")
    rationale: str | None = None


class PredictResponse(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": {"name": "cotd-student", "version": "3"},
                    "predictions": [
                        {
                            "label": "positive",
                            "score": 0.93,
                            "probabilities": {"negative": 0.07, "positive": 0.93},
                            "truncated": False,
                        }
                    ],
                }
            ]
        }
    )

    model: ModelName
    predictions: list[TextPrediction]


class RationalePiece(BaseModel):
    """A line of a streamed answer, after the first, which is a `PredictResponse`."""

    index: int = Field(description="of the text that is explained")
    rationale: str = Field(description="the next piece")


class ModelResponse(ModelName):
    """What is served."""

    runtime: str = Field(description="what computes the label")
    loaded_at: str = Field(description="since when, ISO 8601 in UTC")
    limits: dict[str, int]
    card: dict[str, Any] = Field(description="the student's cotd.json: method, data, teacher, metrics")
    licences: dict[str, str] = Field(description="of the embedded data and models that the student comes from")


class Status(BaseModel):
    status: str


class Detail(BaseModel):
    field: str = Field(description="where in the request")
    message: str


class Problem(BaseModel):
    code: str = Field(description="for programs; one of a fixed set")
    message: str = Field(description="for people: what is wrong, and what to do")
    request_id: str = Field(description="also in the header X-Request-ID and in the endpoint's log")
    details: list[Detail] = []


class ErrorResponse(BaseModel):
    """What every answer other than 2xx holds."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "code": "too_many_texts",
                        "message": "300 texts; the limit is 256 a request. Send several requests.",
                        "request_id": "8f14e45fceea167a5a36dedd4bea2543",
                        "details": [],
                    }
                }
            ]
        }
    )

    error: Problem
