"""Between a strategy and an engine: what the store knows is not asked, new completions are kept, and a budget is obeyed."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from cotd.errors import CotdError
from cotd.progress import say, track
from cotd.teachers.requests import Request, retry_request
from cotd.teachers.store import COMPLETED, FAILED, REFUSED, Completion, CompletionStore, new_completion
from cotd.teachers.strategies import NOT_ASKED, Tag, Tagged, Usable
from cotd.utils.iteration import batched
from cotd.utils.keys import KeySet
from pipelines.annotate.budget import Budget

# Completes requests, a batch at a time, in any order; takes them from the iterable as it can.
Complete = Callable[[Iterable[Request]], Iterator[list[Completion]]]
LOOKUP_ROWS = 4096
LOST = "the engine gave no completion"
# What becomes of a request: known already, the same as an earlier one, skipped, or asked; for the n-th time after the
# first it is ASK + n.
KNOWN, REPEATED, SKIPPED, ASK = range(4)


@dataclass
class Outcome:
    """How many requests were completed, how many failed, and with what at first."""

    completed: int = 0
    failed: int = 0
    first_error: str = ""

    def add(self, completion: Completion) -> None:
        if completion["error"] is None:
            self.completed += 1
        elif completion["finish_reason"] != NOT_ASKED:
            self.failed += 1
            self.first_error = self.first_error or completion["error"]


@dataclass
class Asker:
    """Completes a strategy's requests: see `cotd.teachers.strategies.Ask`.

    Args:
        engine: starts the engine when it is first called.
        only: ids of the examples that may be asked about besides requests that failed before; None for all.
        retry: also ask again what was refused for good, and what cannot be used: see `retry_request`.

    Attributes:
        usage: requests, those from the store, failed ones, and the tokens of new completions.
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
        """Each request's tag with its completion, once; those that failed have their `error`, and are asked again next time.

        Raises:
            CotdError: nothing was completed, now or before.
        """
        fates = bytearray()  # of each request, a byte each
        known, new = Outcome(), Outcome()
        yield from self._from_store(requests(), usable, fates, known)
        counts = Counter(min(fate, ASK) for fate in fates)
        self.usage["requests"] += counts[KNOWN] + counts[ASK]
        self.usage["from_store"] += counts[KNOWN]
        if not counts[ASK]:
            if known.failed and not known.completed and not counts[SKIPPED]:
                raise CotdError(
                    f"the teacher failed on all {known.failed:,} requests for {what}, and would again: {known.first_error}. "
                    "Fix the teacher's settings, or ask it again with --retry-errors."
                )
            return
        title = f"{what} ({counts[KNOWN]:,} in store)" if counts[KNOWN] else what
        tagged = zip(requests(), fates, strict=True)
        to_ask = ((tag, numbered_try(request, fate - ASK)) for (tag, request), fate in tagged if fate >= ASK)
        with track(title, counts[ASK], "rows") as advance:
            for tag, completion in self._from_engine(to_ask, advance):
                new.add(completion)
                yield tag, completion
        if new.failed and not (known.completed or new.completed):
            raise CotdError(f"the teacher failed on all {new.failed} requests for {what}: {new.first_error}")
        if new.failed:
            self.usage["failed"] += new.failed
        if not counts[REPEATED]:
            return
        repeated = (tagged for tagged, fate in zip(requests(), fates, strict=True) if fate == REPEATED)
        for block in batched(repeated, LOOKUP_ROWS):
            latest, _ = self._latest(block, usable, (COMPLETED, FAILED, REFUSED))
            yield from ((tag, latest.get(r.key) or not_asked(r.key, "it was not asked")) for tag, r in block)

    def _from_store(
        self, requests: Iterable[Tagged], usable: Usable, fates: bytearray, outcome: Outcome
    ) -> Iterator[tuple[Tag, Completion]]:
        """The completions of those requests that are not asked; every request's fate is added to `fates`."""
        seen = KeySet()
        for block in batched(requests, LOOKUP_ROWS):
            known, skipped, tries = self.look_up(block, usable)
            settled = known | skipped
            repeated = iter(seen.add([request.key for _, request in block if request.key not in settled]))
            for tag, request in block:
                if request.key in settled:
                    fates.append(KNOWN if request.key in known else SKIPPED)
                    outcome.add(settled[request.key])
                    yield tag, settled[request.key]
                else:
                    fates.append(REPEATED if next(repeated) else ASK + tries.get(request.key, 0))

    def look_up(
        self, block: list[Tagged], usable: Usable
    ) -> tuple[dict[str, Completion], dict[str, Completion], dict[str, int]]:
        """What becomes of some requests, by their keys.

        Args:
            block: requests, tagged with an example id first.

        Returns:
            key → completion, of those that are known; of those that are not, and are not to be asked either; and key → how
            often it was tried, of those that are to be asked again.
        """
        known, tries = self._latest(block, usable, (COMPLETED, REFUSED))
        if not self.retry:
            return known, {}, {}
        known = {key: completion for key, completion in known.items() if not (key in tries or completion["error"])}
        if self.only is None:
            return known, {}, tries
        failed = self.store.find((r.key for _, r in block), (FAILED, REFUSED))
        others = {r.key for tag, r in block if tag[0] not in self.only} - known.keys() - failed.keys() - tries.keys()
        return known, {key: not_asked(key, "--retry-errors sends quarantined rows only") for key in others}, tries

    def _latest(
        self, block: list[Tagged], usable: Usable, states: tuple[int, ...]
    ) -> tuple[dict[str, Completion], dict[str, int]]:
        """What the store has of some requests, by their keys: the completion that can be used, else the last.

        Also returned: for those that it has no usable one of, and that may be asked again, the number of tries.
        """
        latest: dict[str, Completion] = {}
        tries: dict[str, int] = {}
        pending: dict[str, Tagged] = {request.key: (tag, request) for tag, request in block}
        number = 0
        while pending:
            try_keys = {key: again.key for key, (_, r) in pending.items() if (again := retry_request(r, number))}
            # A later try that failed may do better another time, and hides no earlier completion.
            stored = self.store.find(try_keys.values(), states if number == 0 else (COMPLETED, REFUSED))
            for key, (tag, request) in list(pending.items()):
                completion = stored.get(try_keys.get(key, ""))
                if completion is None:
                    del pending[key]
                    continue
                latest[key] = completion
                tries.pop(key, None)
                if completion["error"] is None and usable(tag, completion):
                    del pending[key]
                elif retry_request(request, number + 1):
                    tries[key] = number + 1
            number += 1
        return latest, tries

    def _from_engine(self, requests: Iterator[Tagged], advance: Callable[[int], None]) -> Iterator[tuple[Tag, Completion]]:
        """Asks in rounds: one ends when the budget has no room while requests are in flight, and the next has what they left."""
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

        def keep(batch: list[Completion]) -> Iterator[tuple[Tag, Completion]]:
            self.store.append(batch)
            for completion in batch:
                self.budget.book(completion)
                self.usage["prompt_tokens"] += completion["prompt_tokens"] or 0
                self.usage["output_tokens"] += completion["output_tokens"] or 0
                yield tags.pop(completion["key"]), completion

        started = time.perf_counter()
        try:
            while True:
                kept_before = kept
                for batch in complete(admitted()):
                    kept += len(batch)
                    yield from keep(batch)
                    advance(len(batch))
                # A row that went in and did not come out would be missing from every table without a word.
                yield from keep([new_completion(key, error=LOST, prompt_tokens=0, output_tokens=0) for key in tags])
                if not held or kept == kept_before:
                    break
                self.budget.reached = None
        except (KeyboardInterrupt, SystemExit):
            say(f"  stopping; {kept:,} new completions are kept in {self.store.directory}")
            raise
        finally:
            self.seconds += time.perf_counter() - started
        if self.budget.reached:
            why = f"teacher.budget.{self.budget.reached} is reached"
            for tag, request in itertools.chain(held, requests):
                yield tag, not_asked(request.key, why)


def numbered_try(request: Request, number: int) -> Request:
    """A request for the `number`-th time after the first, where it may be made again."""
    again = retry_request(request, number)
    assert again is not None, "what cannot be tried again is not asked again"
    return again


def not_asked(key: str, why: str) -> Completion:
    return new_completion(key, error=f"not asked: {why}", finish_reason=NOT_ASKED, prompt_tokens=0, output_tokens=0)
