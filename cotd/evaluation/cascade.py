"""A cascade: a small student answers what it is sure of, and hands the rest on to a larger one.

How sure it must be is chosen on validation examples: by what both students answered to the same ones, or by the small one's
risk-coverage curve (El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017): how many of them it answers at each confidence, and how
many of those right.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from cotd.data.table import encode_ids
from cotd.errors import CotdError
from cotd.students.base_models import find_student
from cotd.students.validated import Validated, read_validated
from cotd.tasks.registry import parse_task

POINTS = 101  # of a curve, at most: one for each percent of the examples
EVERYTHING = math.nextafter(1.0, 2.0)  # the threshold that no confidence reaches
STUDENT: Final = "student"  # who gave an answer
ESCALATED: Final = "escalated"
BELOW = "auto, within=W, accuracy=A, share=S, or a confidence from 0 to 1"
# Of auto: how much less accurate than the larger student alone the two may be, a standard error on some 1,000 examples; and the
# share that is handed on for that at most, well below one half, so that a median text does not wait for the larger student.
WITHIN, MOST = 0.01, 0.4


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
    """What a cascade predicts, of two students' predictions of the same examples (see `tabulate`).

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


def validated_answers(table: pd.DataFrame) -> Validated:
    """What a student's folder keeps of its predictions of validation examples (see `tabulate`), which are chosen answers."""
    right = (table["predicted"] == table["gold"]).to_numpy(dtype=bool)
    return Validated(encode_ids(table["example_id"].to_list()), table["score"].to_numpy(dtype=float), right)


class Operating(NamedTuple):
    """A cascade on validation examples at one threshold.

    Attributes:
        threshold: the confidence below which a text is handed on. share: of the examples that are. accuracy: of the two together.
    """

    threshold: float
    share: float
    accuracy: float


def operating_points(small: Validated, large: Validated) -> list[Operating]:
    """A cascade on the examples that both students were validated on, from all of them handed on to none."""
    _, own, others = np.intersect1d(small.ids, large.ids, return_indices=True)
    order = np.argsort(-small.confidence[own], kind="stable")
    confidence, kept, handed = small.confidence[own][order], small.right[own][order], large.right[others][order]
    n = len(order)
    right = np.append(0, np.cumsum(kept)) + handed.sum() - np.append(0, np.cumsum(handed))  # if the surest 0 to N are kept
    last = np.flatnonzero(np.diff(confidence, append=-np.inf) < 0) + 1  # of the examples of equal confidence, all or none are
    points = [Operating(float(confidence[i - 1]), 1 - i / n, float(right[i] / n)) for i in last.tolist()]
    return [Operating(EVERYTHING, 1.0, float(right[0] / n)), *points]


def threshold_within(points: Sequence[Operating], within: float) -> float:
    """The least confidence that leaves a cascade at most so much less accurate than its larger student alone, as all higher ones do.

    A few examples make the accuracy go up and down with the confidence: the least one of all would be chosen by luck too often.

    Args:
        points: see `operating_points`. within: a difference of accuracies, from 0 to 1.
    """
    least = points[0].accuracy - within - 1e-9
    return list(itertools.takewhile(lambda point: point.accuracy >= least, points))[-1].threshold


def threshold_auto(points: Sequence[Operating]) -> float:
    """`threshold_within` WITHIN, unless more than MOST of the examples would be handed on: then the one that hands on so many."""
    return min(threshold_within(points, WITHIN), max(p.threshold for p in points if p.share <= MOST + 1e-9))


class Below(NamedTuple):
    """How the threshold is chosen.

    Attributes:
        rule: "auto", "within", "accuracy", "share" or "confidence". value: of all but the first, from 0 to 1.
    """

    rule: str
    value: float = 0.0


def parse_below(text: str) -> Below:
    """Reads "auto", "within=0.02", "accuracy=0.85", "share=0.2" or "0.8".

    Raises:
        CotdError: it is none of these.
    """
    if text.strip() == "auto":
        return Below("auto")
    match = re.fullmatch(r"(?:(within|accuracy|share)=)?(\d*\.?\d+)", text.strip())
    if not match or not 0 <= float(match[2]) <= 1:
        raise CotdError(f"below '{text}' is not {BELOW}.")
    return Below(match[1] or "confidence", float(match[2]))


def choose_threshold(below: str, small: str | Path, large: str | Path) -> float:
    """The confidence below which a cascade hands a text on.

    "within=W" is the least down to which the two students together were less accurate than the large one alone by at most W, on
    the validation examples of both, and "auto" is within=0.01, but hands on no more than four in ten. By the small student's own
    answers, "accuracy=A" is that from which they were right so often, and "share=S" that below which the share S of them was.

    Args:
        small, large: students by any name, see `find_student`.

    Raises:
        CotdError: the two cannot be a cascade, or lack what the choice is made by; all problems at once.
    """
    rule, value = parse_below(below)
    (folder, card), (other_folder, other_card) = (find_student(str(student)) for student in (small, large))
    if problems := cascade_problems(card, other_card):
        raise CotdError(*problems)
    if rule == "confidence":
        return value
    if (own := read_validated(folder)) is None:
        raise CotdError(
            f"the small student came without its answers to validation examples, from which '{below}' follows. "
            "Give a confidence: --below 0.8."
        )
    if rule in ("auto", "within"):
        others = read_validated(other_folder)
        if others is None or np.isin(own.ids, others.ids).mean() < 0.5:
            raise CotdError(
                f"the two students were validated on different examples, and '{below}' compares their answers to the same ones. "
                "Give the share to hand on, --below share=0.2, or how accurate the rest must be, --below accuracy=0.9."
            )
        points = operating_points(own, others)
        return threshold_auto(points) if rule == "auto" else threshold_within(points, value)
    curve = risk_coverage(own.confidence, own.right)
    return threshold_for_share(curve, value) if rule == "share" else threshold_for_accuracy(curve, value)


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
