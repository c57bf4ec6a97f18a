"""All stages of a file, one after another: each is annotated if it has to be, and swept; what is finished is not done again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cotd.errors import CotdError
from cotd.progress import say
from cotd.study.config import StudyConfig
from cotd.training.methods import METHODS
from pipelines.annotate.run import annotate
from pipelines.prepare import prepare
from pipelines.status import current_annotations
from pipelines.sweep.run import sweep


def run_stages(stages: Sequence[StudyConfig], yes: bool = False) -> dict[str, dict[str, Any]]:
    """Runs stages in their order; one whose trials fail ends it, as the next might be taught by the wrong student.

    Args:
        stages: as `cotd.study.config.load_stages` gives them.
        yes: as of `annotate` and `sweep`.

    Returns:
        Variant → what `sweep` returned, of the stages that were run.

    Raises:
        CotdError: bad input, as of `annotate` and `sweep`.

    Example:
        >>> list(cotd.run_stages([study]))
        ['mine']
    """
    outcomes: dict[str, dict[str, Any]] = {}
    for number, config in enumerate(stages, 1):
        stage = config.variant or config.name
        say(f"stage {number} of {len(stages)}: {stage}")
        annotate_if_needed(config, yes)
        outcomes[stage] = outcome = sweep(config, yes)
        if outcome["failed"]:
            break
        if outcome["best"] is None:
            raise CotdError(f"stage '{stage}' has no finished student. Run `cotd sweep CONFIG` again.")
    return outcomes


def annotate_if_needed(config: StudyConfig, yes: bool = False) -> dict[str, Any] | None:
    """Annotates a study that needs annotations and has none, or other ones; returns their summary, None if it needs none.

    Args:
        yes: accept an endpoint's price without a question.
    """
    if not any(METHODS[method].needs_annotations for method in config.grid.all_values("method")):
        return None
    return current_annotations(config, prepare(config)) or annotate(config, yes=yes)
