"""Trials of a tiny random T5 that take a second or two, and what is asked of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from cotd.data.truncation import Truncation
from cotd.students.backends.base import Backend
from cotd.students.student import Prediction, Student
from cotd.training.config import TrainingConfig
from cotd.training.encoding import EncodedPairs, Limits, encode, encode_here
from cotd.training.folder import TrialFolder
from cotd.training.train import train_trial
from cotd.training.trial import Trial
from tests.tasks import SENTIMENT

SETTINGS = {
    "optimizer": "adamw",
    "steps": 8,
    "batch_size": 8,
    "eval_every": 2,
    "warmup_steps": 0,
    "learning_rate": 1e-2,
    "dropout": 0.0,
}

# Predictions of test examples, for what does not look at them.
SCORED = {
    "example_id": ["a", "b"], "gold": ["positive", "negative"], "predicted": ["positive", "negative"], "score": [0.9, 0.9],
    "probability_positive": [0.9, 0.1], "probability_negative": [0.1, 0.9], "truncated": [False, False],
}  # fmt: skip

Trained = tuple[Trial, TrialFolder, dict[str, Any]]


def make_trial(base: Path, method: str = "finetune", fraction: float = 1.0, seed: int = 0, **settings: Any) -> Trial:
    training = TrainingConfig(**{**SETTINGS, **settings})
    return Trial(method, fraction, "tiny", seed, str(base), training, SENTIMENT.to_dict(), "b", "r", "a")


def encode_pairs(
    pairs: pd.DataFrame, backend: Backend, max_input: int, max_target: int, truncation: Truncation = "head"
) -> EncodedPairs:
    """Pairs as token ids, their examples numbered as they come."""
    positions = {example_id: i for i, example_id in enumerate(dict.fromkeys(pairs["example_id"]))}
    limits = Limits(max_input, max_target, truncation)
    return encode_here(lambda folder: encode([(positions, pairs)], backend, limits, len(positions), folder))


def make_folder(path: Path) -> TrialFolder:
    path.mkdir(parents=True)
    return TrialFolder(path)


def parameters(folder: TrialFolder) -> dict[str, torch.Tensor]:
    return dict(Student.load(folder.student, device="cpu").model.named_parameters())


def timeless(result: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in result.items() if "seconds" not in k and k != "time"}


def loss_by_hand(model: Any, tokenizer: Any, pairs: pd.DataFrame, prompt: Sequence[int] = ()) -> float:
    """Mean -log p of the target tokens after the decoder's prompt, a pair at a time, without padding."""
    total, count = 0.0, 0
    for pair in pairs.itertuples():
        prefix = "predict: " if pair.target_kind == "label" or prompt else "explain: "
        source = torch.tensor([tokenizer(prefix + pair.text)["input_ids"]])
        target = tokenizer(pair.target)["input_ids"]
        shifted = torch.tensor([[0, *prompt, *target[:-1]]])
        with torch.no_grad():
            logits = model(input_ids=source, decoder_input_ids=shifted).logits[0, len(prompt) :]
        log_p = torch.log_softmax(logits.double(), dim=-1)
        total -= sum(float(log_p[i, token]) for i, token in enumerate(target))
        count += len(target)
    return total / count


def train_killed_and_resumed(
    killed_at: int, trial: Trial, folder: TrialFolder, examples: pd.DataFrame, annotations: pd.DataFrame | None
) -> list[float]:
    """Stops a trial as it scores a step, trains it again, and returns the steps that the second attempt scored."""

    def kill(point: dict[str, float]) -> None:
        if point["step"] == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_trial(trial, folder, examples, annotations, on_score=kill)
    assert not folder.done
    resumed: list[float] = []
    train_trial(trial, folder, examples, annotations, on_score=lambda point: resumed.append(point["step"]))
    return resumed


@contextmanager
def scripted_scores(examples: pd.DataFrame, right: Sequence[int]) -> Iterator[list[dict[str, torch.Tensor]]]:
    """Each validation score in turn has so many of the 24 examples right; gives the weights that were scored so far."""
    gold = list(examples.loc[examples["split"] == "validation", "label"])
    other = {"positive": "negative", "negative": "positive"}
    weights: list[dict[str, torch.Tensor]] = []

    def predict(student: Student, *_: Any, **__: Any) -> list[Prediction]:
        weights.append({name: p.detach().clone() for name, p in student.model.named_parameters()})
        labels = [label if i < right[len(weights) - 1] else other[label] for i, label in enumerate(gold)]
        return [Prediction(label, 1.0, dict.fromkeys(other, 0.5), False) for label in labels]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Student, "predict", predict)
        patch.setattr("cotd.training.train.predictions_table", lambda *_: pd.DataFrame(SCORED))
        yield weights
