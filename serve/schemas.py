"""The wire format: requests and responses as pydantic models, shared by the client, the HTTP API and the endpoint."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, StrictBool, WithJsonSchema, field_validator, model_validator

MAX_TEXTS = 256  # texts a request that any endpoint takes by default
MAX_FIELDS = 10
MAX_CHOICES = 26  # options a text: they are named by letters
# A character that is not blank, in every dialect of regular expressions: they differ in what \s matches.
NOT_BLANK = re.compile(r"[^\s\u001c-\u001f\u0085\ufeff]")
SURROGATE = re.compile("[\ud800-\udfff]")

TEXT_SCHEMA = {"type": "string", "minLength": 1, "pattern": NOT_BLANK.pattern}
TEXTS_SCHEMA = {"anyOf": [{"type": "array", "items": TEXT_SCHEMA, "minItems": 1}, TEXT_SCHEMA]}
CHOICES_SCHEMA = {
    "type": "array",
    "items": {"type": "array", "items": TEXT_SCHEMA, "minItems": 2, "maxItems": MAX_CHOICES, "uniqueItems": True},
    "minItems": 1,
}


class Body(BaseModel):
    """The body of a request."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def limit_fields(cls, body: object) -> object:
        """Refuses many unknown fields at once: each would be an error of its own."""
        if isinstance(body, dict) and len(body) > MAX_FIELDS:
            raise ValueError(f"{len(body):,} fields; allowed: {', '.join(cls.model_fields)}")
        return body


class PredictRequest(Body):
    """One or many texts to predict."""

    # Stops at the first invalid text: a body of a million numbers would be a million errors.
    texts: Annotated[list[str], FailFast(), WithJsonSchema(TEXTS_SCHEMA, mode="validation")] = Field(
        min_length=1, description="what to predict; a single string counts as a list of one"
    )
    choices: Annotated[list[list[str]] | None, FailFast(), WithJsonSchema(CHOICES_SCHEMA, mode="validation")] = Field(
        None, description="for multiple choice: the options of each text, in the order of the texts"
    )
    rationale: StrictBool = Field(False, description="also return the student's own rationale; slower, as it is generated")
    stream: StrictBool = Field(
        False, description="respond with a JSON object a line: the predictions, then rationales in pieces"
    )

    @field_validator("texts", mode="before")
    @classmethod
    def wrap_single_text(cls, value: object) -> object:
        """Takes a string for a list of one."""
        return [value] if isinstance(value, str) else value

    @field_validator("texts")
    @classmethod
    def require_readable_texts(cls, texts: list[str]) -> list[str]:
        """Refuses what no student can read."""
        require_readable(texts, "texts")
        return texts

    @field_validator("choices")
    @classmethod
    def require_readable_choices(cls, choices: list[list[str]] | None) -> list[list[str]] | None:
        """Refuses what no student can read or choose from."""
        for i, options in enumerate(choices or []):
            if not 2 <= len(options) <= MAX_CHOICES:
                raise ValueError(f"choices[{i}] has {len(options)} options; allowed: 2 to {MAX_CHOICES}")
            require_readable(options, f"choices[{i}]")
            if len(set(options)) < len(options):
                raise ValueError(f"choices[{i}] has an option twice")
        return choices

    @model_validator(mode="after")
    def choices_of_each_text(self) -> PredictRequest:
        """Refuses options of more or fewer texts than there are."""
        if self.choices is not None and len(self.choices) != len(self.texts):
            raise ValueError(
                f"choices has options of {len(self.choices)} texts, and there are {len(self.texts)}. Send one list a text"
            )
        return self


def require_readable(texts: list[str], where: str) -> None:
    """Raises ValueError for blank texts and lone surrogates, which JSON can write but no UTF-8, and so no tokenizer, can hold."""
    for i, text in enumerate(texts):
        if not NOT_BLANK.search(text):
            raise ValueError(f"{where}[{i}] is empty")
        if not text.isascii() and SURROGATE.search(text):
            raise ValueError(f"{where}[{i}] contains half of a surrogate pair, which is not a character")


class InvocationParams(Body):
    """Parameters of an invocation."""

    rationale: StrictBool = Field(False, description="as in a request to /v1/predict")


class InvocationRequest(Body):
    """Rows to predict, in one of the forms of MLflow's model server: give exactly one of the first four fields.

    A row is a text, or an object with the columns of a text: `text` (or those of the student's input template), and for
    multiple choice `choices`.
    """

    inputs: list[Any] | dict[str, Any] | None = Field(None, description="a list of rows, or an object of columns")
    instances: list[Any] | None = Field(None, description="a list of rows")
    dataframe_split: dict[str, Any] | None = Field(None, description="an object with `columns` and `data`, and perhaps `index`")
    dataframe_records: list[Any] | None = Field(None, description="a list of objects")
    params: InvocationParams | None = None


class ModelName(BaseModel):
    """The student that made the predictions."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str


class TextPrediction(BaseModel):
    """The prediction for one text."""

    label: str | None = Field(description="the answer; null if the student wrote none that could be read")
    score: float | None = Field(description="probability of the label; null for free answers")
    probabilities: dict[str, float] | None = Field(description="option → probability; null for free answers")
    truncated: bool = Field(description="the text was too long for the student: part of it was not read")
    answered_by: Literal["student", "escalated"] | None = Field(
        None, description="in a cascade: the student, or the larger one that texts are handed on to if the student is not sure"
    )  # unset unless there is a cascade
    unread: bool = Field(False, description="the text has characters that the student cannot read")  # unset unless it has
    rationale: str | None = None  # unset unless it was asked for


class PredictResponse(BaseModel):
    """Predictions, in the order of the texts."""

    model: ModelName
    predictions: list[TextPrediction]


class RationalePiece(BaseModel):
    """A line of a streamed response, after the first, which is a `PredictResponse`."""

    index: int = Field(description="position of the explained text")
    rationale: str = Field(description="the next piece")


class Example(BaseModel):
    """A text, with its options if the task is multiple choice."""

    text: str
    choices: list[str] | None = None


class TaskResponse(BaseModel):
    """What the student does."""

    name: str
    kind: str = Field(description="classification, multiple_choice or numeric")
    noun: str = Field(description="what a text is called, such as question or support ticket")
    instruction: str = Field(description="what is asked about a text")
    label_name: str = Field(description="what an answer is called")
    labels: list[str] = Field(description="the labels in the order of all probabilities; empty unless they are fixed")
    needs_choices: bool = Field(description="whether each text comes with `choices`")
    examples: list[Example] = Field(description="texts to try")


class Escalation(ModelName):
    """The larger student of a cascade."""

    threshold: float = Field(description="texts are handed on to it if the student's answer has a lower score; above 1: all")
    runtime: str = Field(description="what computes its answer")
    card: dict[str, Any] = Field(description="its cotd.json")


class ModelResponse(ModelName):
    """The student that is served."""

    task: TaskResponse
    can_explain: bool = Field(description="whether it, or the larger student of a cascade, writes rationales")

    runtime: str = Field(description="what computes the label")
    loaded_at: str = Field(description="when it was loaded, ISO 8601 in UTC")
    limits: dict[str, int]
    card: dict[str, Any] = Field(description="the student's cotd.json: method, data, teacher, metrics")
    escalation: Escalation | None = Field(None, description="who answers what the student is not sure of; null: nobody")
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

    error: Problem
