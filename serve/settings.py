"""What an operator sets; the fields are the `args` of a Serve config."""

from __future__ import annotations

import hashlib
import ipaddress
import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cotd.errors import CotdError
from cotd.utils.urls import without_credentials

TOKEN_VARIABLE = "COTD_SERVE_TOKEN"
SHORTEST_TOKEN = 16
OWN_NAMES = ("localhost", "127.0.0.1", "::1")  # of an endpoint that only this machine reaches

Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """The endpoint's limits, and what it serves."""

    # Inputs stay out of errors: one may be a token where its digest was wanted.
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    student: str = Field("models:/cotd-student@champion", description="models:/NAME@ALIAS, a folder, or a hub id")
    escalate: str | None = Field(
        None, description="a larger student, named likewise, which answers what the student is not sure of; it stays the same"
    )
    below: str = Field("auto", description="the confidence below which a text is handed on, see cotd.evaluation.cascade")
    tracking_uri: str | None = Field(None, description="MLflow store that holds models:/…")
    runtime: str = Field("auto", description="what computes label logits: auto, or one of serve.runtimes.registry.RUNTIMES")
    threads: Count = Field(1, description="threads of the runtime")
    max_texts: Count = Field(256, description="texts a request; more: 413")
    max_characters: Count = Field(20_000, description="characters a text; more: 413")
    max_body_bytes: Count = Field(8 * 2**20, description="bytes a request; more: 413, unread")
    max_body_seconds: float = Field(30.0, gt=0, description="seconds until a request has arrived; more: 408")
    max_batch: Count = Field(32, description="texts the runtime computes at once")
    max_queued_texts: Count = Field(1024, description="texts that wait for the runtime; more: 503 with Retry-After")
    max_queued_rationales: Count = Field(64, description="the same for rationales, which take far longer")
    poll_seconds: float = Field(10.0, ge=0, description="how often to look whether the alias has moved; 0: never")
    token_sha256: str | None = Field(
        None, pattern="^[0-9a-f]{64}$", description="digest of the bearer token; the token itself is not passed on"
    )
    allowed_hosts: tuple[str, ...] | None = Field(
        None, description="names by which requests may call the endpoint, without port; others: 421. Default: any"
    )
    cors_origins: tuple[str, ...] = Field((), description="origins of pages that browsers let use the endpoint, or *")
    log_texts: bool = Field(False, description="write the examples themselves to the log")
    metrics_folder: str | None = Field(
        None, description="where replicas of a machine share metrics and note what they serve; of their user alone"
    )

    @property
    def reserved_texts(self) -> int:
        """How much of the queue is kept for requests of at most a batch, so that large ones do not starve them."""
        return min(self.max_queued_texts // 4, self.max_queued_texts - self.max_texts)

    @field_validator("tracking_uri")
    @classmethod
    def uri_without_credentials(cls, uri: str | None) -> str | None:
        return without_credentials(uri)

    @field_validator("below", mode="before")
    @classmethod
    def readable_below(cls, below: object) -> str:
        from cotd.evaluation.cascade import parse_below  # not for clients, which import this module

        try:
            parse_below(str(below))
        except CotdError as error:
            raise ValueError(str(error)) from error
        return str(below)

    @model_validator(mode="after")
    def queue_holds_a_request(self) -> Settings:
        if self.max_queued_texts < self.max_texts:
            raise ValueError(
                f"max_queued_texts ({self.max_queued_texts}) is below max_texts ({self.max_texts}): "
                "the largest allowed request would always be refused. Raise max_queued_texts, or lower max_texts"
            )
        return self


def token_digest(token_file: str | Path | None = None) -> str | None:
    """The SHA-256 of the bearer token in a file, else in COTD_SERVE_TOKEN; None without either.

    Replicas compare digests, so that only the process that read the token holds it.

    Raises:
        CotdError: the file cannot be read, or the token is too short or contains a space.
    """
    origin = f"the file '{token_file}'" if token_file else TOKEN_VARIABLE
    if token_file:
        try:
            token = Path(token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise CotdError(f"cannot read the token from {origin}: {error}. Give a text file: --token-file.") from error
    elif TOKEN_VARIABLE in os.environ:
        token = os.environ[TOKEN_VARIABLE].strip()
    else:
        return None
    if len(token) < SHORTEST_TOKEN or not token.isascii() or len(token.split()) != 1:
        raise CotdError(
            f"the token in {origin} must be one word of at least {SHORTEST_TOKEN} ASCII characters. "
            'Make one: python -c "import secrets; print(secrets.token_urlsafe())"'
        )
    return token_sha256(token)


def token_sha256(token: str) -> str:
    """A token's SHA-256 in hexadecimal."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
