"""The search of a study on Ray Tune: settings drawn from its space, and ASHA as its scheduler."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from cotd.study.config import StudyConfig
from cotd.study.grid import training_value
from cotd.study.search import Distribution, SearchConfig
from cotd.training.config import TrainingConfig

METRIC = "validation_accuracy"


def draw_settings(search: SearchConfig) -> list[dict[str, Any]]:
    """The training settings of each sample.

    A draw depends on the search's seed, the sample's number and the setting's name alone: any run finds the same samples
    finished, and more samples, or one setting more, leave the others as they are. Numbers are rounded to three digits, so
    that what a table shows is what was trained.
    """
    return [
        {key: training_value(key, draw(distribution, [search.seed, number, *key.encode()], is_integer(key)))
         for key, distribution in search.space.items()}
        for number in range(search.samples)
    ]  # fmt: skip


def draw(distribution: Distribution, seed: list[int], integer: bool) -> Any:
    """A value of a distribution."""
    import numpy as np

    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    if distribution.choice is not None:
        return distribution.choice[random.randint(len(distribution.choice))]
    if distribution.uniform is not None:
        low, high = distribution.uniform
        value = random.uniform(low, high)
    else:
        assert distribution.loguniform is not None
        low, high = distribution.loguniform
        value = math.exp(random.uniform(math.log(low), math.log(high)))
    return round(value) if integer else float(f"{value:.3g}")


def is_integer(key: str) -> bool:
    """Whether a training setting is an integer."""
    return TrainingConfig.model_fields[key].annotation is int


def scheduler(config: StudyConfig, history: Iterable[list[dict[str, float]]]) -> Any | None:
    """Ray Tune's ASHA as the study configures it, or None for first in, first out.

    Args:
        history: the validation scores of each sample that an earlier run finished or gave up; this run's samples are
            compared with them, too.
    """
    if config.search is None or config.search.asha is None:
        return None
    from ray.tune.schedulers import ASHAScheduler

    last = config.training.steps

    class Asha(ASHAScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            """Lets a sample at its last step end as done, and be scored on test: stopping it would save nothing."""
            action = super().on_trial_result(tune_controller, trial, result)
            return self.CONTINUE if result["step"] >= last else action

    asha = Asha(
        time_attr="step", metric=METRIC, mode="max", max_t=last + 1, grace_period=config.search.asha.grace_steps,
        reduction_factor=config.search.asha.reduction,
    )  # fmt: skip
    for number, curve in enumerate(history):
        sample: Any = SimpleNamespace(trial_id=f"earlier-{number}")
        asha.on_trial_add(None, sample)
        for point in curve:
            asha.on_trial_result(None, sample, point)
    return asha
