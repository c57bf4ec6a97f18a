"""The `teacher` block of a study: who annotates, how, and at what cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from cotd.config.model import ConfigModel
from cotd.data.truncation import Truncation
from cotd.teachers.api_config import ApiConfig
from cotd.teachers.filters import filter_problems
from cotd.teachers.imported_config import ImportedConfig

if TYPE_CHECKING:
    pass


# The strategy of a teacher that is asked nothing; it need not be written.
READ_ANSWERS = "read_answers"

# Arguments of vLLM's that say how fast it answers and with how much memory, not what: all others are part of an answer's
# identity.
PERFORMANCE_ARGS = {
    "block_size", "compilation_config", "cpu_offload_gb", "data_parallel_size", "disable_custom_all_reduce",
    "disable_log_stats", "distributed_executor_backend", "download_dir", "enable_chunked_prefill",
    "enable_prefix_caching", "enforce_eager", "gpu_memory_utilization", "kv_cache_memory_bytes", "max_model_len",
    "max_num_batched_tokens", "max_num_seqs", "max_parallel_loading_workers", "num_gpu_blocks_override",
    "pipeline_parallel_size", "seed", "swap_space", "tensor_parallel_size",
}  # fmt: skip


class EngineConfig(ConfigModel):
    """The vLLM engine inside Ray Data."""

    backend: Literal["auto", "ray_data_llm", "in_process"] = Field(
        "auto", description="auto: ray_data_llm on GPUs, in_process on CPUs, where it starts three times faster"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on GPUs and on processors that multiply it in hardware, else float32"
    )
    max_model_len: int = Field(1024, ge=64)
    batch_size: int = Field(
        256, ge=1, description="rows a block sent to the engine; the default is as many as vLLM works at together on a CPU"
    )
    replicas: int = Field(1, ge=1)
    tensor_parallel: int = Field(1, ge=1)
    kv_cache_gb: int = Field(2, ge=1, description="CPU only: memory for the key-value cache")
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="passed to vLLM as they are; part of the answers' identity, but for those that only make it faster",
    )

    def output_kwargs(self) -> dict[str, Any]:
        """Those engine_kwargs that may change answers: quantization, say, or an adapter."""
        return {k: v for k, v in self.engine_kwargs.items() if k not in PERFORMANCE_ARGS}


class CalibrationConfig(ConfigModel):
    """How a weak teacher's label scores become labels. No test row is ever used."""

    method: Literal["platt", "prior", "none"] = Field(
        "platt",
        description="platt: logistic regression on gold validation labels (Platt 1999); prior: shift the scores until "
        "the predicted prior is `prior` (batch calibration, Zhou et al. 2024), no gold needed; none: as they come",
    )
    rows: int = Field(300, ge=20, description="validation reviews to calibrate on")
    prior: float = Field(0.5, gt=0, lt=1, description="assumed share of the positive label, for method prior")


class BudgetConfig(ConfigModel):
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


class TeacherConfig(ConfigModel):
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
    answers: ImportedConfig | None = Field(None, description="a file of what a model wrote already, in place of asking one")
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

    def identity(self) -> dict[str, Any]:
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
        elif kwargs := self.engine.output_kwargs():
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


def with_strategy(plain: Any) -> Any:
    """A plain `teacher` block, with the strategy that follows from its `answers`."""
    if not isinstance(plain, dict) or plain.get("answers") is None:
        return plain
    return {"strategy": READ_ANSWERS} | plain


def teacher_problems(teacher: TeacherConfig) -> list[str]:
    """What of a teacher's settings does not go with its answers' being read, or not."""
    if teacher.answers is None:
        return ["strategy read_answers needs `answers`, with the file's columns"] if teacher.strategy == READ_ANSWERS else []
    problems = []
    if teacher.strategy != READ_ANSWERS:
        problems.append(f"`answers` are read and nobody is asked: leave out strategy {teacher.strategy}, or the answers")
    if teacher.api:
        problems.append("`answers` are read and nobody is asked: leave out api, or the answers")
    if "model" not in teacher.model_fields_set:
        problems.append("model is missing: name who wrote the answers, as in model: gpt-3.5-turbo; reports call the teacher so")
    if teacher.samples != 1:
        problems.append("samples is for teachers that are asked: of answers that are read, each row of a review is a sample")
    return problems
