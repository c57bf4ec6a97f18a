"""Another try of a request whose answer was of no use."""

from __future__ import annotations

from dataclasses import replace

from cotd.completions import Request

# It is sampled: at temperature 0 the answer would be the same again. Its seeds are those of no sample (teacher.samples).
RETRY_TEMPERATURE, SEEDS_A_TRY = 0.7, 64
MOST_TRIES = 100


def another_try(request: Request, number: int) -> Request | None:
    """A request for the `number`-th time after the first; None where it would be the same, as of label scores, or too often.

    It has a key of its own, so that the store keeps each try's answer.
    """
    if number == 0:
        return request
    if "seed" not in request.sampling or number > MOST_TRIES:
        return None
    sampling = dict(request.sampling)
    sampling["seed"] += number * SEEDS_A_TRY
    sampling["temperature"] = max(sampling["temperature"], RETRY_TEMPERATURE)
    return replace(request, sampling=sampling)
