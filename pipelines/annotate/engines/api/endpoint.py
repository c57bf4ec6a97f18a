"""One OpenAI-compatible endpoint: a request is sent once, and its response becomes a completion or an error that says why not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx

from cotd.data.cleaning import replace_surrogates
from cotd.errors import CotdError
from cotd.teachers.api_config import ApiConfig
from cotd.teachers.requests import Request
from cotd.teachers.store import Completion
from pipelines.annotate.engines.api.rate_limit import retry_after
from pipelines.annotate.engines.api.responses import (
    MALFORMED,
    NoLogprobs,
    Refused,
    Transient,
    Usage,
    form_of,
    read_completion,
)

RETRIED = {408, 409, 425, 429}  # and 500 to 599


class Endpoint:
    """Sends requests to one endpoint.

    Args:
        key: sent as a bearer token, and kept out of every message. count: the tokens of a text, or an estimate.

    Attributes:
        proven: the forms of request that the server is known to take.
    """

    def __init__(self, model: str, config: ApiConfig, key: str | None, count: Callable[[str], int]):
        self.model, self.config, self.key, self.count = model, config, key, count
        self.chat = config.endpoint == "chat"
        self.url = f"{config.base_url}/{'chat/completions' if self.chat else 'completions'}"
        self.proven: set[tuple[str, ...]] = set()
        limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.AsyncClient(timeout=config.timeout_seconds, limits=limits, headers=headers)

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
        self.check_status(response)
        try:
            return read_completion(request, response.json(), self.chat, usage, self.count)
        except MALFORMED as error:
            raise Transient("the response is not what an OpenAI-compatible server sends", responded=True) from error
        except NoLogprobs as error:
            if form_of(request) in self.proven:
                raise Transient("the response has no log-probabilities", responded=True) from error
            raise CotdError(
                f"{self.url} gives no log-probabilities, which strategy score_then_explain needs. Set strategy: chain_of_thought."
            ) from error

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

    def check_status(self, response: httpx.Response) -> None:
        """Raises for anything but success."""
        status, config = response.status_code, self.config
        if status < 300:
            return
        reason = f"HTTP {status}{self._message(response)}"
        if status == 429 and "insufficient_quota" in response.text:
            raise CotdError(f"the account at {config.base_url} has no quota left ({reason}).")
        if status == 429 and "request too large" in response.text.lower():
            raise Refused(reason)  # larger than a minute's allowance: no wait helps
        if status in RETRIED or status >= 500:
            after = retry_after(response.headers)
            raise Transient(reason, after, rate_limited=status == 429 or after is not None)
        if status in (401, 403):
            name = config.key_env
            fix = f"Check the key in the environment variable {name}" if name else "Name its variable in teacher.api.key_env"
            raise CotdError(f"{config.base_url} refuses the key ({reason}). {fix}.")
        if status == 404:
            raise CotdError(
                f"{self.url} does not exist, or has no model '{self.model}' ({reason}). Check teacher.api and teacher.model."
            )
        if status < 400:
            raise CotdError(f"{self.url} redirects to {response.headers.get('location')}; give that as teacher.api.base_url.")
        raise Refused(reason)

    def _message(self, response: httpx.Response) -> str:
        """What the server says of an error, shortened, without the key."""
        try:
            content = response.json()
            error = content.get("error", content)
            message = error.get("message") if isinstance(error, dict) else error
        except MALFORMED:
            message = response.text
        # The key goes first: a message that is cut may still hold a part of it.
        message = " ".join(self.without_key(str(message or "")).split())
        return f": {message[:200]}" if message else ""

    def without_key(self, message: str) -> str:
        """A message without the key, which can be stored."""
        return replace_surrogates(message.replace(self.key, "[key]") if self.key else message)

    async def close(self) -> None:
        """Closes the connections."""
        await self.http.aclose()
