"""The pip command for optional packages that are missing."""

from __future__ import annotations

import pytest

from cotd.errors import CotdError
from serve.runtimes import packages
from serve.runtimes.export import require_format
from serve.runtimes.registry import require_runtime


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda name: ['onnx<2,>=1.23; extra == "export"'])
    with pytest.raises(CotdError, match=r"the format 'onnx' needs .* -m pip install 'onnx<2,>=1\.23' onnxruntime"):
        require_format("onnx")
    with pytest.raises(CotdError, match=r"the runtime 'ctranslate2-int8' needs .* -m pip install ctranslate2"):
        require_runtime("ctranslate2-int8")
