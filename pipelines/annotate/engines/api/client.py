"""One asynchronous client of one OpenAI-compatible endpoint, with many requests in flight, each tried until it is settled.

No Ray here: the work is waiting, one process does thousands of it at once, and rate limits, budget and Retry-After are
the account's, not a worker's. The client runs on an event loop that turns while its completions are waited for.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from cotd.errors import CotdError
from cotd.teachers.requests import Request
from cotd.teachers.store import REFUSED_REASON, Completion
from pipelines.annotate.engines.api.endpoint import Endpoint
from pipelines.annotate.engines.api.errors import CutOff, Refused, TeacherRefused, Transient
from pipelines.annotate.engines.api.pacing import Pace, backoff
from pipelines.annotate.engines.api.responses import Usage, form_of

BATCH_ROWS, BATCH_SECONDS = 64, 2.0  # a batch is kept when it has so many completions, or is so old
# A request that only ever meets the rate limit is given up when no other has been responded to for so long either.
PATIENCE_SECONDS = 600.0
FINISH_SECONDS = 10.0  # what is in flight when Ctrl-C is pressed is paid for: so long it may take to arrive
# Before anything has succeeded few are in flight, more with each that ended, so that a wrong setting costs little.
FIRST_IN_FLIGHT, MOST_IN_FLIGHT_UNPROVEN = 4, 16
HOPELESS = 32  # so many failures and no success: it is not the rows
PROBE = "Say hello."
PAID_TRIES = 3  # of responses that come, are paid for, and are not what was asked for


class ApiClient:
    """Asks one endpoint.

    Args:
        may_pay_again: whether a budget has room for another try of a request whose last one may have been paid for.
        note: is told of each completion as it comes.

    Attributes:
        fatal: why no more requests are made.
        in_flight: the requests that are in flight.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        may_pay_again: Callable[[Request], bool] = lambda request: True,
        note: Callable[[Completion], None] = lambda completion: None,
    ):
        self.endpoint, self.config, self.may_pay_again, self.note = endpoint, endpoint.config, may_pay_again, note
        self.pace = Pace(self.config, stopped=lambda: self.fatal is not None)
        self.fatal: CotdError | None = None
        self.in_flight: set[asyncio.Task[Completion | None]] = set()
        self._done: list[Completion] = []
        self._main: asyncio.Task[list[Completion]] | None = None
        self._ended = 0  # requests
        self._responded_at = time.monotonic()  # when the server last responded
        self._accepted_at = 0.0  # when the last request was sent that the server is known to have taken
        self._failed_in_a_row = 0
        self._probing = asyncio.Lock()

    # --- many requests ----------------------------------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """How many requests may be in flight."""
        few = min(FIRST_IN_FLIGHT + self._ended, MOST_IN_FLIGHT_UNPROVEN)
        return self.config.concurrency if self.endpoint.proven else min(few, self.config.concurrency)

    async def next_batch(self, requests: Iterator[Request]) -> list[Completion]:
        """The next completions, or none when everything is completed; takes requests as capacity gets free.

        Raises:
            CotdError: no request can succeed; completions that came in are returned before.
        """
        self._main = asyncio.current_task()
        deadline = time.monotonic() + BATCH_SECONDS
        while len(self._done) < BATCH_ROWS:
            while self.fatal is None and len(self.in_flight) < self.capacity:
                request = next(requests, None)
                if request is None:
                    break
                self.in_flight.add(asyncio.create_task(self.complete(request)))
            if not self.in_flight or (self._done and time.monotonic() >= deadline):
                break
            await self._collect(BATCH_SECONDS)
        batch, self._done = self._done, []
        if not batch and self.fatal:
            raise self.fatal
        return batch

    def stop(self) -> None:
        """Lets `next_batch` raise asyncio.CancelledError; what is in flight goes on."""
        if self._main is not None:
            self._main.cancel()

    async def finish(self) -> list[Completion]:
        """What is still in flight, as far as it arrives soon."""
        deadline = time.monotonic() + FINISH_SECONDS
        self.fatal = CotdError("stopped")  # no more retries
        while self.in_flight and (left := deadline - time.monotonic()) > 0:
            await self._collect(left)
        batch, self._done = self._done, []
        return batch

    async def _collect(self, seconds: float) -> None:
        done, self.in_flight = await asyncio.wait(self.in_flight, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        self._ended += len(done)
        self._done += [completion for task in done if (completion := task.result()) is not None]

    async def close(self) -> None:
        """Drops what is in flight, and closes the endpoint's connections."""
        for task in self.in_flight:
            task.cancel()
        await asyncio.gather(*self.in_flight, return_exceptions=True)
        await self.endpoint.close()

    # --- one request ------------------------------------------------------------------------------------------------

    async def complete(self, request: Request) -> Completion | None:
        """A completion, with its `error` where every try failed; None, and `fatal` set, where no request can succeed."""
        usage = Usage()
        try:
            return await self._complete(request, usage)
        except Exception as error:  # noqa: BLE001 - whatever a server can send: its row fails, and no other completion is lost
            return self._give_up(request, f"its response could not be read: {type(error).__name__}: {error}", usage)

    async def _complete(self, request: Request, usage: Usage) -> Completion | None:
        most = Usage(self.endpoint.count(request.prompt), int(request.sampling["max_tokens"]))
        tries = responses = limited_tries = 0  # a rate limit is no try: the server has not looked at the request
        began, spread = time.monotonic(), 0.0
        while True:
            booking = await self.pace.turn(most.tokens, spread)
            if booking is None:
                return None
            before, sent_at = usage.tokens, time.monotonic()
            try:
                completion = await self.endpoint.ask(request, usage)
                self._note_response()
                self._accepted_at = max(self._accepted_at, sent_at)
                self.endpoint.proven.add(form_of(request))
                self.note(completion)
                return completion
            except Transient as problem:
                failure = problem
                if failure.paid and usage.tokens == before:  # nobody says for how much
                    usage.add(most)
            except (TeacherRefused, Refused, CutOff, CotdError) as problem:
                return await self._settle(request, problem, usage, sent_at)
            finally:
                self.pace.tokens.settle(booking, usage.tokens - before)
            if self.fatal:
                return self._give_up(request, str(failure), usage)
            if failure.rate_limited:
                limited_tries += 1
                spread = backoff(self.pace.config, limited_tries)
                try:
                    self.pace.pause(failure, spread)
                except CotdError as problem:
                    self.fatal = problem
                    return None
                if time.monotonic() - max(began, self._responded_at) > PATIENCE_SECONDS + 2 * self.pace.longest_pause:
                    return self._give_up(request, str(failure), usage)
                continue
            tries += 1
            responses += failure.responded
            if tries > self.config.retries or responses >= PAID_TRIES:
                return self._give_up(request, str(failure), usage)
            if failure.paid and not self.may_pay_again(request):
                return self.endpoint.failed(request, f"{failure}; teacher.budget has no room for another try", usage)
            await asyncio.sleep(backoff(self.pace.config, tries) * random.uniform(0.5, 1.0))

    async def _settle(self, request: Request, problem: Exception, usage: Usage, sent_at: float) -> Completion | None:
        """What becomes of a request that is not tried again."""
        if isinstance(problem, TeacherRefused):
            self._note_response()
            return self.endpoint.failed(request, str(problem), usage, REFUSED_REASON)
        if isinstance(problem, Refused):
            # Of a wrong setting it may do better another time. What is forbidden may be so to a key that has been revoked.
            since = sent_at if problem.forbidden else 0.0
            kind = REFUSED_REASON if await self._accepts_form(request, usage, since) else None
            if self.fatal:
                return None
            return self._give_up(request, str(problem), usage, kind)
        if isinstance(problem, CutOff):
            hint = "Raise teacher.max_rationale_tokens, or have a model that thinks before it answers think less. "
            return self._give_up(request, str(problem), usage, REFUSED_REASON, hint)
        assert isinstance(problem, CotdError)
        self.fatal = problem
        return None

    async def _accepts_form(self, request: Request, usage: Usage, since: float) -> bool:
        """Whether the server takes requests of this form, so that what it has against this one is its text.

        Where none of them has succeeded yet, or nothing has that was sent since a time, it is asked with a harmless text; what
        refuses that too ends the run.
        """
        async with self._probing:
            if form_of(request) in self.endpoint.proven and self._accepted_at >= since:
                return True
            if self.fatal:
                return False
            self.pace.requests.take(1)
            sent_at = time.monotonic()
            try:
                await self.endpoint.ask(replace(request, prompt=PROBE), usage)
            except (TeacherRefused, CutOff):
                pass
            except Transient as problem:
                if not problem.responded:
                    return False
            except Refused as problem:
                self.fatal = CotdError(problem.advice or str(problem))
                return False
            except CotdError as problem:
                self.fatal = problem
                return False
            self._accepted_at = sent_at
            self.endpoint.proven.add(form_of(request))
            return True

    def _note_response(self) -> None:
        """Records that the server has responded."""
        self._failed_in_a_row = 0
        self._responded_at = time.monotonic()

    def _give_up(self, request: Request, reason: str, usage: Usage, kind: str | None = None, hint: str = "") -> Completion:
        """A request has failed. When nothing but failures comes in, the rows are not to blame, and the run ends."""
        self._failed_in_a_row += 1
        many = max(HOPELESS, 2 * self.config.concurrency) if self.endpoint.proven else HOPELESS
        if self._failed_in_a_row >= many and self.fatal is None:
            self.fatal = CotdError(
                f"the last {self._failed_in_a_row} requests to {self.config.base_url} all failed, the last one with: {reason}. "
                f"{hint}What is done is kept; the same command resumes there."
            )
        return self.endpoint.failed(request, reason, usage, kind)
