"""How a model is doing while it is pretrained: held-out losses, its accuracy as it is, and after a quick finetune."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cotd.config import DataConfig, TrainingConfig
from cotd.pretraining.batches import BatchedCorpus
from cotd.pretraining.config import ProbeConfig
from cotd.reviews import Reviews
from cotd.student import Student
from cotd.task import get_task


def held_out_losses(model: Any, batches: BatchedCorpus, teacher: Any) -> dict[str, float]:
    """Mean losses by objective on chunks that are never trained on, named `held_out_…`."""
    import torch

    was_training = model.training
    model.eval()
    sums: dict[str, list[float]] = defaultdict(list)
    with torch.inference_mode():
        for index in range(len(batches)):
            batch = {k: v.to(model.device) if torch.is_tensor(v) else v for k, v in batches[index].items()}
            for name, value in model.losses(batch, teacher).items():
                sums[name].append(float(value))
    model.train(was_training)
    return {f"held_out_{name}": math.fsum(values) / len(values) for name, values in sums.items()}


def zero_shot(model: Any, tokenizer: Any, validation: pd.DataFrame) -> dict[str, float]:
    """`zero_shot_accuracy`: of the labels that the model scores highest as it is, on gold validation labels."""
    was_training = model.training
    model.eval()
    predicted = Student(model, tokenizer, get_task("sentiment"), {}).predict(list(validation["text"]))
    model.train(was_training)
    return {"zero_shot_accuracy": float(np.mean([p.label == g for p, g in zip(predicted, validation["label"], strict=True)]))}


def probe_reviews(settings: ProbeConfig) -> Reviews:
    """The reviews that the probes train on and are scored on; of the test split only what the trainer insists on."""
    from cotd.sources import load_reviews

    assert settings.source is not None
    return load_reviews(DataConfig(source=settings.source, train_rows=settings.rows, validation_rows=1000, test_rows=32))


def probe(settings: ProbeConfig, model: Any, tokenizer: Any, scratch: Path) -> dict[str, float]:
    """`probe_accuracy`: validation accuracy of a quick finetune of the model as it is, with the trainer that trials use.

    Args:
        scratch: a folder to make, and to leave no trace of.
    """
    import torch

    from cotd.pretraining.model import save_as_t5

    shutil.rmtree(scratch, ignore_errors=True)
    save_as_t5(model, tokenizer, scratch / "base")
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices):  # the run goes on with the random numbers that it would have had
        accuracy = probe_model(settings, scratch / "base", scratch / "trial")
    shutil.rmtree(scratch, ignore_errors=True)
    return accuracy


def probe_model(settings: ProbeConfig, base: Path, scratch: Path) -> dict[str, float]:
    """`probe_accuracy` of a T5 that lies in a folder. The trial's own is `scratch`, and left to be removed."""
    from cotd.training import train_trial
    from cotd.trials import Trial, TrialFolder

    reviews = probe_reviews(settings)
    # The rate for a model that knows nothing yet, whatever it knows: probes are compared along a run, and between runs.
    training = TrainingConfig(
        steps=settings.steps, eval_every=max(1, settings.steps // 4), dropout=0.0, learning_rate=5e-3, truncation="head"
    )  # fmt: skip
    trial = Trial(
        "finetune", 1.0, "probe", 0, str(base), training, "sentiment", base_digest="", reviews_digest="",
        annotations_digest=None,
    )  # fmt: skip
    trial_folder = TrialFolder(scratch)
    trial_folder.path.mkdir(parents=True)
    result = train_trial(trial, trial_folder, reviews.table, None)
    return {"probe_accuracy": result["validation"]["accuracy"]}
