"""Between a strategy and an engine: what the store knows is not asked, what is asked is kept, and a budget is obeyed."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from cotd.errors import CotdError
from cotd.progress import say, track
from cotd.teachers.requests import Request, another_try
from cotd.teachers.store import ANSWERED, FAILED, REFUSED, Completion, CompletionStore, completion
from cotd.teachers.strategies import NOT_ASKED, Tag, Tagged, Usable
from cotd.utils.iteration import batched
from cotd.utils.keys import KeySet
from pipelines.annotate.budget import Budget, Estimate
from pipelines.annotate.planning import Planned

# Answers requests, a batch at a time, in any order; takes them from the iterable as it can.
Complete = Callable[[Iterable[Request]], Iterator[list[Completion]]]
LOOKED_UP_AT_ONCE = 4096
LOST = "the engine gave no answer"
# What becomes of a request: known already, the same as an earlier one, left alone, to be asked; for the n-th time after
# the first it is ASK + n.
KNOWN, REPEATED, LEFT, ASK = range(4)


@dataclass
class Asker:
    """Answers a strategy's requests: see `cotd.teachers.strategies.Ask`.

    Args:
        engine: starts the engine when it is first called.
        only: ids of the reviews that may be asked about besides requests that failed before; None for all.
        retry: also ask again what was refused for good, and what was answered and cannot be used: see `another_try`.

    Attributes:
        usage: requests, those from the store, failed ones, and the tokens of new answers.
        seconds: spent on asking.
    """

    store: CompletionStore
    engine: Callable[[], Complete]
    budget: Budget
    only: set[str] | None = None
    retry: bool = False
    usage: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def __call__(self, requests: Callable[[], Iterable[Tagged]], what: str, usable: Usable) -> Iterator[tuple[Tag, Completion]]:
        """Each request's tag with its answer, once; those that failed have their `error`, and are asked again next time.

        Raises:
            CotdError: nothing was answered, now or before.
        """
        fate = bytearray()  # of each request, a byte each
        seen = KeySet()
        answered, first_error = 0, ""
        for block in batched(requests(), LOOKED_UP_AT_ONCE):
            known, left, tried = self._look_up(block, usable)
            open_ = [r.key for _, r in block if not (r.key in known or r.key in left)]
            repeated = iter(seen.add(open_))
            for tag, request in block:
                if request.key in known:
                    fate.append(KNOWN)
                elif request.key in left:
                    fate.append(LEFT)
                else:
                    fate.append(REPEATED if next(repeated) else ASK + tried.get(request.key, 0))
                if fate[-1] == KNOWN:
                    answered += known[request.key]["error"] is None
                    first_error = first_error or known[request.key]["error"]
                    yield tag, known[request.key]
                elif fate[-1] == LEFT:
                    yield tag, left[request.key]
        del seen
        counts = Counter(min(f, ASK) for f in fate)
        self.usage["requests"] += counts[KNOWN] + counts[ASK]
        self.usage["from_store"] += counts[KNOWN]
        if not counts[ASK]:
            if counts[KNOWN] and not answered and not counts[LEFT]:
                raise CotdError(
                    f"the teacher failed on all {counts[KNOWN]:,} requests for {what}, and would again: {first_error}. Change "
                    "what is wrong with the teacher's settings, or ask it again with --retry-errors."
                )
            return
        title = f"{what} ({counts[KNOWN]:,} in store)" if counts[KNOWN] else what
        to_ask = ((tag, tried_again(r, f - ASK)) for (tag, r), f in zip(requests(), fate, strict=True) if f >= ASK)
        failed, first_failure = 0, ""
        with track(title, counts[ASK], "rows") as advance:
            for tag, answer in self._ask(to_ask, advance):
                if not answer["error"]:
                    answered += 1
                elif answer["finish_reason"] != NOT_ASKED:
                    failed += 1
                    first_failure = first_failure or answer["error"]
                yield tag, answer
        if failed and not answered:
            raise CotdError(f"the teacher failed on all {failed} requests for {what}: {first_failure}")
        if failed:
            self.usage["failed"] += failed
        if not counts[REPEATED]:
            return
        for block in batched((t for t, f in zip(requests(), fate, strict=True) if f == REPEATED), LOOKED_UP_AT_ONCE):
            found, _ = self._latest(block, usable, (ANSWERED, FAILED, REFUSED))
            yield from ((tag, found.get(r.key) or not_asked(r.key, "it was not asked")) for tag, r in block)

    def known(self, requests: list[Request]) -> dict[str, Completion]:
        """key → completion, of those requests that a run would not make; not for what may be tried again."""
        return self.store.answers((r.key for r in requests), (ANSWERED,) if self.retry else (ANSWERED, REFUSED))

    def estimate(self, planned: Iterable[Planned]) -> Estimate:
        """What a run is going to ask, of what `pipelines.annotate.planning.planned_requests` says."""
        seen = KeySet()
        to_ask = from_store = uncertain = prompt_tokens = output_tokens = 0
        for block in batched((((p.review_id, p), p.request) for p in planned), LOOKED_UP_AT_ONCE):
            known, left, _ = self._look_up(block, lambda tag, answer: tag[1].usable(answer))
            wanted = [(tag, request) for tag, request in block if request.key not in left]
            repeated = seen.add([request.key for _, request in wanted])
            for (tag, request), again in zip(wanted, repeated, strict=True):
                if again:
                    continue
                if request.key in known:
                    from_store += tag[1].certain
                    continue
                to_ask += 1
                uncertain += not tag[1].certain
                prompt_tokens += self.budget.count(request.prompt)
                output_tokens += int(request.sampling["max_tokens"])
        cost = self.budget.config.cost(prompt_tokens, output_tokens)
        return Estimate(to_ask, from_store, uncertain, prompt_tokens, output_tokens, cost)

    def _look_up(
        self, block: list[Tagged], usable: Usable
    ) -> tuple[dict[str, Completion], dict[str, Completion], dict[str, int]]:
        """key → completion, for what counts as known, and for what is not known and not to be asked either; key → how often
        what is to be asked again has been tried."""
        known, tried = self._latest(block, usable, (ANSWERED, REFUSED))
        if not self.retry:
            return known, {}, {}
        known = {key: answer for key, answer in known.items() if not (key in tried or answer["error"])}
        if self.only is None:
            return known, {}, tried
        failed = self.store.answers((r.key for _, r in block), (FAILED, REFUSED))
        others = {r.key for tag, r in block if tag[0] not in self.only} - known.keys() - failed.keys() - tried.keys()
        return known, {k: not_asked(k, "--retry-errors sends quarantined rows only") for k in others}, tried

    def _latest(
        self, block: list[Tagged], usable: Usable, states: tuple[int, ...]
    ) -> tuple[dict[str, Completion], dict[str, int]]:
        """What the store has of some requests, by their keys: the answer that can be used, else the last.

        Also returned: for those that it has none of that can be used, and that may be asked again, the number of tries.
        """
        found: dict[str, Completion] = {}
        tried: dict[str, int] = {}
        open_: dict[str, Tagged] = {request.key: (tag, request) for tag, request in block}
        number = 0
        while open_:
            keys = {key: again.key for key, (_, r) in open_.items() if (again := another_try(r, number))}
            # A later try that failed may do better another time, and hides no earlier answer.
            answers = self.store.answers(keys.values(), states if number == 0 else (ANSWERED, REFUSED))
            for key, (tag, request) in list(open_.items()):
                answer = answers.get(keys.get(key, ""))
                if answer is None:
                    del open_[key]
                    continue
                found[key] = answer
                tried.pop(key, None)
                if answer["error"] is None and usable(tag, answer):
                    del open_[key]
                elif another_try(request, number + 1):
                    tried[key] = number + 1
            number += 1
        return found, tried

    def _ask(self, requests: Iterator[Tagged], advance: Callable[[int], None]) -> Iterator[tuple[Tag, Completion]]:
        """Asks in rounds: one ends when the budget has no room while answers are awaited, and the next has what they left."""
        complete = self.engine()
        tags: dict[str, Tag] = {}
        held: list[Tagged] = []  # the request that the budget had no room for
        kept = 0

        def admitted() -> Iterator[Request]:
            for tag, request in itertools.chain(held[:], requests):
                held.clear()
                if not self.budget.reserve(request):
                    held.append((tag, request))
                    return
                tags[request.key] = tag
                yield request

        started = time.perf_counter()
        try:
            while True:
                before = kept
                for batch in complete(admitted()):
                    self.store.append(batch)
                    kept += len(batch)
                    for answer in batch:
                        self.budget.book(answer)
                        self.usage["prompt_tokens"] += answer["prompt_tokens"] or 0
                        self.usage["output_tokens"] += answer["output_tokens"] or 0
                        yield tags.pop(answer["key"]), answer
                    advance(len(batch))
                # A row that went in and did not come out would be missing from every table without a word.
                lost = [completion(key, error=LOST, prompt_tokens=0, output_tokens=0) for key in tags]
                self.store.append(lost)
                for answer in lost:
                    self.budget.book(answer)
                    yield tags.pop(answer["key"]), answer
                if not held or kept == before:
                    break
                self.budget.reached = None
        except KeyboardInterrupt:
            say(f"  stopping; {kept:,} new answers are kept in {self.store.directory}")
            raise
        finally:
            self.seconds += time.perf_counter() - started
        if self.budget.reached:
            why = f"teacher.budget.{self.budget.reached} is reached"
            for tag, request in itertools.chain(held, requests):
                yield tag, not_asked(request.key, why)


def tried_again(request: Request, number: int) -> Request:
    again = another_try(request, number)
    assert again is not None, "what cannot be tried again is not asked to be"
    return again


def not_asked(key: str, why: str) -> Completion:
    return completion(key, error=f"not asked: {why}", finish_reason=NOT_ASKED, prompt_tokens=0, output_tokens=0)
