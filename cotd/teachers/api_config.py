"""The `teacher.api` block of a study: an OpenAI-compatible endpoint as the teacher."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from pydantic import Field, field_validator

from cotd.config.model import ConfigModel

# The names of query parameters that hold a secret.
SECRET = re.compile(r"key|token|secret|sig|pass|auth|code|credential", re.IGNORECASE)


class ApiConfig(ConfigModel):
    """An OpenAI-compatible endpoint as the teacher's engine."""

    base_url: str = Field(
        description="up to and including its version, for example https://api.openai.com/v1; of Azure, the deployment's with "
        "?api-version=…"
    )
    key_env: str | None = Field(
        "OPENAI_API_KEY", description="NAME of the environment variable that holds the key, never the key itself; null: no key"
    )
    key_header: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9-]+$",
        description="the header that carries the key as it is; null: api-key where base_url has an api-version (Azure), else "
        "Authorization, as a bearer token",
    )
    server: Literal["openai", "vllm"] = Field(
        "openai",
        description="vllm: `vllm serve`, with its own parameters: responses that match a pattern, and the log-probabilities of "
        "exactly the label words; openai: responses are JSON",
    )
    endpoint: Literal["chat", "completions"] = Field("chat", description="score_then_explain needs completions")
    mode: Literal["requests", "batch"] = Field(
        "requests",
        description="batch: the provider's Batch API, which completes files of requests within a day at half price (budget's "
        "prices are then those); limits and concurrency do not apply",
    )
    json_completions: Literal["schema", "object"] = Field(
        "schema", description="server openai: require JSON of a schema or, if the server has no schemas, any JSON object"
    )
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens",
        description="the server's name for the limit of output tokens; OpenAI's newer models: max_completion_tokens",
    )
    top_logprobs: int = Field(5, ge=2, description="score_then_explain: how many to ask for; OpenAI allows 5, vLLM 20")
    tokenizer: str | None = Field(
        None, description="embedded:NAME, a local directory or a hub id, for exact counts and cuts of tokens; null: by length"
    )
    extra_body: dict[str, Any] = Field(
        default_factory=dict,
        description="added to each request as is; null takes a parameter out, as in {temperature: null}; part of its identity",
    )
    poll_seconds: float = Field(30, gt=0, description="mode batch: how often to ask whether a batch has ended")
    concurrency: int = Field(64, ge=1, description="requests in flight")
    requests_per_minute: float | None = Field(None, gt=0)
    tokens_per_minute: float | None = Field(None, gt=0, description="prompt and output; outputs count with their limit")
    timeout_seconds: float = Field(60, gt=0, description="for one response")
    retries: int = Field(
        6,
        ge=0,
        description="after a server error, a timeout or a broken response; rate limits are waited for, and do not count",
    )
    backoff_seconds: float = Field(
        0.5, gt=0, description="before the first retry; doubles each time, with jitter; Retry-After takes precedence"
    )

    @field_validator("base_url")
    @classmethod
    def plain_url(cls, url: str) -> str:
        """The URL without what follows it in a request, and without a secret."""
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("not an http(s) URL such as https://api.openai.com/v1")
        if parts.username or parts.password or any(SECRET.search(name) for name, _ in parse_qsl(parts.query, True)):
            raise ValueError("holds credentials; keys belong in the environment variable that key_env names (see key_header)")
        path = re.sub(r"/(chat/)?completions$", "", parts.path.rstrip("/"))
        return urlunsplit(parts._replace(path=path, fragment=""))

    def url(self, path: str) -> str:
        """The address of a path below `base_url`, with the latter's query."""
        parts = urlsplit(self.base_url)
        return urlunsplit(parts._replace(path=f"{parts.path}/{path}"))

    def headers(self, key: str | None) -> dict[str, str]:
        """The headers that carry the key."""
        if not key:
            return {}
        name = self.key_header or ("api-key" if "api-version=" in urlsplit(self.base_url).query else "Authorization")
        return {name: f"Bearer {key}" if name.lower() == "authorization" else key}

    @field_validator("key_env")
    @classmethod
    def variable_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
            raise ValueError("names an environment variable, in capitals, such as OPENAI_API_KEY; the key itself is set there")
        return name
