"""The budget of an annotation run: what it has used, and whether it may ask for more."""

from __future__ import annotations

from collections.abc import Callable

from cotd.teachers.config import BudgetConfig
from cotd.teachers.requests import Request
from cotd.teachers.store import Completion


class Budget:
    """What a run has used, and whether another request may be made within its limits.

    A request counts with its prompt and the longest completion it may have until it is completed, once for each try that may
    be paid for; so the limits are never passed by more than the prompts' token counts were off.

    Attributes:
        reached: which limit, once one has kept a request from being made.
    """

    def __init__(self, config: BudgetConfig, count: Callable[[str], int]):
        self.config = config
        self.count = count
        self.prompt_tokens = self.output_tokens = 0
        self.reached: str | None = None
        self._reserved: dict[str, tuple[int, int]] = {}  # request key → prompt and output tokens
        self._reserved_prompt = self._reserved_output = 0

    @property
    def cost(self) -> float | None:
        return self.config.cost(self.prompt_tokens, self.output_tokens)

    def reserve(self, request: Request) -> bool:
        """Whether a request may be made now; if so it counts from now on."""
        exceeded = self._take(request)
        self.reached = exceeded or self.reached
        return exceeded is None

    def extend(self, request: Request) -> bool:
        """Whether a request that was made may be made once more, and paid again; if so it counts once more."""
        return self._take(request) is None

    def _take(self, request: Request) -> str | None:
        """Reserves a try of a request, or says which limit it would exceed."""
        config = self.config
        if config.max_tokens is None and config.max_cost is None:
            return None
        prompt_tokens, output_tokens = self.count(request.prompt), int(request.sampling["max_tokens"])
        prompt = self.prompt_tokens + self._reserved_prompt + prompt_tokens
        output = self.output_tokens + self._reserved_output + output_tokens
        cost = config.cost(prompt, output)
        if config.max_tokens is not None and prompt + output > config.max_tokens:
            return f"max_tokens {config.max_tokens:,}"
        if config.max_cost is not None and cost is not None and cost > config.max_cost:
            return f"max_cost {config.max_cost:g}"
        earlier = self._reserved.get(request.key, (0, 0))
        self._reserved[request.key] = earlier[0] + prompt_tokens, earlier[1] + output_tokens
        self._reserved_prompt += prompt_tokens
        self._reserved_output += output_tokens
        return None

    def book(self, completion: Completion) -> None:
        """Counts what a completion, or a failure, has used in place of what was reserved for it."""
        prompt_tokens, output_tokens = self._reserved.pop(completion["key"], (0, 0))
        self._reserved_prompt -= prompt_tokens
        self._reserved_output -= output_tokens
        self.prompt_tokens += completion["prompt_tokens"] or 0
        self.output_tokens += completion["output_tokens"] or 0
