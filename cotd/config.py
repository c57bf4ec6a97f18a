"""A study's configuration: YAML plus `key=value` overrides, checked as a whole before anything starts."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cotd.errors import CotdError, nearest
from cotd.filters import filter_problems
from cotd.methods import METHODS
from cotd.presets import apply_preset
from cotd.storage import copy_folder, is_remote, open_remote
from cotd.task import TASKS

Share = Annotated[float, Field(gt=0, lt=1)]
# A value that was meant to be a name, and may be the secret itself, is not shown.
NEVER_SHOWN = {"key_env", "base_url"}


class Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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


class CalibrationConfig(Block):
    """How a weak teacher's label scores become labels. No test row is ever used."""

    method: Literal["platt", "prior", "none"] = Field(
        "platt",
        description="platt: logistic regression on gold validation labels (Platt 1999); prior: shift the scores until "
        "the predicted prior is `prior` (batch calibration, Zhou et al. 2024), no gold needed; none: as they come",
    )
    rows: int = Field(300, ge=20, description="validation reviews to calibrate on")
    prior: float = Field(0.5, gt=0, lt=1, description="assumed share of the positive label, for method prior")


class EngineConfig(Block):
    """The vLLM engine inside Ray Data."""

    backend: Literal["auto", "ray_data_llm", "in_process"] = Field(
        "auto", description="auto: ray_data_llm on GPUs, in_process on CPUs, where it starts three times faster"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on GPUs and on processors that multiply it in hardware, else float32"
    )
    max_model_len: int = Field(1024, ge=64)
    batch_size: int = Field(128, ge=1, description="rows a block sent to the engine")
    replicas: int = Field(1, ge=1)
    tensor_parallel: int = Field(1, ge=1)
    kv_cache_gb: int = Field(2, ge=1, description="CPU only: memory for the key-value cache")
    engine_kwargs: dict[str, Any] = Field(default_factory=dict, description="passed to vLLM as they are")


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
    retries: int = Field(6, ge=0, description="after a rate limit, a server's error, a timeout or a broken answer")
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
        description="embedded:NAME, a local directory, or a hub id; with `api`, the model's name there",
    )
    revision: str | None = Field(
        None,
        description="of a hub model: branch, tag or commit; with `api`: any word that names the weights, in place of the URL",
    )
    strategy: Literal["score_then_explain", "chain_of_thought"] = "score_then_explain"
    prompts: str | None = Field(None, description="a YAML of prompts; null: the task's own, by strategy")
    calibration: CalibrationConfig = CalibrationConfig()
    samples: int = Field(1, ge=1, le=64, description="rationales a review")
    temperature: float = Field(0.0, ge=0, le=2)
    max_rationale_tokens: int = Field(40, ge=4)
    max_review_tokens: int = Field(384, ge=16, description="longer reviews are cut before they are shown to the teacher")
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

    @model_validator(mode="after")
    def scores_need_completions(self) -> TeacherConfig:
        if self.api and self.strategy == "score_then_explain" and self.api.endpoint == "chat":
            raise ValueError(
                "strategy score_then_explain needs the log-probabilities of the label words, which api.endpoint chat does not "
                "give. Set strategy: chain_of_thought, or api.endpoint: completions where the server has it"
            )
        return self

    def decisive(self) -> dict[str, Any]:
        """What decides the training reviews' annotations: not where the engine runs, what it may cost, or where answers are kept."""
        plain = self.model_dump(exclude={"engine", "budget", "store", "api", "held_out_rationales"})
        if self.api:
            plain["api"] = self.api.model_dump(
                include={"base_url", "server", "endpoint", "json_answers", "top_logprobs", "extra_body", "tokenizer"}
            )
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


class GridConfig(Block):
    method: list[str] = Field(min_length=1)
    fraction: list[float] = Field(min_length=1, description="shares of the training split, in (0, 1]")
    size: list[str] = Field(min_length=1)
    seed: list[int] = Field(min_length=1)

    @field_validator("method")
    @classmethod
    def known_methods(cls, names: list[str]) -> list[str]:
        known = ", ".join(METHODS)
        wrong = [f"unknown method '{n}'; known: {known}.{nearest(n, list(METHODS))}" for n in names if n not in METHODS]
        if wrong:
            raise ValueError("; ".join(wrong))
        return names

    @field_validator("fraction")
    @classmethod
    def fractions_in_range(cls, fractions: list[float]) -> list[float]:
        wrong = [f"fraction {f} is outside (0, 1]" for f in fractions if not 0 < f <= 1]
        if wrong:
            raise ValueError("; ".join(wrong) + "; write 10 % as 0.1")
        return fractions


class TrainingConfig(Block):
    """How a student is trained. The defaults are this project's, for the embedded student."""

    preset: str | None = Field(
        None, exclude=True, description="a paper's settings (cotd/presets.py): sc4001 or hsieh2023; keys given beside it win"
    )
    steps: int = Field(300, ge=1, description="optimiser steps, the same for every fraction, as in the papers")
    batch_size: int = Field(32, ge=1, description="reviews a step; cot methods add a rationale target for each")
    optimizer: Literal["scaled_adamw", "adamw", "adafactor"] = Field(
        "scaled_adamw",
        description="scaled_adamw: steps relative to each matrix's size, for learning rates some ten times larger",
    )
    schedule: Literal["linear", "cosine", "constant_with_warmup"] = "linear"
    learning_rate: float = Field(5e-3, gt=0)
    warmup_steps: int = Field(20, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    rationale_weight: float = Field(0.5, ge=0, description="λ in L = L_label + λ L_rationale (SC4001 report: 0.5)")
    dropout: float = Field(0.1, ge=0, lt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    eval_every: int = Field(50, ge=1, description="steps between validation scores; the best one is kept")
    patience: int | None = Field(None, ge=1, description="stop after this many scores without a new best")
    max_input_tokens: int = Field(128, ge=8)
    max_target_tokens: int = Field(64, ge=4)
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="auto: bfloat16 autocast where the processor or GPU multiplies it in hardware, else float32"
    )

    @model_validator(mode="before")
    @classmethod
    def resolve_preset(cls, plain: Any) -> Any:
        """What is saved and hashed are the values, so that a trial is the same however they were written."""
        return apply_preset(plain)


class ResourcesConfig(Block):
    """What each trial asks Ray for; fractions are packed onto one device."""

    cpus: float = Field(1, gt=0)
    gpus: float | None = Field(None, ge=0, description="null: a quarter of a GPU where Ray has any, else none")
    max_concurrent: int | None = Field(None, ge=1)
    max_failures: int = Field(1, ge=0, description="times a failed trial is tried again")


class TrackingConfig(Block):
    uri: str | None = Field(None, description="MLflow tracking URI; null: MLFLOW_TRACKING_URI, else runs/mlflow.db")
    experiment: str | None = Field(None, description="null: the study's name")
    registered_model: str = "cotd-student"


class StudyConfig(Block):
    """One study: what is annotated by whom, which students are trained, and where the results go."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
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
    resources: ResourcesConfig = ResourcesConfig()
    tracking: TrackingConfig = TrackingConfig()
    storage: str = Field("runs", description="the folder that holds the study's folder, or an fsspec URL like s3://bucket/runs")

    @model_validator(mode="after")
    def sizes_are_known(self) -> StudyConfig:
        for size in self.grid.size:
            if size not in self.sizes:
                known = ", ".join(self.sizes)
                raise ValueError(f"grid.size '{size}' is not in sizes ({known}).{nearest(size, list(self.sizes))}")
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
    """Reads a study's YAML, applies `a.b=value` overrides (values are YAML) and checks the whole.

    Raises:
        CotdError: with every problem found, each naming its key.
    """
    return check_config(read_yaml(path, overrides), str(path))


def read_yaml(path: str | Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """A YAML mapping with `a.b=value` overrides applied.

    Raises:
        CotdError: no such file, not YAML, not a mapping, or an override that is none.
    """
    path = Path(path)
    if not path.is_file():
        shipped = sorted(str(p) for p in Path("tune_configs").rglob("*.yaml"))
        hint = f" Shipped: {', '.join(shipped)}." if shipped else ""
        raise CotdError(f"no configuration file '{path}'.{hint}")
    try:
        plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError) as error:
        raise CotdError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(plain, dict):
        raise CotdError(f"{path} is not a mapping of keys to values but a {type(plain).__name__}. Start with `name: …`.")
    for override in overrides or []:
        apply_override(plain, override)
    return plain


def apply_override(plain: dict[str, Any], override: str) -> None:
    """Sets one `a.b=value` in a nested dict, in place; a number names an entry of a list, as in `a.0.b=value`."""
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise CotdError(f"override '{override}' is not of the form key=value, for example training.steps=100")
    *parents, last = key.strip().split(".")
    node: Any = plain
    for parent, child_key in itertools.pairwise([*parents, last]):
        child = node.setdefault(parent, {}) if isinstance(node, dict) else node[int(parent)]
        if isinstance(child, list) and not (child_key.isdecimal() and int(child_key) < len(child)):
            raise CotdError(f"override '{override}': '{parent}' is a list of {len(child)}; name an entry as {parent}.0")
        if not isinstance(child, (dict, list)):
            raise CotdError(f"override '{override}': '{parent}' is a value, not a block of keys")
        node = child
    try:
        node[int(last) if isinstance(node, list) else last] = yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise CotdError(f"override '{override}': the value is not valid YAML: {error}") from error


def check_config(plain: dict[str, Any], where: str) -> StudyConfig:
    """A StudyConfig of a plain dict.

    Raises:
        CotdError: all problems at once; an unknown key is answered with the nearest known one.
    """
    return check_block(StudyConfig, plain, where, size_problems)


BlockType = TypeVar("BlockType", bound=Block)


def check_block(
    kind: type[BlockType], plain: dict[str, Any], where: str, more: Callable[[dict[str, Any]], list[str]] = lambda _: []
) -> BlockType:
    """A configuration of a plain dict.

    Args:
        more: finds further problems where pydantic has found some and stopped.

    Raises:
        CotdError: all problems at once; an unknown key is answered with the nearest known one.
    """
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        found = [describe_problem(kind, e) for e in error.errors()]
        found += [p for p in more(plain) if p not in found]
        raise CotdError(*(f"{where}: {p}" for p in found)) from error


def size_problems(plain: dict[str, Any]) -> list[str]:
    """Unknown sizes, where pydantic stops before it looks: a validator of the whole runs only when every part is sound."""
    grid, sizes = (
        plain.get("grid"),
        plain.get("sizes") or StudyConfig.model_fields["sizes"].get_default(call_default_factory=True),
    )
    wanted = grid.get("size") if isinstance(grid, dict) else None
    if not isinstance(wanted, list) or not isinstance(sizes, dict):
        return []
    known = ", ".join(map(str, sizes))
    return [f"grid.size '{s}' is not in sizes ({known}).{nearest(s, list(sizes))}" for s in wanted if s not in sizes]


def describe_problem(kind: type[Block], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = known_keys(kind, location[:-1])
        return f"unknown key '{key}'.{nearest(location[-1], known)} Known here: {', '.join(known)}."
    if problem["type"] == "missing":
        return f"'{key}' is missing."
    message = re.sub(r"^Value error, ", "", problem["msg"])
    if not key:
        return message
    shown = isinstance(problem["input"], (str, int, float)) and location[-1] not in NEVER_SHOWN
    given = f" (given: {problem['input']!r})" if shown else ""
    return f"{key}: {message}{given}"


def known_keys(kind: type[Block], location: list[str]) -> list[str]:
    """The keys that the block at `location` of a configuration knows."""
    block: type[BaseModel] = kind
    for part in location:
        annotation = block.model_fields[part].annotation if part in block.model_fields else None
        annotation = next((a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)), annotation)
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        block = annotation
    return sorted(block.model_fields)


def digest(plain: Any) -> str:
    """16 hex digits that identify a JSON-able value, whatever the order of its keys."""
    canonical = json.dumps(plain, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
