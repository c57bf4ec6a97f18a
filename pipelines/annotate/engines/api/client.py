"""One asynchronous client of one OpenAI-compatible endpoint, with many requests in flight.

No Ray here: the work is waiting, one process does thousands of it at once, and rate limits, budget and Retry-After are
the account's, not a worker's. The client runs on an event loop that turns while its answers are waited for.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx

from cotd.data.cleaning import whole_characters
from cotd.errors import CotdError
from cotd.progress import say
from cotd.teachers.api_config import ApiConfig
from cotd.teachers.requests import Request
from cotd.teachers.store import REFUSED_REASON, Completion, completion
from pipelines.annotate.engines.api.rate_limit import Booking, RateLimit, retry_after
from pipelines.annotate.engines.api.responses import (
    ODD,
    Again,
    CutOff,
    NoScores,
    Refused,
    TeacherRefused,
    Usage,
    form_of,
    read_answer,
)

BATCH_ROWS, BATCH_SECONDS = 64, 2.0  # a batch is kept when it has so many answers, or is so old
LONGEST_BACKOFF = 60.0
# A longer Retry-After (a quota of the day, say) ends the run rather than keep somebody waiting in front of it.
LONGEST_RETRY_AFTER = 3600.0
# A request that only ever meets the rate limit is given up when no other has been answered for so long either.
PATIENCE_SECONDS = 600.0
FINISH_SECONDS = 10.0  # what is in flight when Ctrl-C is pressed is paid for: so long it may take to arrive
# Before anything has succeeded few are in flight, more with each that ended, so that a wrong setting costs little.
FIRST_IN_FLIGHT, MOST_IN_FLIGHT_UNPROVEN = 4, 16
HOPELESS = 32  # so many failures and no success: it is not the rows
PROBE = "Say hello."
LONGEST_REASON = 300  # characters of why a request failed
PAID_TRIES = 3  # of answers that come, are paid for, and are not what was asked for
RETRIED = {408, 409, 425, 429}  # and 500 to 599


class ApiClient:
    """Asks one endpoint.

    Args:
        key: sent as a bearer token, and kept out of every message. count: the tokens of a text, or an estimate.
        may_pay_again: whether a budget has room for another try of a request whose last one may have been paid for.
    """

    def __init__(
        self,
        model: str,
        config: ApiConfig,
        key: str | None,
        count: Callable[[str], int],
        may_pay_again: Callable[[Request], bool] = lambda request: True,
    ):
        self.may_pay_again = may_pay_again
        self.model, self.config, self.key, self.count = model, config, key, count
        self.url = f"{config.base_url}/{'chat/completions' if config.endpoint == 'chat' else 'completions'}"
        self.requests = RateLimit(config.requests_per_minute)
        self.tokens = RateLimit(config.tokens_per_minute)
        self.gate = asyncio.Lock()  # the limits are waited for one by one, in the order of arrival
        self.resume_at = 0.0  # monotonic seconds; a Retry-After is meant for every request
        self.longest_pause = 0.0  # seconds that the server has asked to wait
        self.answered_at = time.monotonic()  # when something was last answered
        self.failed_in_a_row = 0
        self.ended = 0  # requests
        self.proven: set[tuple[str, ...]] = set()  # the forms of request that the server is known to take
        self.probing = asyncio.Lock()
        self.fatal: CotdError | None = None
        self.flying: set[asyncio.Task[Completion | None]] = set()
        self.landed: list[Completion] = []
        limits = httpx.Limits(max_connections=config.concurrency, max_keepalive_connections=config.concurrency)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self.http = httpx.AsyncClient(timeout=config.timeout_seconds, limits=limits, headers=headers)

    # --- many requests ----------------------------------------------------------------------------------------------

    @property
    def places(self) -> int:
        """How many requests may be in flight."""
        few = min(FIRST_IN_FLIGHT + self.ended, MOST_IN_FLIGHT_UNPROVEN)
        return self.config.concurrency if self.proven else min(few, self.config.concurrency)

    async def next_batch(self, requests: Iterator[Request]) -> list[Completion]:
        """The next answers, or none when everything is answered; takes requests as places get free.

        Raises:
            CotdError: no request can succeed; answers that came in are returned before.
        """
        deadline = time.monotonic() + BATCH_SECONDS
        while len(self.landed) < BATCH_ROWS:
            while self.fatal is None and len(self.flying) < self.places:
                request = next(requests, None)
                if request is None:
                    break
                self.flying.add(asyncio.create_task(self.answer(request)))
            if not self.flying or (self.landed and time.monotonic() >= deadline):
                break
            await self._land(BATCH_SECONDS)
        batch, self.landed = self.landed, []
        if not batch and self.fatal:
            raise self.fatal
        return batch

    async def finish(self) -> list[Completion]:
        """What is still in flight, as far as it arrives soon."""
        deadline = time.monotonic() + FINISH_SECONDS
        self.fatal = CotdError("stopped")  # no more retries
        while self.flying and (left := deadline - time.monotonic()) > 0:
            await self._land(left)
        batch, self.landed = self.landed, []
        return batch

    async def _land(self, seconds: float) -> None:
        done, self.flying = await asyncio.wait(self.flying, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self.ended += len(done)
        self.landed += [answer for task in done if (answer := task.result()) is not None]

    async def close(self) -> None:
        for task in self.flying:
            task.cancel()
        await asyncio.gather(*self.flying, return_exceptions=True)
        await self.http.aclose()

    # --- one request ------------------------------------------------------------------------------------------------

    async def answer(self, request: Request) -> Completion | None:
        """A completion, with its `error` where every try failed; None, and `fatal` set, where no request can succeed."""
        usage = Usage()
        try:
            return await self._answer(request, usage)
        except Exception as error:  # noqa: BLE001 - whatever a server can send: its row fails, and no other's answer is lost
            return self._given_up(request, f"its answer could not be read: {type(error).__name__}: {error}", usage)

    async def _answer(self, request: Request, usage: Usage) -> Completion | None:
        needed = Usage(self.count(request.prompt), int(request.sampling["max_tokens"]))
        tries = answers = limited_tries = 0  # a rate limit is no try: the server has not looked at the request
        began, spread = time.monotonic(), 0.0
        while True:
            booked = await self._turn(needed.tokens, spread)
            if booked is None:
                return None
            before = usage.tokens
            try:
                answer = await self._try(request, usage)
            except Again as problem:
                failure = problem
                if failure.paid and usage.tokens == before:  # nobody says for how much
                    usage.add(needed)
            except TeacherRefused as problem:
                self._heard()
                return self._failed(request, str(problem), usage, REFUSED_REASON)
            except Refused as problem:
                # Of a wrong setting it may do better another time.
                own_fault = await self._takes_such(request, usage)
                return self._given_up(request, str(problem), usage, REFUSED_REASON if own_fault else None)
            except CutOff as problem:
                hint = "Raise teacher.max_rationale_tokens, or have a model that thinks before it answers think less. "
                return self._given_up(request, str(problem), usage, REFUSED_REASON, hint)
            except CotdError as problem:
                self.fatal = problem
                return None
            else:
                self._heard()
                self.proven.add(form_of(request))
                return answer
            finally:
                self.tokens.settle(booked, usage.tokens - before)
            if self.fatal:
                return self._given_up(request, str(failure), usage)
            if failure.waits:
                limited_tries += 1
                spread = self._backoff(limited_tries)
                self._pause(failure, spread)
                if time.monotonic() - max(began, self.answered_at) > PATIENCE_SECONDS + 2 * self.longest_pause:
                    return self._given_up(request, str(failure), usage)
                continue
            tries += 1
            answers += failure.answered
            if tries > self.config.retries or answers >= PAID_TRIES:
                return self._given_up(request, str(failure), usage)
            if failure.paid and not self.may_pay_again(request):
                return self._failed(request, f"{failure}; teacher.budget has no room for another try", usage, None)
            await asyncio.sleep(self._backoff(tries) * random.uniform(0.5, 1.0))

    async def _takes_such(self, request: Request, usage: Usage) -> bool:
        """Whether the server takes requests of this form, so that what it has against this one is its text.

        Where none of them has succeeded yet it is asked with a harmless text; what refuses that too ends the run.
        """
        async with self.probing:
            if form_of(request) in self.proven:
                return True
            if self.fatal:
                return False
            self.requests.take(1)
            try:
                await self._try(replace(request, prompt=PROBE), usage)
            except (TeacherRefused, CutOff):
                pass
            except Again as problem:
                if not problem.answered:
                    return False
            except Refused as problem:
                self.fatal = CotdError(
                    f"{self.url} refuses all requests of this kind, whatever their text ({problem}). Check what they are made "
                    "of: teacher.api.server, json_answers, max_tokens_field, extra_body."
                )
                return False
            except CotdError as problem:
                self.fatal = problem
                return False
            self.proven.add(form_of(request))
            return True

    def _backoff(self, tries: int) -> float:
        """Seconds to wait after so many tries, the first being 1."""
        return min(LONGEST_BACKOFF, self.config.backoff_seconds * 2.0 ** min(tries - 1, 30))

    def _heard(self) -> None:
        """The server has answered."""
        self.failed_in_a_row = 0
        self.answered_at = time.monotonic()

    def _pause(self, failure: Again, seconds: float) -> None:
        """Lets every request wait: a rate limit is the account's. `seconds` where the server does not say how long."""
        if failure.after is not None and failure.after > LONGEST_RETRY_AFTER:
            self.fatal = CotdError(
                f"{self.config.base_url} asks to wait {failure.after:,.0f} s (Retry-After; {failure}). "
                "What is done is kept; the same command, run then, goes on from there."
            )
            return
        pause = seconds * random.uniform(0.5, 1.0) if failure.after is None else failure.after
        self.longest_pause = max(self.longest_pause, pause)
        if pause >= 60 and time.monotonic() + pause > self.resume_at + 1:
            say(f"  {self.config.base_url} asks to wait {pause:,.0f} s ({failure})")
        self.resume_at = max(self.resume_at, time.monotonic() + pause)

    async def _turn(self, tokens: float, spread: float) -> Booking | None:
        """Waits until a Retry-After and the rate limits allow another request; None where no more are to be made.

        Args:
            tokens: to book. spread: over so many seconds after a pause those who waited come back; it grows with a
                request's tries, until as many come at once as the server takes.
        """
        jitter = random.uniform(0, max(spread, self.config.backoff_seconds))
        while True:
            while not self.fatal and (pause := self.resume_at + jitter - time.monotonic()) > 0:
                await asyncio.sleep(min(pause, 1.0))
            async with self.gate:
                while not self.fatal and (wait := max(self.requests.wait(1), self.tokens.wait(tokens))) > 0:
                    await asyncio.sleep(min(wait, 1.0))
                if self.fatal:
                    return None
                if self.resume_at <= time.monotonic():
                    self.requests.take(1)
                    return self.tokens.take(tokens)

    async def _try(self, request: Request, usage: Usage) -> Completion:
        """One try."""
        try:
            response = await asyncio.wait_for(
                self.http.post(self.url, json=self.body(request)), timeout=self.config.timeout_seconds
            )
        except (TimeoutError, httpx.TimeoutException) as error:
            sent = not isinstance(error, (httpx.ConnectTimeout, httpx.PoolTimeout))
            raise Again(f"no answer within {self.config.timeout_seconds:g} s", paid=sent) from error
        except httpx.RequestError as error:
            reason = f"the connection failed: {self.plain(str(error) or type(error).__name__)}"
            raise Again(reason, paid=not isinstance(error, httpx.ConnectError)) from error
        self.check_status(response)
        try:
            answer = read_answer(request, response.json(), self.config.endpoint == "chat", usage, self.count)
        except ODD as error:  # not JSON, or not an answer's
            raise Again("the server's answer is not what an OpenAI-compatible server sends", answered=True) from error
        except NoScores as error:
            if form_of(request) in self.proven:
                raise Again("the answer has no log-probabilities", answered=True) from error
            raise CotdError(
                f"{self.url} gives no log-probabilities, which strategy score_then_explain needs. Set strategy: chain_of_thought."
            ) from error
        return answer

    def body(self, request: Request) -> dict[str, Any]:
        """A request's sampling parameters, which are vLLM's, as the endpoint names them."""
        sampling = dict(request.sampling)
        chat = self.config.endpoint == "chat"
        content: dict[str, Any] = (
            {"messages": [{"role": "user", "content": request.prompt}]} if chat else {"prompt": request.prompt}
        )
        limit = self.config.max_tokens_field if chat else "max_tokens"
        body = {"model": self.model, **content, limit: sampling.pop("max_tokens")}
        structured = sampling.pop("structured_outputs", {})
        sampling.pop("label_words", None)
        if "json" in structured:
            schema = {"name": "answer", "strict": True, "schema": structured["json"]}
            whole = self.config.json_answers == "schema"
            body["response_format"] = {"type": "json_schema", "json_schema": schema} if whole else {"type": "json_object"}
        elif structured:
            body["structured_outputs"] = structured
        # null in extra_body takes a parameter out, for models that refuse it.
        return {k: v for k, v in {**body, **sampling, **self.config.extra_body}.items() if v is not None}

    def check_status(self, response: httpx.Response) -> None:
        """Raises for anything but success."""
        status = response.status_code
        if status < 300:
            return
        reason = f"HTTP {status}{self._message(response)}"
        if status == 429 and "insufficient_quota" in response.text:
            raise CotdError(f"the account at {self.config.base_url} has no quota left ({reason}).")
        if status == 429 and "request too large" in response.text.lower():
            raise Refused(reason)  # larger than a minute's allowance: no wait helps
        if status in RETRIED or status >= 500:
            after = retry_after(response.headers)
            raise Again(reason, after, waits=status == 429 or after is not None)
        if status in (401, 403):
            name = self.config.key_env
            how = (
                f"Check the key in the environment variable {name}"
                if name
                else "Name the key's variable in teacher.api.key_env"
            )
            raise CotdError(f"{self.config.base_url} refuses the key ({reason}). {how}.")
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
            plain = response.json()
            error = plain.get("error", plain)
            message = error.get("message") if isinstance(error, dict) else error
        except ODD:
            message = response.text
        # The key goes first: a message that is cut may still hold a part of it.
        message = " ".join(self.plain(str(message or "")).split())
        return f": {message[:200]}" if message else ""

    def plain(self, message: str) -> str:
        """A message without the key, which can be stored."""
        return whole_characters(message.replace(self.key, "[key]") if self.key else message)

    def _given_up(self, request: Request, reason: str, usage: Usage, kind: str | None = None, hint: str = "") -> Completion:
        """A request has failed. When nothing but failures comes in, the rows are not to blame, and the run ends."""
        self.failed_in_a_row += 1
        many = max(HOPELESS, 2 * self.config.concurrency) if self.proven else HOPELESS
        if self.failed_in_a_row >= many and self.fatal is None:
            self.fatal = CotdError(
                f"the last {self.failed_in_a_row} requests to {self.config.base_url} all failed, the last one with: {reason}. "
                f"{hint}What is done is kept; the same command goes on from there."
            )
        return self._failed(request, reason, usage, kind)

    def _failed(self, request: Request, reason: str, usage: Usage, kind: str | None) -> Completion:
        tokens = {"prompt_tokens": usage.prompt_tokens, "output_tokens": usage.output_tokens}
        return completion(request.key, error=self.plain(reason)[:LONGEST_REASON], finish_reason=kind, **tokens)
