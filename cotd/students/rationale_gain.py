"""How much likelier a rationale makes its label to a model that reads it with the text."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from cotd.errors import CotdError
from cotd.progress import say
from cotd.students.backends.causal.prompts import RATIONALE_NAME
from cotd.students.backends.choose import make_backend
from cotd.students.backends.kinds import model_kind
from cotd.students.base_models import load_base, read_base
from cotd.tasks.base import Task
from cotd.utils.iteration import batched

MAX_TOKENS = 512  # of text and rationale; what is longer loses the second quarter of the text, see `Truncation`
BATCH = 32


class RationaleGain:
    """A causal model that scores the answers to a text, without a rationale and with one after it.

    Args:
        model: a causal model by any name, trained or not.

    Raises:
        CotdError: see `gain_problem`; or it cannot be loaded.
    """

    def __init__(self, model: str, task: Task):
        import torch

        if problem := gain_problem(model, task):
            raise CotdError(problem)
        say(f"  scoring rationales with {model}")
        weights, tokenizer = load_base(model)
        weights = weights.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.task = task
        self.limit = min(MAX_TOKENS, getattr(weights.config, "max_position_embeddings", MAX_TOKENS))
        self.backend = make_backend(weights, tokenizer, task, {"max_input_tokens": self.limit})
        self._known: dict[bytes, float] = {}  # blocks of annotations are read more than once

    def __call__(
        self, texts: Sequence[str], choices: Sequence[Sequence[str] | None], rationales: Sequence[str], labels: Sequence[str]
    ) -> np.ndarray:
        """log P(label | text, rationale) − log P(label | text), both among the options of the text: (N,).

        Yan et al. 2025, "Towards Efficient CoT Distillation", section 3, judge rationales by the first of the two. The
        difference does not mistake an easy text for a good rationale.
        """
        rows = [(self.task.render(text, own), own, why) for text, own, why in zip(texts, choices, rationales, strict=True)]
        keys = [digest_of(*row, label) for row, label in zip(rows, labels, strict=True)]
        new = [i for i, key in enumerate(keys) if key not in self._known]
        bare = [(text, own) for text, own, _ in rows]
        explained = [(f"{text}\n{RATIONALE_NAME}: {why}", own) for text, own, why in rows]
        before, after = (self.log_probabilities([inputs[i] for i in new]) for inputs in (bare, explained))
        for i, without, given in zip(new, before, after, strict=True):
            position = (self.task.options(choices[i]) or ()).index(labels[i])
            self._known[keys[i]] = given[position] - without[position]
        return np.array([self._known[key] for key in keys])

    def log_probabilities(self, inputs: Sequence[tuple[str, Sequence[str] | None]]) -> list[list[float]]:
        """The log-probability of each option of rendered (text, own options)."""
        import torch

        sources, _ = self.backend.sources([text for text, _ in inputs], "label", self.limit, "head_tail")
        found: dict[int, list[float]] = {}
        for batch in batched(sorted(range(len(inputs)), key=lambda i: len(sources[i])), BATCH):
            with torch.inference_mode():
                if self.task.labels:
                    scores = self.backend.label_scores([sources[i] for i in batch])
                else:
                    options = [self.task.options(inputs[i][1]) or () for i in batch]
                    candidates = [self.backend.targets([self.task.verbalize(o) for o in own]) for own in options]
                    scores = self.backend.score([sources[i] for i in batch], candidates)
            found |= dict(zip(batch, scores.log_softmax(dim=-1).tolist(), strict=True))
        return [found[i] for i in range(len(inputs))]


def gain_problem(model: str, task: Task) -> str | None:
    """Why a model cannot score the rationales of a task, or None.

    Raises:
        CotdError: there is no such model.
    """
    if task.free_answers:
        return (
            f"rationale_helps compares the probabilities of an example's answers, and those of task '{task.name}' are free. Leave "
            "it out."
        )
    if (kind := model_kind(read_base(model)[0])) != "causal":
        return f"rationale_helps needs a causal model, and '{model}' is of kind {kind}. Name another in its setting `model`."
    return None


def digest_of(*parts: Any) -> bytes:
    """Stands for some values in memory."""
    return hashlib.blake2b(repr(parts).encode(), digest_size=16).digest()
