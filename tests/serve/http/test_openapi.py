"""What the OpenAPI document says and what the endpoint does, compared by schemathesis over a socket."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from serve.settings import Settings, digest

schemathesis = pytest.importorskip("schemathesis", reason="no schemathesis: pip install schemathesis")

TOKEN = "a-token-long-enough"


@pytest.mark.parametrize(("token", "examples"), [(None, 25), (TOKEN, 8)])
def test_the_document_is_exact(
    student_folder: Path, serve_http: Callable[[Settings], str], token: str | None, examples: int
) -> None:
    """Every answer is one that is documented, what fits the document is taken, what does not is refused; never a 500."""
    from hypothesis import HealthCheck, Phase, given, settings

    hashed = digest(token) if token else None
    url = serve_http(Settings(student=str(student_folder), poll_seconds=0, token_sha256=hashed))
    document = schemathesis.openapi.from_url(f"{url}openapi.json")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    tried = 0
    for found in document.get_all_operations():
        operation = found.ok()
        posts = operation.method == "post"

        def ask(case: Any) -> None:
            nonlocal tried
            tried += 1
            case.call_and_validate(headers=headers)

        for mode in schemathesis.GenerationMode if posts else [schemathesis.GenerationMode.POSITIVE]:
            few = settings(
                max_examples=examples if posts else 2, deadline=None, suppress_health_check=list(HealthCheck),
                phases=[Phase.explicit, Phase.generate],
            )  # fmt: skip
            few(given(case=operation.as_strategy(generation_mode=mode))(ask))()
    assert tried > examples
