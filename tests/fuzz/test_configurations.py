"""Whatever a study's file holds, loading and planning it ends in a study or in messages."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings

from cotd.data.files import names_files
from cotd.data.sources import load_examples, noun
from cotd.errors import CotdError
from cotd.study.config import StudyConfig, load_config
from cotd.study.trials import plan_trials
from cotd.teachers.prompts import load_prompts
from pipelines.sweep.search import draw_settings
from tests.fuzz.configurations import changes, configurations

EXAMPLES = int(os.environ.get("COTD_FUZZ", "500")) // 5  # `make fuzz` sets more
MANY_TRIALS = 3000
fuzzed = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


def plan(config: StudyConfig) -> None:
    """What a command does with a study before it trains or asks anybody, without looking at models."""
    load_prompts(config.task, noun(config.data, config.task), config.teacher.prompts)
    samples = config.search.samples if config.search else 1
    if config.grid.count_all() * samples <= MANY_TRIALS:
        digests = {size: size for size in config.grid.all_values("size")}
        plan_trials(
            config, digests, "examples", "annotations", settings=draw_settings(config.search) if config.search else [{}]
        )
    source = config.data.source
    if all(names_files(place) and "://" not in place for place in ([source] if isinstance(source, str) else source.values())):
        load_examples(config.data.model_copy(update={"unlabelled": None}), config.task)


@fuzzed
@given(content=configurations(), overrides=changes)
def test_any_file_ends_in_a_study_or_in_messages(
    content: bytes, overrides: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    file.write_bytes(content)
    try:
        plan(load_config(file, overrides))
    except CotdError as error:
        if not error.problems or not all(problem.strip() for problem in error.problems):
            pytest.fail("an error without a message")
