"""A cascade: a small student answers what it is sure of, and hands the rest on to a larger one.

How sure it must be is read off its risk-coverage curve on validation examples (El-Yaniv and Wiener 2010; Geifman and El-Yaniv
2017): how many of them it answers at each confidence, and how many of those right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from cotd.errors import CotdError
from cotd.tasks.registry import parse_task

POINTS = 101  # of a curve, at most: one for each percent of the examples
EVERYTHING = math.nextafter(1.0, 2.0)  # the threshold that no confidence reaches
STUDENT: Final = "student"  # who gave an answer
ESCALATED: Final = "escalated"
BELOW = "auto, accuracy=A, share=S, or a confidence from 0 to 1"


class Point(NamedTuple):
    """A point of a risk-coverage curve.

    Attributes:
        confidence: probability of the predicted answer.
        coverage: share of the examples whose confidence is at least that.
        accuracy: share of those that are answered right.
    """

    confidence: float
    coverage: float
    accuracy: float


def risk_coverage(confidence: Any, correct: Any) -> list[Point]:
    """The risk-coverage curve, from the surest answers to all of them, in at most POINTS points.

    Args:
        confidence: (N,) probabilities of the predicted answers. correct: (N,) whether each is right.
    """
    confidence, correct = np.asarray(confidence, dtype=float), np.asarray(correct, dtype=bool)
    order = np.argsort(-confidence, kind="stable")
    confidence, right = confidence[order], np.cumsum(correct[order])
    last = np.flatnonzero(np.diff(confidence, append=-np.inf) < 0)  # the last example of each confidence
    coverage = (last + 1) / len(order)
    shown = np.unique(np.searchsorted(coverage, np.linspace(0, 1, POINTS) - 1e-9))
    return [Point(float(confidence[n]), (n + 1) / len(order), float(right[n] / (n + 1))) for n in last[shown].tolist()]


def threshold_for_accuracy(curve: Sequence[Point], accuracy: float) -> float:
    """The least confidence from which answers are right at least so often; EVERYTHING if there is none."""
    return min((p.confidence for p in curve if p.accuracy >= accuracy), default=EVERYTHING)


def threshold_for_share(curve: Sequence[Point], share: float) -> float:
    """The confidence below which at most this share of the examples is, and as much of it as the curve tells apart."""
    return max(p.confidence for p in curve if p.coverage >= 1 - share - 1e-9)


def cascade_predictions(small: pd.DataFrame, large: pd.DataFrame, threshold: float) -> pd.DataFrame:
    """What a cascade predicts, of two students' predictions of the same examples (see `predictions_table`).

    Returns:
        The larger student's row of each example that the small one is less sure of than `threshold`, else the small one's, in the
        small one's order; and `answered_by`, "student" or "escalated". `score_predictions` gives its accuracy.

    Raises:
        CotdError: the tables are of different examples.
    """
    if set(small["example_id"]) != set(large["example_id"]) or len(small) != len(large):
        raise CotdError(
            f"the two students predicted different examples ({len(small):,} and {len(large):,} rows). Give predictions of the same."
        )
    uncertain = small["score"] < threshold
    others = large[large["example_id"].isin(small["example_id"][uncertain])]
    parts = [small[~uncertain].assign(answered_by=STUDENT), others.assign(answered_by=ESCALATED)]
    return pd.concat(parts).set_index("example_id").loc[small["example_id"]].reset_index()


class Below(NamedTuple):
    """How the threshold is chosen.

    Attributes:
        rule: "auto", "accuracy", "share" or "confidence". value: of the last three, from 0 to 1.
    """

    rule: str
    value: float = 0.0


def parse_below(text: str) -> Below:
    """Reads "auto", "accuracy=0.85", "share=0.2" or "0.8".

    Raises:
        CotdError: it is none of these.
    """
    match = re.fullmatch(r"(?:(accuracy|share)=)?(\d*\.?\d+)", text.strip())
    if text.strip() == "auto":
        return Below("auto")
    if not match or not 0 <= float(match[2]) <= 1:
        raise CotdError(f"below '{text}' is not {BELOW}.")
    return Below(match[1] or "confidence", float(match[2]))


def choose_threshold(below: str, small: dict[str, Any], large: dict[str, Any]) -> float:
    """The confidence below which a cascade hands a text on.

    "auto" is the least confidence from which the small student's answers were as accurate on validation examples as all those of
    the large one; "accuracy=A" that from which they were right so often; "share=S" that below which the share S of them was.

    Args:
        small, large: the students' cards.

    Raises:
        CotdError: the two cannot be a cascade, or the cards lack what the choice is made by; all problems at once.
    """
    rule, value = parse_below(below)
    problems = cascade_problems(small, large)
    curve = [Point(*point) for point in small.get("risk_coverage") or ()]
    validated, reference = ((card.get("metrics") or {}).get("validation") or {} for card in (small, large))
    if rule != "confidence" and not problems:
        advice = "Give a confidence: --below 0.8."
        if not curve:
            problems.append(f"the card of the small student has no risk-coverage curve, from which '{below}' follows. {advice}")
        elif rule == "auto" and validated.get("n") != reference.get("n"):
            problems.append(
                f"the two students were validated on different examples, and 'auto' compares them on those. {advice}"
            )
    if problems:
        raise CotdError(*problems)
    if rule == "confidence":
        return value
    if rule == "share":
        return threshold_for_share(curve, value)
    return threshold_for_accuracy(curve, reference["accuracy"] if rule == "auto" else value)


def cascade_problems(small: dict[str, Any], large: dict[str, Any]) -> list[str]:
    """Why two students, by their cards, cannot be a cascade."""
    first, second = tasks = [parse_task(card["task"]) for card in (small, large)]
    if first.kind != second.kind or set(first.labels) != set(second.labels):
        described = " and ".join(f"'{task.name}' ({task.expected()})" for task in tasks)
        return [f"the two students have different tasks: {described}. Escalate to a student of the same answers."]
    problems = []
    if first.free_answers:
        problems.append(
            f"the answers of the task '{first.name}' are free and have no confidence: nothing says which to hand on. Serve one student."
        )
    problems += [
        f"the student of the method '{card.get('method')}' reads the teacher's rationale with each text. Name one of another method."
        for card in (small, large)
        if card.get("rationale_as_input")
    ]
    return problems


def handed_on(scores: Sequence[float | None], threshold: float) -> list[int]:
    """The positions of the answers that a student is less sure of than `threshold`."""
    return [i for i, score in enumerate(scores) if score is not None and score < threshold]
