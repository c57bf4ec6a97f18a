"""Whatever a file holds, `cotd init` ends in a study that loads, or in messages."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings

from cotd.data.sources import load_examples
from cotd.errors import CotdError
from cotd.study.config import StudyConfig, load_config
from cotd.study.draft import draft_study
from tests.fuzz.files import files

EXAMPLES = int(os.environ.get("COTD_FUZZ", "500")) // 5  # `make fuzz` sets more


def init(file: Path) -> StudyConfig:
    """What the command does."""
    study = file.with_name("study.yaml")
    study.write_text(draft_study(str(file)).yaml, encoding="utf-8")
    return load_config(study)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@given(files())
def test_any_file_ends_in_a_study_or_in_messages(named: tuple[str, bytes]) -> None:
    name, content = named
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_bytes(content)
        try:
            config = init(file)
        except CotdError:
            return
        with contextlib.suppress(CotdError):
            load_examples(config.data, config.task)
