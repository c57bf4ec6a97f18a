"""The OpenAPI document against what the endpoint does, compared by schemathesis over a socket."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from serve.settings import Settings, token_sha256
from tests.serve.conftest import TOKEN

schemathesis = pytest.importorskip("schemathesis", reason="no schemathesis: pip install schemathesis")


@pytest.mark.integration
@pytest.mark.parametrize(("token", "examples"), [(None, 25), (TOKEN, 8)])
def test_the_document_is_exact(
    settings: Settings, serve_http: Callable[[Settings], str], token: str | None, examples: int
) -> None:
    """Every response is documented, valid requests are taken, invalid ones refused; never a 500.

    Which columns an invocation must have depends on the student, so that no document says which of them are taken.
    """
    from hypothesis import HealthCheck, Phase, given
    from hypothesis import settings as hypothesis_settings
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    url = serve_http(settings.model_copy(update={"token_sha256": token_sha256(token) if token else None}))
    document = schemathesis.openapi.from_url(f"{url}openapi.json")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    tried = 0
    for operation in (result.ok() for result in document.get_all_operations()):
        posts = operation.method == "post"

        def ask(case: Any) -> None:
            nonlocal tried
            tried += 1
            unsaid = [positive_data_acceptance] if case.operation.path == "/invocations" else []
            case.call_and_validate(headers=headers, excluded_checks=unsaid)

        for mode in schemathesis.GenerationMode if posts else [schemathesis.GenerationMode.POSITIVE]:
            few = hypothesis_settings(
                max_examples=examples if posts else 2, deadline=None, suppress_health_check=list(HealthCheck),
                phases=[Phase.explicit, Phase.generate],
            )  # fmt: skip
            few(given(case=operation.as_strategy(generation_mode=mode))(ask))()
    assert tried > examples
