"""One OpenAI-compatible endpoint: a request is sent once, and its response becomes a completion or an error that says why not."""

from __future__ import annotations

import asyncio
import functools
import json
import re
import ssl
from collections.abc import Callable
from typing import Any

import httpx

from cotd.data.cleaning import replace_surrogates
from cotd.errors import CotdError
from cotd.teachers.api_config import ApiConfig
from cotd.teachers.requests import Request
from cotd.teachers.store import Completion, new_completion
from pipelines.annotate.engines.api.errors import (
    LONGEST_MESSAGE,
    MALFORMED,
    RETRIED,
    NoForm,
    NoLogprobs,
    Refused,
    ServerError,
    Transient,
    read_error,
    response_error,
)
from pipelines.annotate.engines.api.rate_limit import retry_after
from pipelines.annotate.engines.api.responses import Usage, form_of, join_events, read_completion

LONGEST_REASON = 300  # characters of why a request failed


@functools.cache
def certificates() -> ssl.SSLContext:
    """Whom connections trust; reading it takes a twentieth of a second, and a run has clients of several kinds."""
    return httpx.create_ssl_context()


class Endpoint:
    """Sends requests to one endpoint.

    Args:
        key: sent as `ApiConfig.headers` says, and kept out of every message. count: the tokens of a text, or an estimate.

    Attributes:
        proven: the forms of request that the server is known to take.
    """

    def __init__(self, model: str, config: ApiConfig, key: str | None, count: Callable[[str], int]):
        self.model, self.config, self.key, self.count = model, config, key, count
        self.chat = config.endpoint == "chat"
        self.url = config.url("chat/completions" if self.chat else "completions")
        self.proven: set[tuple[str, ...]] = set()
        limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        self.http = httpx.AsyncClient(
            timeout=config.timeout_seconds, limits=limits, headers=config.headers(key), verify=certificates()
        )

    async def ask(self, request: Request, usage: Usage) -> Completion:
        """One try of a request; what its response took is added to `usage`.

        Raises:
            Transient, Refused, TeacherRefused, CutOff: there is no completion.
            CotdError: there will be none for any request.
        """
        seconds = self.config.timeout_seconds
        try:
            response = await asyncio.wait_for(self.http.post(self.url, json=self.body(request)), timeout=seconds)
        except (TimeoutError, httpx.TimeoutException) as error:
            sent = not isinstance(error, (httpx.ConnectTimeout, httpx.PoolTimeout))
            raise Transient(f"no response within {seconds:g} s", paid=sent) from error
        except httpx.RequestError as error:
            reason = f"the connection failed: {self.without_key(str(error) or type(error).__name__)}"
            raise Transient(reason, paid=not isinstance(error, httpx.ConnectError)) from error
        content = self.read_json(response)
        if response.status_code >= 300:
            said = response_error(content, response.status_code, response.text)
            self.raise_for(said, response.headers, request)
        return self.read(request, content, response.text, usage, response.headers)

    def read(self, request: Request, content: Any, text: str, usage: Usage, headers: httpx.Headers) -> Completion:
        """The completion in the JSON of a response that the server calls good; raises as `ask` does.

        Args:
            text: the response as it came.
        """
        error = None if has_choices(content) else read_error(content)
        if has_choices(content) and isinstance(content["choices"][0].get("error"), dict):  # it came while the teacher wrote
            error = read_error(content["choices"][0])
        if error:
            self.raise_for(error, headers, request)
        try:
            return read_completion(request, content, self.chat, usage, self.count)
        except MALFORMED as problem:
            words = f": {self.plain(text)}" if text.strip() and content is None else ""
            reason = f"the response is not what an OpenAI-compatible server sends{words}"
            nothing = not text.strip() or text.lstrip().startswith("<")  # or the page of what stands before the server
            raise Transient(reason, responded=not nothing) from problem
        except NoForm as problem:
            if self.config.server == "vllm" and not self.proven:
                raise CotdError(
                    f"{self.url} does not hold completions to the pattern that it was asked for: this version of vLLM is too old "
                    "for structured_outputs. Install a newer one, or set teacher.api.server: openai."
                ) from problem
            raise
        except NoLogprobs as problem:
            if form_of(request) in self.proven:
                raise Transient("the response has no log-probabilities", responded=True) from problem
            of = f" {problem}" if str(problem) else ""
            raise CotdError(
                f"{self.url} gives no log-probabilities{of}, which strategy score_then_explain needs. "
                "Set strategy: chain_of_thought."
            ) from problem

    def read_json(self, response: httpx.Response) -> Any:
        """A response's JSON, also of one that came as a stream although none was asked for; None if it is none."""
        text = response.text.strip()
        try:
            return join_events(text) if text.startswith(("data:", "event:", ":")) else json.loads(text)
        except MALFORMED:
            return None

    def body(self, request: Request) -> dict[str, Any]:
        """A request's sampling parameters, which are vLLM's, as the endpoint names them."""
        sampling = dict(request.sampling)
        body: dict[str, Any] = {"model": self.model}
        if self.chat:
            body["messages"] = [{"role": "user", "content": request.prompt}]
        else:
            body["prompt"] = request.prompt
        body[self.config.max_tokens_field if self.chat else "max_tokens"] = sampling.pop("max_tokens")
        structured = sampling.pop("structured_outputs", {})
        sampling.pop("label_words", None)
        if "json" in structured and self.config.json_completions == "schema":
            schema = {"name": "completion", "strict": True, "schema": structured["json"]}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif "json" in structured:
            body["response_format"] = {"type": "json_object"}
        elif structured:
            body["structured_outputs"] = structured
        # null in extra_body takes a parameter out, for models that refuse it.
        return {k: v for k, v in {**body, **sampling, **self.config.extra_body}.items() if v is not None}

    def raise_for(self, error: ServerError, headers: httpx.Headers, request: Request | None = None) -> None:
        """Raises what an error means for its request."""
        status, config = error.status, self.config
        message = self.plain(error.message)
        reason = f"HTTP {status}" if status else "an error with HTTP 200"
        reason += f": {message}" if message else ""
        after = retry_after(headers, error.message)
        if error.surely_no_credit or (error.no_credit and after is None):
            raise CotdError(
                f"the account at {config.base_url} has no credit left ({reason}). Top it up; the same command then resumes where "
                "this run ended."
            )
        if status in (413, 429) and "request too large" in error.message.lower():
            raise Refused(reason)  # larger than a minute's allowance: no wait helps
        if status is None or status in RETRIED or status >= 500 or error.rate_limited:
            raise Transient(reason, after, rate_limited=error.rate_limited or after is not None)
        if error.no_key:
            raise CotdError(self.key_refused(reason))
        if status == 404:
            version = "" if re.search(r"/v\d", self.url) else " (teacher.api.base_url mostly ends in /v1)"
            raise CotdError(
                f"{self.url} does not exist{version}, or has no model '{self.model}' ({reason}). Check teacher.api and teacher.model."
            )
        if status < 400:
            raise CotdError(f"{self.url} redirects to {headers.get('location')}; give that as teacher.api.base_url.")
        advice = self.key_refused(reason) if status == 403 else self.advice(error, request, reason)
        raise Refused(reason, forbidden=status == 403, advice=advice)

    def key_refused(self, reason: str) -> str:
        name = self.config.key_env
        fix = f"Check the key in the environment variable {name}" if name else "Name its variable in teacher.api.key_env"
        return f"{self.config.base_url} refuses the key ({reason}). {fix}."

    def advice(self, error: ServerError, request: Request | None, reason: str) -> str:
        """What to change if the server takes no request of a kind: the parameters that its message names, if it names any."""
        sent = [] if request is None else [name for name in self.body(request) if name not in ("messages", "prompt")]
        words = f"{error.parameter} {error.message}"
        named = [name for name in sent if re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", words)]
        limits = ("max_tokens", "max_completion_tokens")
        settings = []
        for name in named:
            if name in limits:
                settings.append(f"max_tokens_field: {limits[name == limits[0]]}")
            elif name == "structured_outputs":
                settings.append("server: openai, as this version of vLLM is too old for structured_outputs")
            elif name == "response_format" and self.config.json_completions == "schema":
                settings.append("json_completions: object or, if it takes no JSON at all, extra_body: {response_format: null}")
            elif name != "model":
                settings.append(f"extra_body: {{{name}: null}}, which leaves it out")
        settings = [f"Set teacher.api.{setting}." for setting in settings]
        if "model" in named or not settings:
            settings.append(
                "Check the settings that they are made of: teacher.model, teacher.api.server, json_completions, max_tokens_field, "
                "extra_body (in which null leaves a parameter out: {temperature: null})."
            )
        return f"{self.url} refuses all requests of this kind, whatever their text ({reason}). {' '.join(settings)}"

    def failed(self, request: Request, reason: str, usage: Usage, kind: str | None = None) -> Completion:
        """The completion of a request that has none; `kind` is REFUSED_REASON if it would fail again."""
        tokens = {"prompt_tokens": usage.prompt_tokens, "output_tokens": usage.output_tokens}
        error = self.without_key(reason)[:LONGEST_REASON]
        return new_completion(request.key, error=error, finish_reason=kind, **tokens)

    def plain(self, message: str) -> str:
        """What a server says, in one short line, without the key."""
        # The key goes first: a message that is cut may still hold a part of it.
        return " ".join(self.without_key(message).split())[:LONGEST_MESSAGE]

    def without_key(self, message: str) -> str:
        """A message without the key, which can be stored."""
        return replace_surrogates(message.replace(self.key, "[key]") if self.key else message)

    async def close(self) -> None:
        """Closes the connections."""
        await self.http.aclose()


def has_choices(content: Any) -> bool:
    """Whether JSON is a response with at least one choice."""
    choices = content.get("choices") if isinstance(content, dict) else None
    return isinstance(choices, list) and bool(choices) and isinstance(choices[0], dict)
