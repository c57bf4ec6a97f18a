"""How good a student's rationales are, compared with the teacher's and with the student's own labels."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from cotd.tasks.base import Task
from cotd.utils.text import words


def rouge_l(written: str, reference: str) -> float:
    """ROUGE-L of two texts: the F-measure of their longest common subsequence of words (Lin 2004, section 3.1, β = 1).

    Words are runs of letters and digits, in lower case, and are not stemmed. In [0, 1]; 0 if a text has no word.
    """
    a, b = (words(text) for text in (written, reference))
    lengths = [0] * (len(b) + 1)  # of the longest common subsequence of the words of `a` so far and the first j of `b`
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, 1):
            diagonal, lengths[j] = lengths[j], diagonal + 1 if word == other else max(lengths[j], lengths[j - 1])
    return 2 * lengths[-1] / (len(a) + len(b)) if lengths[-1] else 0.0


def stated_label(rationale: str, task: Task, choices: Sequence[str] | None = None) -> str | None:
    """The answer that a rationale names: the only one of the options in it, or, where answers are free, the last one.

    An option within a longer one does not count: "bug report" does not name "bug". None if no or several options are named.
    Negations are not understood.

    Args:
        choices: the example's own options.
    """
    options = task.options(choices)
    if options is None:
        return task.find(rationale)
    spans = [(m.span(), option) for option in options for m in re.finditer(task.label_pattern(option), rationale)]

    def within_longer(start: int, end: int) -> bool:
        return any(a <= start and end <= b and b - a > end - start for (a, b), _ in spans)

    named = {option for span, option in spans if not within_longer(*span)}
    return named.pop() if len(named) == 1 else None


def score_rationales(
    written: Sequence[str],
    predicted: Sequence[str | None],
    task: Task,
    teacher: Sequence[str] | None = None,
    choices: Sequence[Sequence[str]] | None = None,
) -> dict[str, float]:
    """Metrics of a student's rationales.

    Args:
        predicted: the answer that the student gives to each of the same examples.
        teacher: the teacher's rationale of each, "" if it has none.
        choices: the options of each, where examples have their own.

    Returns:
        `n_rationales`; `rationale_states_label`, the fraction that names one answer; `rationale_agrees`, the fraction of those
        that name the predicted one (absent if there are none); `rationale_rouge_l`, the mean over the `n_rouge_l` examples with
        a rationale of the teacher (absent if there are none). All but counts are in [0, 1].
    """
    each = [None] * len(written) if choices is None else choices
    stated = [stated_label(why, task, own) for why, own in zip(written, each, strict=True)]
    agree = [label == p for label, p in zip(stated, predicted, strict=True) if label is not None]
    metrics = {"n_rationales": len(written), "rationale_states_label": len(agree) / len(written)}
    if agree:
        metrics["rationale_agrees"] = float(np.mean(agree))
    pairs = [pair for pair in zip(written, teacher or [""] * len(written), strict=True) if pair[1]]
    if pairs:
        metrics |= {"n_rouge_l": len(pairs), "rationale_rouge_l": float(np.mean([rouge_l(*pair) for pair in pairs]))}
    return metrics
