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
from cotd.pretraining.config import PretrainConfig, ProbeConfig
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


def probe(config: PretrainConfig, model: Any, tokenizer: Any, scratch: Path) -> dict[str, float]:
    """`probe_accuracy`: validation accuracy of a quick finetune of the model as it is, with the trainer that trials use.

    Args:
        scratch: a folder to make, and to leave no trace of.
    """
    import torch

    from cotd.pretraining.model import save_as_t5
    from cotd.training import train_trial
    from cotd.trials import Trial, TrialFolder

    settings, reviews = config.probe, probe_reviews(config.probe)
    shutil.rmtree(scratch, ignore_errors=True)
    random_state = torch.get_rng_state()
    save_as_t5(model, tokenizer, scratch / "base")
    # The rate for a model that knows nothing yet, whatever it knows: probes are compared along a run, and between runs.
    training = TrainingConfig(
        steps=settings.steps, eval_every=max(1, settings.steps // 4), dropout=0.0, learning_rate=5e-3, truncation="head"
    )  # fmt: skip
    trial = Trial(
        "finetune", 1.0, "probe", 0, str(scratch / "base"), training, "sentiment", base_digest="", reviews_digest="",
        annotations_digest=None,
    )  # fmt: skip
    trial_folder = TrialFolder(scratch / "trial")
    trial_folder.path.mkdir(parents=True)
    result = train_trial(trial, trial_folder, reviews.table, None)
    shutil.rmtree(scratch, ignore_errors=True)
    torch.set_rng_state(random_state)
    return {"probe_accuracy": result["validation"]["accuracy"]}
