"""The `teacher` block of a study: who annotates, how, and at what cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cotd.config.model import ConfigModel
from cotd.data.config import DataConfig, Share
from cotd.data.files import ENDINGS, names_files
from cotd.data.truncation import Truncation
from cotd.students.base_models import CARD
from cotd.teachers.api_config import ApiConfig
from cotd.teachers.filters import Filters
from cotd.utils.urls import without_credentials

# Arguments of vLLM that change how fast it runs and with how much memory. All others are part of a completion's identity.
PERFORMANCE_ARGS = {
    "block_size", "compilation_config", "cpu_offload_gb", "disable_custom_all_reduce", "disable_log_stats",
    "distributed_executor_backend", "download_dir", "enable_chunked_prefill",
    "enable_prefix_caching", "enforce_eager", "gpu_memory_utilization", "kv_cache_memory_bytes", "max_model_len",
    "max_num_batched_tokens", "max_num_seqs", "max_parallel_loading_workers", "num_gpu_blocks_override",
    "seed", "swap_space",
}  # fmt: skip
# Arguments of vLLM that have a key of their own here.
PARALLELISM = {
    "tensor_parallel_size": "tensor_parallel", "pipeline_parallel_size": "pipeline_parallel", "data_parallel_size": "replicas",
}  # fmt: skip
STAGE = "stage:"  # before the name of an earlier stage of the same file, whose best student is the teacher
# The keys of `api` that decide what is written.
API_IDENTITY = {"base_url", "server", "endpoint", "json_completions", "top_logprobs", "extra_body", "tokenizer"}


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
        256, ge=1, description="rows a block sent to the engine; vLLM on a CPU works on as many as the default at a time"
    )
    chat: Literal["auto", "never"] = Field(
        "auto", description="auto: chain_of_thought asks in the model's chat template, if it has one; never: as plain text"
    )
    replicas: int = Field(1, ge=1, description="engines, each with the whole model")
    tensor_parallel: int = Field(1, ge=1, description="GPUs that share each layer of a model")
    pipeline_parallel: int = Field(1, ge=1, description="groups of so many GPUs, each with a part of the layers")
    kv_cache_gb: int = Field(2, ge=1, description="CPU only: memory for the key-value cache")
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict,
        description="passed to vLLM as they are; part of the completions' identity, except those that only affect speed",
    )

    @field_validator("engine_kwargs")
    @classmethod
    def parallelism_by_name(cls, engine_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Ray reserves what these keys say, and would not know of vLLM's own."""
        if wrong := {f"{key}: use engine.{PARALLELISM[key]}" for key in engine_kwargs if key in PARALLELISM}:
            raise ValueError(f"cannot set {'; '.join(sorted(wrong))}")
        return engine_kwargs

    @property
    def shards(self) -> int:
        """The GPUs, or processes, that an engine's model is split over."""
        return self.tensor_parallel * self.pipeline_parallel

    def output_kwargs(self) -> dict[str, Any]:
        """Those engine_kwargs that may change completions: quantization, say, or an adapter."""
        return {k: v for k, v in self.engine_kwargs.items() if k not in PERFORMANCE_ARGS}


class CalibrationConfig(ConfigModel):
    """How a weak teacher's label scores become labels. No test row is ever used."""

    method: Literal["platt", "prior", "none"] = Field(
        "platt",
        description="platt: logistic regression on gold validation labels (Platt 1999), with a bias for each label or position; "
        "prior: biases that give the labels the shares of `prior`, no gold needed; none: scores as they are",
    )
    rows: int = Field(300, ge=20, description="validation examples to calibrate on")
    prior: Share | dict[str, Share] | None = Field(
        None,
        description="for method prior, the assumed share of the positive label, or label → share; null: all shares are equal",
    )


class BudgetConfig(ConfigModel):
    """What a run of `cotd annotate` may use. A local engine has no price, but may have a limit."""

    input_price: float | None = Field(None, ge=0, description="of a million prompt tokens, in any currency")
    output_price: float | None = Field(None, ge=0, description="of a million output tokens")
    max_cost: float | None = Field(None, gt=0, description="stop before a run spends more")
    max_tokens: int | None = Field(None, ge=1, description="stop before a run uses more tokens, prompt and output together")

    @model_validator(mode="after")
    def cost_needs_prices(self) -> BudgetConfig:
        if self.max_cost is not None and (self.input_price is None or self.output_price is None):
            raise ValueError("max_cost needs input_price and output_price, of a million tokens each")
        return self

    def cost(self, prompt_tokens: float, output_tokens: float) -> float | None:
        """What tokens cost, or None without prices."""
        if self.input_price is None or self.output_price is None:
            return None
        return (prompt_tokens * self.input_price + output_tokens * self.output_price) / 1e6


class ImportedColumns(ConfigModel):
    """Which columns of an imported file hold what."""

    text: str | None = Field(
        None, description="the text, by which rows and examples are joined; null: as data.input or data.columns.text"
    )
    choices: str | None = Field(None, description="each row's options, for multiple choice; null: as data.columns.choices")
    label: str | None = Field(None, description="the label that the model gave without knowing the gold label")
    rationale: str | None = Field(
        None, description="the rationale written with that label; null: none, and students learn from labels alone"
    )
    gold_rationale: str | None = Field(
        None,
        description="the rationale written given the gold label (cot_labelled, cot_joint). May be the same column as "
        "`rationale`: then rows whose label is the gold label count",
    )
    label_probability: str | None = Field(None, description="the probability of the label, from 0 to 1")

    @model_validator(mode="after")
    def consistent(self) -> ImportedColumns:
        if self.label is None and self.gold_rationale is None:
            raise ValueError("nothing to learn from: name the column of label (and of rationale, if any), or of gold_rationale")
        for name in ("rationale", "label_probability"):
            if getattr(self, name) and self.label is None:
                raise ValueError(f"{name} belongs to a label: name the column of label, too")
        return self


class ImportedConfig(ConfigModel):
    """A file of labels and rationales that a model wrote: a row for an example; several rows of one example are its samples."""

    source: str | None = Field(
        None, description="a file, folder, pattern or URL, as data.source may be; null: the file that data.source names"
    )
    columns: ImportedColumns

    @field_validator("source")
    @classmethod
    def known_type(cls, source: str | None) -> str | None:
        if source is not None and not names_files(source):
            raise ValueError(f"not a file that ends in {ENDINGS}, or a folder, pattern or URL of such files")
        return source

    def files(self, data: DataConfig) -> list[str]:
        """The files to read: its own, or those of the examples."""
        if self.source:
            return [self.source]
        files = [data.source] if isinstance(data.source, str) else list(data.source.values())
        return [file for file in files if names_files(file)]


class TeacherConfig(ConfigModel):
    """A teacher: a model in an engine here, an endpoint (`api`), or a file of what a model wrote (`imported`)."""

    model: str = Field(
        "embedded:smollm2-135m-instruct",
        description="embedded:NAME, a local directory, or a hub id; a trained student by its folder, models:/NAME@ALIAS, hub id (with "
        "strategy: student) or stage:NAME; with `api`, the model's name there; with `imported`, any name",
    )
    revision: str | None = Field(
        None,
        description="of a hub model: branch, tag or commit; with `api`: any word that names the weights, in place of the URL",
    )
    strategy: Literal["score_then_explain", "chain_of_thought", "student", "imported"] = Field(
        "score_then_explain",
        description="student: that of every student of cotd, and imported: that of every teacher with an `imported` file; neither "
        "need be written, but for a student on a hub",
    )
    prompts: str | None = Field(None, description="a YAML of prompts; null: the task's own, by strategy")
    calibration: CalibrationConfig = CalibrationConfig()
    samples: int = Field(1, ge=1, le=64, description="rationales an example")
    temperature: float = Field(0.0, ge=0, le=2)
    max_rationale_tokens: int = Field(40, ge=4)
    max_text_tokens: int = Field(384, ge=16, description="longer examples are cut before they are shown to the teacher")
    truncation: Truncation = Field(
        "head_tail",
        description="which part of a longer example is shown: head, its beginning; head_tail, a quarter of the tokens from the "
        "beginning and the rest from the end, where an example comes to its verdict",
    )
    rationales: bool = Field(True, description="false: labels alone, which is all that distill and distill_soft learn")
    gold_conditioned: bool = Field(True, description="also write a rationale given the gold label (cot_labelled, cot_joint)")
    held_out_rationales: bool = Field(
        False, description="also write own rationales of validation and test examples: rationale_input reads them"
    )
    seed: int = 0
    filters: Filters = Field(
        ["agrees_with_majority"],
        description="names of cotd/teachers/filters.py, in order, with settings if any: [length: {max_words: 60}]",
    )
    engine: EngineConfig = EngineConfig()
    api: ApiConfig | None = Field(None, description="an OpenAI-compatible endpoint in place of an engine here")
    imported: ImportedConfig | None = Field(
        None, description="a file of what a model wrote, in place of asking one; `answers` is another name for it"
    )
    budget: BudgetConfig = BudgetConfig()
    store: str | None = Field(
        None, description="folder of the completions, or any fsspec URL; studies may share one; null: STORAGE/completions"
    )

    @field_validator("store")
    @classmethod
    def store_without_credentials(cls, store: str | None) -> str | None:
        return without_credentials(store)

    @model_validator(mode="before")
    @classmethod
    def default_strategy(cls, plain: Any) -> Any:
        if not isinstance(plain, dict):
            return plain
        if "answers" in plain and "imported" not in plain:
            plain = {"imported" if key == "answers" else key: value for key, value in plain.items()}
        if plain.get("imported") is not None:
            return {"strategy": "imported"} | plain
        if plain.get("api") is None and names_student(plain.get("model")):
            return plain | {"strategy": "student"}  # whatever a variant has inherited: a student has no other
        return plain

    @model_validator(mode="after")
    def consistent(self) -> TeacherConfig:
        if problems := [*(imported_problems(self) if self.imported else []), *request_problems(self)]:
            raise ValueError("; ".join(problems))
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the training examples' annotations: not where and how fast the engine runs, the costs, or the store."""
        if self.strategy == "student":  # `cotd.teachers.student.model.student_revision` says which
            plain = self.model_dump(
                include={"strategy", "rationales", "samples", "temperature", "gold_conditioned", "seed", "filters"}
            )
            return plain | {"engine_kwargs": self.engine.output_kwargs()}
        plain = self.model_dump(exclude={"engine", "budget", "store", "api", "imported", "held_out_rationales"})
        if self.imported:
            plain["imported"] = self.imported.columns.model_dump()
        elif self.api:
            plain["api"] = self.api.model_dump(include=API_IDENTITY)
        else:
            plain["engine_kwargs"] = self.engine.output_kwargs()
            plain["chat"] = self.engine.chat if self.strategy == "chain_of_thought" else "never"
        return plain


def names_student(model: Any) -> bool:
    """Whether a model's name shows by itself that it is a trained student: not that of one on a hub."""
    return isinstance(model, str) and (model.startswith((STAGE, "models:/")) or (Path(model) / CARD).is_file())


def imported_problems(teacher: TeacherConfig) -> list[str]:
    """What in a teacher's settings contradicts its `imported`."""
    problems = []
    if teacher.strategy != "imported":
        problems.append(f"`imported` and strategy {teacher.strategy} are mutually exclusive: leave out one")
    if teacher.api:
        problems.append("`imported` and `api` are mutually exclusive: leave out one")
    if "model" not in teacher.model_fields_set:
        problems.append("model is missing: name who wrote the file, such as model: gpt-3.5-turbo; reports show that name")
    if teacher.samples != 1:
        problems.append("samples does not apply to `imported`, in which each row of an example is a sample: leave it out")
    return problems


def request_problems(teacher: TeacherConfig) -> list[str]:
    """What in a teacher's settings makes its requests impossible or pointless."""
    problems = []
    if teacher.strategy == "imported" and not teacher.imported:
        problems.append("strategy imported needs `imported`, with the file's columns")
    if not teacher.rationales and (teacher.strategy == "chain_of_thought" or teacher.held_out_rationales):
        asks = "held_out_rationales asks for them" if teacher.held_out_rationales else "a chain of thought is one"
        problems.append(f"rationales is false, and {asks}. Set rationales: true, or leave that out")
    if teacher.api and teacher.strategy == "student":
        problems.append("strategy student is of a model that is run here, and `api` is an endpoint: leave out one")
    if teacher.api and teacher.strategy == "score_then_explain" and teacher.api.endpoint == "chat":
        problems.append(
            "strategy score_then_explain needs the log-probabilities of the label words, which api.endpoint chat does not "
            "give. Set strategy: chain_of_thought, or api.endpoint: completions if the server has it"
        )
    if teacher.samples > 1 and teacher.temperature == 0 and not teacher.imported:
        problems.append("samples > 1 needs temperature > 0: greedy samples are all the same. Set temperature: 0.7")
    if (
        teacher.api is None
        and teacher.strategy != "student"
        and teacher.max_text_tokens + teacher.max_rationale_tokens >= teacher.engine.max_model_len
    ):
        problems.append(
            f"max_text_tokens ({teacher.max_text_tokens}) and max_rationale_tokens ({teacher.max_rationale_tokens}) leave no "
            f"room for the prompt in engine.max_model_len ({teacher.engine.max_model_len}). Raise the last or lower the others"
        )
    return problems
