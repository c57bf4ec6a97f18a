from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from cotd.errors import CotdError
from cotd.study.config import load_config


def test_a_protocol_without_its_package_is_named(write_study: Callable[..., Path]) -> None:
    with pytest.raises(CotdError, match=r"storage: storage 'nope://bucket/runs' cannot be used"):
        load_config(write_study(), ["storage=nope://bucket/runs"])
    study = load_config(write_study(), ["storage=memory://bucket/runs"])
    assert study.remote == "memory://bucket/runs/small"
    assert study.directory.is_absolute()
    assert fsspec.core.url_to_fs(study.remote)[1] == "/bucket/runs/small"
