from pathlib import Path

import pytest

from cotd.errors import CotdError
from pipelines.cluster.lock import only_one


def test_a_second_command_on_one_study_is_refused(tmp_path: Path) -> None:
    with only_one(tmp_path / "small", "sweeping small", "nothing is lost."):
        with pytest.raises(CotdError, match="another process is sweeping small") as refused:
            only_one(tmp_path / "small", "sweeping small", "nothing is lost.").__enter__()
        assert "nothing is lost." in str(refused.value)
        with only_one(tmp_path / "other", "sweeping other", ""):
            pass
    with only_one(tmp_path / "small", "sweeping small", ""):
        pass
