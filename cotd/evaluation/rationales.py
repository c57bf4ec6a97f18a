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


def stated_label(rationale: str, task: Task) -> str | None:
    """The only label whose verbalizer is in a rationale; None if none or several are. Negations are not understood."""
    named = [label for label in task.labels if re.search(task.label_pattern(label), rationale)]
    return named[0] if len(named) == 1 else None


def score_rationales(
    written: Sequence[str], predicted: Sequence[str], task: Task, teacher: Sequence[str] | None = None
) -> dict[str, float]:
    """Metrics of a student's rationales.

    Args:
        predicted: the label that the student predicts for each of the same examples.
        teacher: the teacher's rationale of each, "" if it has none.

    Returns:
        `n_rationales`; `rationale_states_label`, the fraction that names one label; `rationale_agrees`, the fraction of those
        that name the predicted one (absent if there are none); `rationale_rouge_l`, the mean over the `n_rouge_l` examples with
        a rationale of the teacher (absent if there are none). All but counts are in [0, 1].
    """
    stated = [stated_label(why, task) for why in written]
    agree = [label == p for label, p in zip(stated, predicted, strict=True) if label is not None]
    metrics = {"n_rationales": len(written), "rationale_states_label": len(agree) / len(written)}
    if agree:
        metrics["rationale_agrees"] = float(np.mean(agree))
    pairs = [pair for pair in zip(written, teacher or [""] * len(written), strict=True) if pair[1]]
    if pairs:
        metrics |= {"n_rouge_l": len(pairs), "rationale_rouge_l": float(np.mean([rouge_l(*pair) for pair in pairs]))}
    return metrics
