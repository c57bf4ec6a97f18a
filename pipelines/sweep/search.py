"""The search of a study on Ray Tune: what is drawn from its space, and ASHA as its scheduler."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from cotd.study.config import StudyConfig
from cotd.study.grid import training_value
from cotd.study.search import Distribution, SearchConfig
from cotd.training.config import TrainingConfig

METRIC = "validation_accuracy"


def draw_settings(search: SearchConfig) -> list[dict[str, Any]]:
    """The training settings of each sample, by Ray Tune's own distributions.

    A draw depends on the search's seed, the sample's number and the setting's name alone, so that the same samples are
    found finished by any run, and more of them, or one setting more, leave the others as they are. Numbers are rounded to
    three digits: what is read in a table is what was trained.
    """
    return [
        {key: training_value(key, draw(distribution, [search.seed, number, *key.encode()], whole(key)))
         for key, distribution in search.space.items()}
        for number in range(search.samples)
    ]  # fmt: skip


def draw(distribution: Distribution, seed: list[int], to_whole: bool) -> Any:
    import numpy as np
    from ray import tune

    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence(seed)))
    if distribution.choice is not None:
        return distribution.choice[random.randint(len(distribution.choice))]
    if distribution.uniform is not None:
        value = tune.uniform(*distribution.uniform).sample(random_state=random)
    else:
        assert distribution.loguniform is not None
        value = tune.loguniform(*distribution.loguniform).sample(random_state=random)
    return round(value) if to_whole else float(f"{value:.3g}")


def whole(key: str) -> bool:
    """Whether a training setting is a whole number."""
    return TrainingConfig.model_fields[key].annotation is int


def scheduler(config: StudyConfig, history: Iterable[list[dict[str, float]]]) -> Any | None:
    """Ray Tune's ASHA as the study configures it, or None for first in, first out.

    Args:
        history: the validation scores of each sample that an earlier run finished or gave up: those of this run are compared
            with them, as if nothing had come between.
    """
    if config.search is None or config.search.asha is None:
        return None
    from ray.tune.schedulers import ASHAScheduler

    last = config.training.steps

    class Asha(ASHAScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            """A sample that has come to its last step has nothing left to be spared: it is scored on test like any other."""
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
