"""What goes over the wire."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator

MAX_TEXTS = 256
MAX_CHARACTERS = 20_000


class PredictRequest(BaseModel):
    """One or many reviews to classify."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"texts": ["A warm and funny film."], "rationale": False}]}
    )

    texts: list[str] = Field(min_length=1, max_length=MAX_TEXTS, description="reviews; a single string counts as a list of one")
    rationale: bool = Field(False, description="also return the student's own explanation; slower, as it is generated")

    @field_validator("texts", mode="before")
    @classmethod
    def one_is_a_list_of_one(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("texts")
    @classmethod
    def readable(cls, texts: list[str]) -> list[str]:
        for i, text in enumerate(texts):
            if not text.strip():
                raise ValueError(f"texts[{i}] is empty")
            if len(text) > MAX_CHARACTERS:
                raise ValueError(f"texts[{i}] has {len(text):,} characters; the limit is {MAX_CHARACTERS:,}")
        return texts


class ModelName(BaseModel):
    name: str
    version: str


class TextPrediction(BaseModel):
    label: str
    score: float = Field(description="probability of the label")
    probabilities: dict[str, float]
    truncated: bool = Field(description="the text was longer than the student reads; its end was not seen")
    rationale: str | None = None


class PredictResponse(BaseModel):
    model: ModelName
    predictions: list[TextPrediction]
