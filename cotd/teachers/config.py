"""The `teacher` block of a study: who annotates, how, and at what cost."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cotd.config.model import Block
from cotd.data.truncation import Truncation
from cotd.teachers.api_config import ApiConfig
from cotd.teachers.engine_config import EngineConfig
from cotd.teachers.filters import filter_problems
from cotd.teachers.imported_config import AnswersConfig, teacher_problems, with_strategy


class CalibrationConfig(Block):
    """How a weak teacher's label scores become labels. No test row is ever used."""

    method: Literal["platt", "prior", "none"] = Field(
        "platt",
        description="platt: logistic regression on gold validation labels (Platt 1999); prior: shift the scores until "
        "the predicted prior is `prior` (batch calibration, Zhou et al. 2024), no gold needed; none: as they come",
    )
    rows: int = Field(300, ge=20, description="validation reviews to calibrate on")
    prior: float = Field(0.5, gt=0, lt=1, description="assumed share of the positive label, for method prior")


class BudgetConfig(Block):
    """What a run of `cotd annotate` may use. A local engine has no price, and may have a limit."""

    input_price: float | None = Field(None, ge=0, description="for a million prompt tokens, in whatever currency")
    output_price: float | None = Field(None, ge=0, description="for a million answer tokens")
    max_cost: float | None = Field(None, gt=0, description="stop before a run spends more")
    max_tokens: int | None = Field(None, ge=1, description="stop before a run uses more tokens, prompts and answers together")

    @model_validator(mode="after")
    def cost_needs_prices(self) -> BudgetConfig:
        if self.max_cost is not None and (self.input_price is None or self.output_price is None):
            raise ValueError("max_cost needs input_price and output_price, for a million tokens each")
        return self

    def cost(self, prompt_tokens: float, output_tokens: float) -> float | None:
        """What tokens cost, or None where prices are not configured."""
        if self.input_price is None or self.output_price is None:
            return None
        return (prompt_tokens * self.input_price + output_tokens * self.output_price) / 1e6


class TeacherConfig(Block):
    model: str = Field(
        "embedded:smollm2-135m-instruct",
        description="embedded:NAME, a local directory, or a hub id; with `api`, the model's name there; with `answers`, any name",
    )
    revision: str | None = Field(
        None,
        description="of a hub model: branch, tag or commit; with `api`: any word that names the weights, in place of the URL",
    )
    strategy: Literal["score_then_explain", "chain_of_thought", "read_answers"] = "score_then_explain"
    prompts: str | None = Field(None, description="a YAML of prompts; null: the task's own, by strategy")
    calibration: CalibrationConfig = CalibrationConfig()
    samples: int = Field(1, ge=1, le=64, description="rationales a review")
    temperature: float = Field(0.0, ge=0, le=2)
    max_rationale_tokens: int = Field(40, ge=4)
    max_review_tokens: int = Field(384, ge=16, description="longer reviews are cut before they are shown to the teacher")
    truncation: Truncation = Field(
        "head_tail",
        description="what it is shown of them: a quarter of those tokens from the beginning and the rest from the end, where a "
        "review comes to its verdict, or (head) the beginning alone",
    )
    gold_conditioned: bool = Field(True, description="also write a rationale given the gold label (cot_labelled, cot_joint)")
    held_out_rationales: bool = Field(
        False, description="also write own rationales of validation and test reviews: rationale_input reads them"
    )
    seed: int = 0
    filters: list[str | dict[str, dict[str, Any]]] = Field(
        ["agrees_with_majority"],
        description="names of cotd/teachers/filters.py, in order, with settings where wanted: [length: {max_words: 60}]",
    )
    engine: EngineConfig = EngineConfig()
    api: ApiConfig | None = Field(None, description="an OpenAI-compatible endpoint in place of an engine here")
    answers: AnswersConfig | None = Field(None, description="a file of what a model wrote already, in place of asking one")
    budget: BudgetConfig = BudgetConfig()
    store: str | None = Field(
        None, description="folder of the answers, or any fsspec URL; studies may share one; null: STORAGE/completions"
    )

    @field_validator("filters")
    @classmethod
    def known_filters(cls, filters: list[str | dict[str, dict[str, Any]]]) -> list[str | dict[str, dict[str, Any]]]:
        if wrong := filter_problems(filters):
            raise ValueError("; ".join(wrong))
        return filters

    @model_validator(mode="before")
    @classmethod
    def resolve_strategy(cls, plain: Any) -> Any:
        return with_strategy(plain)

    @model_validator(mode="after")
    def asked_or_read(self) -> TeacherConfig:
        if problems := teacher_problems(self):
            raise ValueError("; ".join(problems))
        return self

    @model_validator(mode="after")
    def scores_need_completions(self) -> TeacherConfig:
        if self.api and self.strategy == "score_then_explain" and self.api.endpoint == "chat":
            raise ValueError(
                "strategy score_then_explain needs the log-probabilities of the label words, which api.endpoint chat does not "
                "give. Set strategy: chain_of_thought, or api.endpoint: completions where the server has it"
            )
        return self

    def decisive(self) -> dict[str, Any]:
        """What decides the training reviews' annotations: not where and how fast the engine runs, nor costs, nor the store."""
        plain = self.model_dump(exclude={"engine", "budget", "store", "api", "answers", "held_out_rationales"})
        if self.truncation == "head" or self.answers:
            del plain["truncation"]  # as it was before there was a choice: those annotations are found
        if self.answers:
            plain["answers"] = self.answers.columns.model_dump()
        elif self.api:
            plain["api"] = self.api.model_dump(
                include={"base_url", "server", "endpoint", "json_answers", "top_logprobs", "extra_body", "tokenizer"}
            )
        elif kwargs := self.engine.deciding_kwargs():
            plain["engine_kwargs"] = kwargs
        return plain

    @model_validator(mode="after")
    def samples_need_temperature(self) -> TeacherConfig:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError("samples > 1 needs temperature > 0: greedy samples are all the same. Set temperature: 0.7")
        return self

    @model_validator(mode="after")
    def review_fits_the_context(self) -> TeacherConfig:
        if self.api is None and self.max_review_tokens + self.max_rationale_tokens >= self.engine.max_model_len:
            raise ValueError(
                f"max_review_tokens ({self.max_review_tokens}) and max_rationale_tokens ({self.max_rationale_tokens}) leave the "
                f"prompt no room in engine.max_model_len ({self.engine.max_model_len}); raise the last or lower the others"
            )
        return self
