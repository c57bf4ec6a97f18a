"""The MLflow store: what is wrong with it is one line, and nothing that it raises ends what writes to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cotd.errors import CotdError
from cotd.storage.tracking_store import attempt, friendly_errors, without_password
from cotd.study.config import load_config
from cotd.tracking.runs import StudyTracker


def test_a_missing_database_driver_is_one_line(write_study: Callable[..., Path]) -> None:
    config = load_config(write_study(), ["tracking.uri=mssql+pymssql://host/runs"])
    with pytest.raises(CotdError) as caught:
        StudyTracker(config)
    assert len(caught.value.problems) == 1
    assert "\n" not in str(caught.value)
    assert "driver (pymssql)" in str(caught.value)


def test_no_password_is_shown() -> None:
    assert without_password("postgresql://me:secret@host/runs") == "postgresql://me:…@host/runs"
    with (
        pytest.raises(CotdError, match="postgresql://me:…@host") as caught,
        friendly_errors("postgresql://me:secret@host/runs"),
    ):
        raise OSError
    assert "OSError" in str(caught.value), "an error without a message is named by its kind"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("tracking.registered_model=team/student", "tracking.registered_model: .* no slash .*'team/student'"),
        ("tracking.registered_model=a:b", "tracking.registered_model"),
        ("tracking.uri=postgresql://me:secret@host/runs", "the address holds credentials"),
    ],
)
def test_names_that_mlflow_does_not_take_are_refused_with_the_configuration(
    write_study: Callable[..., Path], override: str, message: str
) -> None:
    with pytest.raises(CotdError, match=message) as caught:
        load_config(write_study(), [override])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("error", [TimeoutError(), RuntimeError("the bucket\nis gone"), KeyError("x")])
def test_whatever_a_store_raises_is_a_reason(error: Exception) -> None:
    def write() -> None:
        raise error

    assert attempt(write) == {"TimeoutError": "TimeoutError", "RuntimeError": "RuntimeError: the bucket"}.get(
        type(error).__name__, "KeyError: 'x'"
    )
