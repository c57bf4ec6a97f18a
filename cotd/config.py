"""A study's configuration: YAML plus `key=value` overrides, checked as a whole before anything starts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cotd.answers_config import AnswersConfig, rationale_problems, source_problems, teacher_problems, with_strategy
from cotd.blocks import Block, apply_override, check_block, digest, read_yaml
from cotd.engine_config import EngineConfig
from cotd.errors import CotdError, nearest
from cotd.filters import filter_problems
from cotd.grid import GridConfig
from cotd.resources import ResourcesConfig
from cotd.search import SearchConfig
from cotd.storage import copy_folder, is_remote, open_remote
from cotd.task import TASKS
from cotd.training_config import TrainingConfig
from cotd.truncation import Truncation
from cotd.variants import all_variants, choose_variant

__all__ = ["Block", "StudyConfig", "TrainingConfig", "apply_override", "check_block", "digest", "load_config", "read_yaml"]

Share = Annotated[float, Field(gt=0, lt=1)]


class Columns(Block):
    """Which columns of the source hold what; a column that is absent from the source may be null."""

    text: str = "text"
    label: str | None = "label"
    split: str | None = None
    group: str | None = Field(None, description="rows of one group (a movie, a product) never fall into two splits")


class DataConfig(Block):
    source: str | dict[Literal["train", "validation", "test"], str] = Field(
        description="embedded:NAME, a .parquet, .jsonl or .csv file (or one per split), or a hub id"
    )
    task: str = "sentiment"
    columns: Columns = Columns()
    noun: str | None = Field(None, description="what prompts call a text; null: the source's own word, else 'review'")
    test_share: Share = 0.2
    validation_share: Share = 0.1
    train_rows: int | None = Field(None, ge=1, description="use the first n training reviews (null: all)")
    validation_rows: int | None = Field(None, ge=1)
    test_rows: int | None = Field(None, ge=1)

    @field_validator("task")
    @classmethod
    def known_task(cls, name: str) -> str:
        if name not in TASKS:
            raise ValueError(f"unknown task '{name}'; known: {', '.join(TASKS)}.{nearest(name, list(TASKS))}")
        return name

    @property
    def where(self) -> str:
        """The source as one string, to name it by."""
        return self.source if isinstance(self.source, str) else ", ".join(self.source.values())


class CalibrationConfig(Block):
    """How a weak teacher's label scores become labels. No test row is ever used."""

    method: Literal["platt", "prior", "none"] = Field(
        "platt",
        description="platt: logistic regression on gold validation labels (Platt 1999); prior: shift the scores until "
        "the predicted prior is `prior` (batch calibration, Zhou et al. 2024), no gold needed; none: as they come",
    )
    rows: int = Field(300, ge=20, description="validation reviews to calibrate on")
    prior: float = Field(0.5, gt=0, lt=1, description="assumed share of the positive label, for method prior")


class ApiConfig(Block):
    """An OpenAI-compatible endpoint as the teacher's engine."""

    base_url: str = Field(description="up to and including its version, for example https://api.openai.com/v1")
    key_env: str | None = Field(
        "OPENAI_API_KEY", description="NAME of the environment variable that holds the key, never the key; null: no key"
    )
    server: Literal["openai", "vllm"] = Field(
        "openai",
        description="vllm: `vllm serve`, whose own parameters are then used: answers held to a pattern, and the "
        "log-probabilities of exactly the label words; openai: answers are JSON",
    )
    endpoint: Literal["chat", "completions"] = Field("chat", description="score_then_explain needs completions")
    json_answers: Literal["schema", "object"] = Field(
        "schema",
        description="server openai: hold answers to a JSON schema, or, where there is no such thing, to some JSON object",
    )
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="what the server calls the limit of an answer; OpenAI's newer models: max_completion_tokens"
    )
    top_logprobs: int = Field(5, ge=2, description="score_then_explain: how many to ask for; OpenAI allows 5, vLLM 20")
    tokenizer: str | None = Field(
        None,
        description="embedded:NAME, a local directory or a hub id, to count tokens and cut long reviews exactly; null: by length",
    )
    extra_body: dict[str, Any] = Field(default_factory=dict, description="added to each request as it is; part of its identity")
    concurrency: int = Field(64, ge=1, description="requests in flight")
    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0, description="prompt and answer; answers count as long as they may be")
    timeout_seconds: float = Field(60, gt=0, description="for one answer")
    retries: int = Field(
        6, ge=0, description="after a server's error, a timeout or a broken answer; a rate limit is waited for"
    )
    backoff_seconds: float = Field(0.5, gt=0, description="before the first retry; doubles, jittered; Retry-After goes before")

    @field_validator("base_url")
    @classmethod
    def plain_url(cls, url: str) -> str:
        from urllib.parse import urlsplit

        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an http(s) URL such as https://api.openai.com/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("holds credentials or a query; keys belong in the environment variable that key_env names")
        return url.rstrip("/")

    @field_validator("key_env")
    @classmethod
    def name_of_a_variable(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError("names an environment variable, in capitals, such as OPENAI_API_KEY; the key itself is set there")
        return name


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
        description="names of cotd/filters.py, in order, with settings where wanted: [length: {max_words: 60}]",
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


class TrackingConfig(Block):
    uri: str | None = Field(None, description="MLflow tracking URI; null: MLFLOW_TRACKING_URI, else runs/mlflow.db")
    experiment: str | None = Field(None, description="null: the study's name")
    registered_model: str = "cotd-student"


class StudyConfig(Block):
    """One study: what is annotated by whom, which students are trained, and where the results go."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    variant: str | None = Field(None, description="which of the file's `variants` this is")
    data: DataConfig
    teacher: TeacherConfig = TeacherConfig()
    sizes: dict[str, str] = Field(
        default_factory=lambda: {
            "tiny": "embedded:t5-tiny",
            "small": "google/t5-v1_1-small",
            "base": "google/t5-v1_1-base",
            "large": "google/t5-v1_1-large",
        },
        description="size name → model: embedded:NAME, a local directory, or a hub id",
    )
    grid: GridConfig
    training: TrainingConfig = TrainingConfig()
    search: SearchConfig | None = Field(None, description="training settings to try, in place of those of `training`")
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    storage: str = Field("runs", description="the folder that holds the study's folder, or an fsspec URL like s3://bucket/runs")

    @model_validator(mode="after")
    def parts_agree(self) -> StudyConfig:
        problems = size_problems(self.model_dump(include={"grid", "sizes", "resources"}))
        most = max(self.grid.all_values("samples"), default=0)
        if most > self.teacher.samples and not self.teacher.answers:
            problems.append(
                f"grid.samples has {most}, and the teacher writes {self.teacher.samples} a review (teacher.samples)"
            )
        if self.teacher.answers:
            problems += source_problems(self.teacher.answers, self.data)
            problems += rationale_problems(self.teacher, self.grid)
        if self.search and (cells := self.grid.count_all()) > 1:
            problems.append(
                f"search tries settings of one student, and the grid has {cells} combinations: name one method, fraction, size "
                "and seed"
            )
        if self.search and self.search.asha and self.search.asha.grace_steps > self.training.steps:
            problems.append(
                f"search.asha.grace_steps ({self.search.asha.grace_steps}) is more than training.steps ({self.training.steps}), "
                "so that nothing would be given up early"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @field_validator("storage")
    @classmethod
    def storage_can_be_used(cls, storage: str) -> str:
        if is_remote(storage):
            try:
                open_remote(storage)
            except CotdError as error:
                raise ValueError(str(error)) from error
        return storage

    @property
    def remote(self) -> str | None:
        """The fsspec URL of the study's folder, of which `directory` is a working copy; None where it is a folder itself."""
        return f"{self.storage.rstrip('/')}/{self.name}" if is_remote(self.storage) else None

    @property
    def local_storage(self) -> Path:
        """The folder for what is kept beside studies, absolute: `storage`, or `runs` where that is a URL."""
        return Path("runs" if self.remote else self.storage).expanduser().absolute()

    @property
    def directory(self) -> Path:
        """The study's own folder, absolute: trials run in other working directories."""
        return copy_folder(self.remote) if self.remote else self.local_storage / self.name

    def tracking_uri(self) -> str:
        import os

        default = f"sqlite:///{self.local_storage / 'mlflow.db'}"
        return self.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or default


def load_config(path: str | Path, overrides: list[str] | None = None) -> StudyConfig:
    """Reads a study's YAML, chooses its variant, applies `a.b=value` overrides (values are YAML) and checks the whole.

    Raises:
        CotdError: with every problem found, each naming its key; also those of variants that were not chosen.
    """
    written = read_yaml(path)
    plain, rest = choose_variant(written, overrides or [], str(path))
    for override in rest:
        apply_override(plain, override)
    problems: dict[str, str] = {}  # what is wrong → the same with where: a mistake of all variants is told once
    for where, study in {str(path): plain, **all_variants(written, str(path), plain.get("variant"))}.items():
        try:
            check_config(study, where)
        except CotdError as error:
            found = {p.removeprefix(f"{where}: "): p for p in error.problems}
            problems |= {what: p for what, p in found.items() if what not in problems}
    if problems:
        raise CotdError(*problems.values())
    return check_config(plain, str(path))


def check_config(plain: dict[str, Any], where: str) -> StudyConfig:
    """A StudyConfig of a plain dict.

    Raises:
        CotdError: all problems at once; an unknown key is answered with the nearest known one.
    """
    return check_block(StudyConfig, plain, where, size_problems)


def size_problems(plain: dict[str, Any]) -> list[str]:
    """Unknown sizes; also where pydantic stops before it looks: a validator of the whole runs only when every part is sound."""
    grid, sizes = (
        plain.get("grid"),
        plain.get("sizes") or StudyConfig.model_fields["sizes"].get_default(call_default_factory=True),
    )
    if not isinstance(grid, dict) or not isinstance(sizes, dict):
        return []
    known, wanted = ", ".join(map(str, sizes)), {"grid.size": grid.get("size")}
    for kind in ("include", "exclude"):
        entries = grid.get(kind) if isinstance(grid.get(kind), list) else []
        wanted |= {f"grid.{kind}.{i}.size": e.get("size") for i, e in enumerate(entries or []) if isinstance(e, dict)}
    resources = plain.get("resources")
    own = resources.get("sizes") if isinstance(resources, dict) else None
    wanted["resources.sizes"] = list(own) if isinstance(own, dict) else None
    return [
        f"{where} '{size}' is not in sizes ({known}).{nearest(size, list(sizes))}"
        for where, names in wanted.items()
        for size in (names if isinstance(names, list) else [names])
        if size is not None and size not in sizes
    ]
