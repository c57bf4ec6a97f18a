"""The budget of an annotation run, and the estimate that is held against it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cotd.teachers.config import BudgetConfig
from cotd.teachers.requests import Request
from cotd.teachers.store import Completion


class Budget:
    """What a run has used, and whether another request may be made within its limits.

    A request counts with its prompt and the longest answer it may have until it is answered, once for each try that may
    be paid for; so the limits are never passed by more than the prompts' token counts were off.
    """

    def __init__(self, config: BudgetConfig, count: Callable[[str], int]):
        self.config = config
        self.count = count
        self.prompt_tokens = self.output_tokens = 0
        self.reached: str | None = None  # which limit, once one has kept a request from being made
        self._reserved: dict[str, tuple[int, int]] = {}
        self._reserved_tokens = [0, 0]

    @property
    def limited(self) -> bool:
        return self.config.max_cost is not None or self.config.max_tokens is not None

    @property
    def cost(self) -> float | None:
        return self.config.cost(self.prompt_tokens, self.output_tokens)

    def reserve(self, request: Request) -> bool:
        """Whether a request may be made now; if so it counts from now on."""
        passed = self._take(request)
        self.reached = passed or self.reached
        return passed is None

    def extend(self, request: Request) -> bool:
        """Whether a request that was made may be made once more, and paid again; if so it counts once more."""
        return self._take(request) is None

    def _take(self, request: Request) -> str | None:
        """Reserves a try of a request, or says which limit it would pass."""
        if not self.limited:
            return None
        needed = self.count(request.prompt), int(request.sampling["max_tokens"])
        prompt = self.prompt_tokens + self._reserved_tokens[0] + needed[0]
        output = self.output_tokens + self._reserved_tokens[1] + needed[1]
        cost, config = self.config.cost(prompt, output), self.config
        if config.max_tokens is not None and prompt + output > config.max_tokens:
            return f"max_tokens {config.max_tokens:,}"
        if config.max_cost is not None and cost is not None and cost > config.max_cost:
            return f"max_cost {config.max_cost:g}"
        before = self._reserved.get(request.key, (0, 0))
        self._reserved[request.key] = before[0] + needed[0], before[1] + needed[1]
        self._add(needed, 1)
        return None

    def book(self, answer: Completion) -> None:
        """Counts what an answer, or a failure, has used in place of what was reserved for it."""
        self._add(self._reserved.pop(answer["key"], (0, 0)), -1)
        self.prompt_tokens += answer["prompt_tokens"] or 0
        self.output_tokens += answer["output_tokens"] or 0

    def _add(self, tokens: tuple[int, int], sign: int) -> None:
        for i, n in enumerate(tokens):
            self._reserved_tokens[i] += sign * n


@dataclass(frozen=True)
class Estimate:
    """What a run is going to ask.

    Attributes:
        requests: those that the store has no answer for. from_store: the others.
        uncertain: how many of those may turn out not to be wanted.
        prompt_tokens: about how many they have. output_tokens: at most how many the answers have.
        cost: at most, about; None without prices.
    """

    requests: int
    from_store: int
    uncertain: int
    prompt_tokens: int
    output_tokens: int
    cost: float | None

    def __str__(self) -> str:
        cost = "prices are not configured" if self.cost is None else f"at most about {self.cost:,.2f}"
        most = "at most " if self.uncertain else ""
        return (
            f"{most}{self.requests:,} requests to make ({self.from_store:,} answers are in the store): about "
            f"{self.prompt_tokens:,} prompt tokens and at most {self.output_tokens:,} answer tokens; {cost}"
        )
