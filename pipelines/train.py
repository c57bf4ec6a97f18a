"""One trial in this process, without Ray or MLflow: the code that a sweep runs."""

from __future__ import annotations

from cotd.progress import track
from cotd.storage.sync import sync_study
from cotd.study.config import StudyConfig
from cotd.study.grid import GridConfig
from cotd.training.folder import TrialFolder
from cotd.training.train import train_trial
from pipelines.annotate.files import read_rationales, read_teacher_test
from pipelines.sweep.plan import plan_study
from pipelines.sweep.vocabulary import check_vocabulary


@sync_study
def train(config: StudyConfig) -> TrialFolder:
    """Trains the first trial of a study's grid, unless it is done. `resources` is ignored: this process has all CPUs.

    Returns:
        The trial's folder: `folder.result()` has the metrics, `folder.student` is what `Student.load` takes.

    Raises:
        CotdError: bad examples, missing annotations, a base model that does not exist, or a training that fails.

    Example:
        >>> folder = cotd.train(study)
        >>> folder.result()["method"]
        'finetune'
    """
    plan = plan_study(with_first_trial(config))
    trial = plan.trials[0]
    folder = plan.folder(trial)
    if folder.done:
        return folder
    check_vocabulary(plan, [trial])
    folder.write_trial(trial, config.model_dump())
    seen = 0
    with track(trial.title, trial.training.steps, "steps") as advance:

        def on_score(point: dict[str, float]) -> None:
            nonlocal seen
            advance(int(point["step"]) - seen)
            seen = int(point["step"])

        teacher_test, rationales = read_teacher_test(plan.teacher_test), read_rationales(plan.held_out_rationales)
        train_trial(
            trial, folder, plan.examples, plan.annotations, plan.provenance, on_score, teacher_test, rationales, plan.cache
        )
    return folder


def with_first_trial(config: StudyConfig) -> StudyConfig:
    """The study with the first combination of its grid alone: nothing is asked for that only others need."""
    cell = next(config.grid.all_cells())
    grid = GridConfig(
        method=[cell.method], fraction=[cell.fraction], size=[cell.size], seed=[cell.seed],
        samples=None if cell.samples is None else [cell.samples], filters=None if cell.filters is None else [cell.filters],
        training={key: [value] for key, value in cell.training.items()},
    )  # fmt: skip
    return config.model_copy(update={"grid": grid})
